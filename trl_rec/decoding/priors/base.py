"""The protocol of priors: objects that weigh the items after a history."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

from trl_rec.decoding.weights import ItemWeights
from trl_rec.ragged import Ragged


@runtime_checkable
class Prior(Protocol):
    """What ranking functions require of a prior."""

    def weights(self, histories: Ragged) -> ItemWeights:
        """Returns the weights of all items after each history.

        Args:
            histories (`Ragged`): Item indices, oldest first. A history may be empty.
        """
        ...
