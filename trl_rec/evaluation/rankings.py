"""Stores the ranked items of each row of a split, with scores if the recommender has any."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np


INDEX = np.dtype(np.int64)
RANK = np.dtype([("item", np.int64), ("score", np.float32)])  # item and score of a rank


class Rankings(NamedTuple):
    """One ranking of the catalogue per row of a split, best item first.

    Args:
        items (`np.ndarray` of shape `(N, K)`): Item indices, padded with -1.
        scores (`np.ndarray` of shape `(N, K)`, *optional*): The score of each rank in float32, padded with -inf.
            `None` if the recommender has no scores.
    """

    items: np.ndarray
    scores: np.ndarray | None = None

    @classmethod
    def from_ranks(cls, ranks: np.ndarray) -> Rankings:
        """Converts an array `(N, K)` of the type `RANK`. Missing ranks get the score -inf."""
        items = ranks["item"].copy()
        return cls(items, np.where(items < 0, np.float32(-np.inf), ranks["score"]))

    def head(self, top_k: int) -> Rankings:
        """Keeps the first `top_k` ranks."""
        return Rankings(self.items[:, :top_k], None if self.scores is None else self.scores[:, :top_k])
