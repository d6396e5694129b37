"""Defines the protocol of priors, which give each item a weight after a history."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

from trl_rec.decoding.weights import ItemWeights
from trl_rec.ragged import Ragged


@runtime_checkable
class Prior(Protocol):
    """An object with the method `weights`, which ranking functions call."""

    def weights(self, histories: Ragged) -> ItemWeights:
        """Returns the weights of all items after each history.

        Args:
            histories (`Ragged`): Item indices, oldest first. A history may be empty.
        """
        ...
