"""Weights of items, which turn a policy's ranking by `p` into a ranking by `p * w ** strength`.

A weight expresses something that the policy does not know, such as a prior, a profit margin, the stock, or a filter.
The score of an item is

    log p(item | prompt) / length ** length_penalty + strength * log(w(item | prompt) / W)

Here `length` is the number of tokens of the item, including EOS, and W is the sum of the weights of all items. W does
not depend on which items are excluded.

Legend: B: prompts, F: filters, I: items, S: items with weights of their own per prompt (padded).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import ClassVar

import torch
from torch import Tensor

from trl_rec.ranges import NOT_NEGATIVE


@dataclass(frozen=True, eq=False)
class ItemWeights:
    """The weights of the items for a batch of prompts: `w = allowed * (shared + own)`.

    `own` is the value of an item in `values`, or 0 if the item is not in `items`. By default, every weight is 1. With
    `items` but without `shared`, items that are not in `items` have the weight 0.

    Args:
        shared (`torch.Tensor` of shape `(I,)`, *optional*): Weights by item index, the same for all prompts.
        items (`torch.Tensor` of shape `(B, S)`, *optional*): Items with a weight of their own per prompt; -1 is
            padding. The weights of a repeated item add up.
        values (`torch.Tensor` of shape `(B, S)`, *optional*): The weights of `items`, added to `shared`.
        strength (`float`, *optional*, defaults to `1.0`): Exponent of the weights. With strength 0, the weights have
            no effect, except that items of weight 0 are removed.
        allowed (`torch.Tensor` of shape `(F, I)`, *optional*): Filters, as booleans by item index. Items that are not
            allowed have the weight 0. An item of weight 0 is removed, whatever the strength.
        allowed_of (`torch.Tensor` of shape `(B,)`, *optional*): The row of `allowed` that applies to each prompt. By
            default, the first row applies to all prompts.
    """

    called: ClassVar[Mapping[str, str]] = {}  # what errors call a field, where its name would mean nothing to the user

    shared: Tensor | None = None
    items: Tensor | None = None
    values: Tensor | None = None
    strength: float = 1.0
    allowed: Tensor | None = None
    allowed_of: Tensor | None = None

    def __post_init__(self) -> None:
        NOT_NEGATIVE.check("strength", self.strength)
        self._check_shapes()

        for name in ("shared", "values"):
            weights = getattr(self, name)
            if weights is not None and not bool((weights.isfinite() & (weights >= 0)).all()):
                what = self.called.get(name, name)
                raise ValueError(f"{what} contains a negative, infinite or NaN weight; weights must be at least 0")
        if self.allowed_of is not None and self.allowed is not None and self.allowed_of.numel():
            if not 0 <= int(self.allowed_of.min()) <= int(self.allowed_of.max()) < len(self.allowed):
                raise ValueError(f"allowed_of contains a row number outside the {len(self.allowed)} rows of allowed")

    def _check_shapes(self) -> None:
        for name, ndim in (("shared", 1), ("items", 2), ("values", 2), ("allowed", 2), ("allowed_of", 1)):
            tensor = getattr(self, name)
            if tensor is not None and tensor.ndim != ndim:
                raise ValueError(f"{self.called.get(name, name)} must have {ndim} dimension(s), not {tensor.ndim}")

        if (self.items is None) != (self.values is None):
            raise ValueError("items and values belong together; pass both, or neither")
        if self.items is not None and self.values is not None and self.items.shape != self.values.shape:
            raise ValueError(f"items has the shape {tuple(self.items.shape)}, but values {tuple(self.values.shape)}")
        if self.items is not None and self.items.is_floating_point():
            raise ValueError("items must contain item indices, which are integers")
        if self.allowed is not None and self.allowed.dtype != torch.bool:
            raise ValueError("allowed must be a boolean tensor; use shared for weights")
        if self.allowed_of is not None and self.allowed is None:
            raise ValueError("allowed_of selects rows of allowed, which is missing; pass allowed too")

    def to(self, device: torch.device | str) -> ItemWeights:
        """Returns the weights with their tensors on `device`."""
        tensors = {field.name: getattr(self, field.name) for field in fields(self) if field.name != "strength"}
        return replace(self, **{name: tensor.to(device) for name, tensor in tensors.items() if tensor is not None})
