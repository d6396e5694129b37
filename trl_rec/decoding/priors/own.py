"""Makes a prior from given weights: from an array with one weight per item, or from a function of the histories."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from trl_rec.decoding.priors.base import Prior
from trl_rec.decoding.priors.files import check_kind, read_prior_file, write_prior_file
from trl_rec.decoding.weights import ItemWeights
from trl_rec.ragged import Ragged


@dataclass(frozen=True, eq=False)
class ArrayPrior:
    """A prior with one weight per item, the same for all histories, such as the item's profit margin or stock.

    Args:
        values (`np.ndarray` or `torch.Tensor` of shape `(num_items,)`): The weight of each item by its index in the
            catalogue, at least 0. An item with weight 0 is never recommended, so a boolean array acts as a filter.
        strength (`float`, *optional*, defaults to `1.0`): Exponent of the weights.
    """

    kind: ClassVar[str] = "array"

    values: np.ndarray | Tensor
    strength: float = 1.0

    def __post_init__(self) -> None:
        self.weights(Ragged.from_lists([]))  # raises if the array is invalid

    def weights(self, histories: Ragged) -> ItemWeights:
        """Returns the same weights for all histories."""
        return _ArrayWeights(shared=torch.as_tensor(self.values).float(), strength=self.strength)

    def save(self, path: str | Path) -> None:
        """Writes the prior to a safetensors file, atomically."""
        values = torch.as_tensor(self.values).float().cpu().numpy()
        write_prior_file(path, self.kind, {"values": values}, {"strength": self.strength})

    @classmethod
    def load(cls, path: str | Path) -> ArrayPrior:
        """Reads what `save` wrote. Raises `ValueError` if the file is damaged or contains another kind of prior."""
        content = read_prior_file(path)
        check_kind(path, content, cls.kind)
        with content.explained():
            return cls(content.array("values", np.float32, 1), content.number("strength"))


@dataclass(frozen=True, eq=False)
class FunctionPrior:
    """A prior whose weights are computed by a function of the histories. It cannot be saved.

    Args:
        function (`Callable`): Maps histories (`Ragged`) to weights of shape `(len(histories), num_items)`.
        strength (`float`, *optional*, defaults to `1.0`): Exponent of the weights.
    """

    function: Callable[[Ragged], np.ndarray | Tensor]
    strength: float = 1.0

    def weights(self, histories: Ragged) -> ItemWeights:
        """Returns the weights that the function gives to the items after each history."""
        values = torch.as_tensor(self.function(histories)).float()
        if values.ndim != 2 or len(values) != len(histories):
            raise ValueError(
                f"the prior's function returned the shape {tuple(values.shape)} for {len(histories)} histories; "
                "it must return one row per history and one column per item"
            )
        items = torch.arange(values.shape[1]).expand_as(values)
        # `ItemWeights` adds `values` to the shared weights, so shared weights of 0 change no weight. They are passed
        # only for a check: decoding raises an error unless there is one shared weight per item, and here there is one
        # per column of the function's result.
        return _FunctionWeights(torch.zeros(values.shape[1]), items, values, strength=self.strength)


class _ArrayWeights(ItemWeights):
    """The weights of an [`ArrayPrior`]. Error messages call them 'the array of the prior'."""

    called = {"shared": "the array of the prior"}


class _FunctionWeights(ItemWeights):
    """The weights of a [`FunctionPrior`]. Error messages call them 'the result of the prior's function'."""

    called = dict.fromkeys(["shared", "values"], "the result of the prior's function")


def as_prior(prior: Prior | np.ndarray | Tensor | Callable[[Ragged], np.ndarray | Tensor] | None) -> Prior | None:
    """Converts an array `(num_items,)` or a function of the histories to a prior.

    A prior is returned unchanged, and so is None.
    """
    if prior is None or isinstance(prior, Prior):
        return prior
    if isinstance(prior, np.ndarray | Tensor):
        return ArrayPrior(prior)
    if callable(prior):
        return FunctionPrior(prior)
    raise ValueError(
        f"{prior!r:.80} is not a prior; give an object with a method weights(histories), an array of one weight per "
        "item, or a function of the histories"
    )
