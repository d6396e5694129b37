"""Defines `ItemWeights`, which turns a ranking by a policy's probability `p` into a ranking by `p * w ** strength`.

A weight expresses something that the policy does not know, such as a prior, a profit margin, the stock, or a filter.
The score of an item is

    log p(item | prompt) / length ** length_penalty + strength * log(w(item | prompt) / W)

Here `length` is the number of tokens of the item (for a title, including EOS), and W is the sum of the weights of all
items. Items that are excluded by the argument `exclude` of a search still count in W. Items that a filter (`allowed`)
removes do not, so a filter shifts the scores of all items that it allows by the same number.

Legend: B prompts, F filters, I items, S items per prompt that have a weight for this prompt only (padded).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import ClassVar

import torch
from torch import Tensor

from trl_rec.ranges import NOT_NEGATIVE


@dataclass(frozen=True, eq=False)
class ItemWeights:
    """The weights of the items for a batch of prompts: `w = allowed * (shared + own)`.

    For each item, `allowed` is 0 if a filter removes the item, and 1 otherwise. `shared` is the same for all prompts.
    `own` is added for one prompt only: it is the item's value in `values`, or 0 if the item is not in `items`. The
    default of `shared` is 0 if `items` is given, and 1 otherwise. So by default, every weight is 1.

    Args:
        shared (`torch.Tensor` of shape `(I,)`, *optional*): Weights by item index, the same for all prompts.
        items (`torch.Tensor` of shape `(B, S)`, *optional*): For each prompt, the indices of the items that have an
            entry in `values`; -1 is padding. The values of a repeated item add up.
        values (`torch.Tensor` of shape `(B, S)`, *optional*): For each prompt, the weights of `items`, added to
            `shared`.
        strength (`float`, *optional*, defaults to `1.0`): Exponent of the weights. With strength 0, the weights have
            no effect, except that items of weight 0 are removed.
        allowed (`torch.Tensor` of shape `(F, I)`, *optional*): Filters, as booleans by item index. Items that are not
            allowed have the weight 0. An item of weight 0 is removed, whatever the strength.
        allowed_of (`torch.Tensor` of shape `(B,)`, *optional*): The row of `allowed` that applies to each prompt. By
            default, the first row applies to all prompts.
    """

    # Maps fields to their names in error messages. Subclasses set this if users do not know the fields themselves.
    called: ClassVar[Mapping[str, str]] = {}

    shared: Tensor | None = None
    items: Tensor | None = None
    values: Tensor | None = None
    strength: float = 1.0
    allowed: Tensor | None = None
    allowed_of: Tensor | None = None

    def __post_init__(self) -> None:
        NOT_NEGATIVE.check("strength", self.strength)
        self._check_shapes()

        # Check the values.
        for name in ("shared", "values"):
            weights = getattr(self, name)
            if weights is not None and not bool((weights.isfinite() & (weights >= 0)).all()):
                what = self.called.get(name, name)
                raise ValueError(
                    f"{what} contains a negative, infinite or NaN weight; weights must be finite and at least 0"
                )
        if self.allowed_of is not None and self.allowed is not None and self.allowed_of.numel():
            if not 0 <= int(self.allowed_of.min()) <= int(self.allowed_of.max()) < len(self.allowed):
                raise ValueError(f"allowed_of contains a row number outside the {len(self.allowed)} rows of 'allowed'")

    def _check_shapes(self) -> None:
        """Raises `ValueError` unless the tensors have the right shapes and types, and are consistent."""
        # 1. Check the number of dimensions of each tensor.
        for name, ndim in (("shared", 1), ("items", 2), ("values", 2), ("allowed", 2), ("allowed_of", 1)):
            tensor = getattr(self, name)
            if tensor is not None and tensor.ndim != ndim:
                raise ValueError(f"{self.called.get(name, name)} must have {ndim} dimension(s), not {tensor.ndim}")

        # 2. Check the tensors that belong together, and their types.
        if (self.items is None) != (self.values is None):
            raise ValueError("items and values belong together; pass both, or neither")
        if self.items is not None and self.values is not None and self.items.shape != self.values.shape:
            raise ValueError(
                f"items has the shape {tuple(self.items.shape)}, but values {tuple(self.values.shape)}; give one "
                "value per item"
            )
        if self.items is not None and self.items.is_floating_point():
            raise ValueError("items must contain item indices, which are integers")
        if self.allowed is not None and self.allowed.dtype != torch.bool:
            raise ValueError("allowed must be a boolean tensor; pass weights as 'shared'")
        if self.allowed_of is not None and self.allowed is None:
            raise ValueError("allowed_of selects rows of 'allowed', which is missing; pass 'allowed' too")

    def to(self, device: torch.device | str) -> ItemWeights:
        """Returns the weights with their tensors on `device`."""
        tensors = {field.name: getattr(self, field.name) for field in fields(self) if field.name != "strength"}
        return replace(self, **{name: tensor.to(device) for name, tensor in tensors.items() if tensor is not None})

    def take(self, rows: Sequence[int]) -> ItemWeights:
        """Returns the weights of the prompts with the indices `rows`."""
        index = list(rows)
        own = {name: getattr(self, name) for name in ("items", "values", "allowed_of")}
        return replace(self, **{name: tensor[index] for name, tensor in own.items() if tensor is not None})

    def filtered(self, allowed: Tensor, allowed_of: Tensor) -> ItemWeights:
        """Returns the weights with the further filters `allowed` `(F, I)`. `allowed_of` `(B,)` contains the row of
        `allowed` that applies to each prompt."""
        if self.allowed is None:
            return replace(self, allowed=allowed, allowed_of=allowed_of)
        before = self.allowed[torch.zeros_like(allowed_of) if self.allowed_of is None else self.allowed_of]
        rows = torch.arange(len(allowed_of), device=allowed_of.device)
        return replace(self, allowed=before & allowed[allowed_of], allowed_of=rows)

    def log_total(self, num_prompts: int, num_items: int) -> Tensor:
        """Returns log W of each prompt, `(B, 1)`, in float64."""
        return self.dense(num_prompts, num_items).double().sum(1, keepdim=True).log()

    def dense(self, num_prompts: int, num_items: int) -> Tensor:
        """Returns the weight of every item for each prompt, `(B, I)`."""
        # 1. Start with the shared weights, by default 1, or 0 if `items` is given.
        device = next(
            (tensor.device for tensor in (self.shared, self.items, self.allowed) if tensor is not None), None
        )
        default = torch.full((num_items,), float(self.items is None), device=device)
        weights = (default if self.shared is None else self.shared).expand(num_prompts, -1)

        # 2. Add the weights of each prompt's own items. Padding goes to an additional column.
        if self.items is not None and self.values is not None:
            places = torch.where(self.items < 0, num_items, self.items.long())
            own = self.values.new_zeros(num_prompts, num_items + 1).scatter_add(1, places, self.values)
            weights = weights + own[:, :-1]

        # 3. Apply the filters.
        if self.allowed is not None:
            rows = self.allowed[self.allowed_of] if self.allowed_of is not None else self.allowed[:1]
            weights = weights * rows
        return weights
