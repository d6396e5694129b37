"""Orders the candidates of training lists as a retriever might: by mean rating in the training split, best first.

The label of a candidate, which is the user's first rating of the item, is left out of the item's mean. Otherwise the
order of items with few ratings would reveal the labels. If the user has rated the item again, the later ratings are
not left out.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from datasets import Dataset

from trl_rec.evaluation.graded.baselines import train_ratings


DAMPING = 1.0  # number of artificial ratings, each equal to the mean of all ratings, that are added for every item


@dataclass(frozen=True, eq=False)
class GivenOrder:
    """Orders candidates by their mean ratings in the training split. Create it with `from_split`.

    Args:
        totals (`np.ndarray` of shape `(num_items,)`): Sum of the ratings of each item.
        counts (`np.ndarray` of shape `(num_items,)`): Number of ratings of each item.
    """

    totals: np.ndarray
    counts: np.ndarray

    @classmethod
    def from_split(cls, train: Dataset, num_items: int) -> GivenOrder:
        """Sums and counts the ratings of each item in a training split. Every interaction is used once."""
        ratings = train_ratings(train, num_items)
        return cls(
            np.bincount(ratings.item, ratings.rating, num_items), np.bincount(ratings.item, minlength=num_items)
        )

    def slots(self, candidates: np.ndarray, ratings: np.ndarray) -> np.ndarray:
        """Returns the indices into `candidates` that sort the candidates by mean, best first, `(m,)`. Candidates with
        equal means keep their order.

        Args:
            candidates: The items of a training list, `(m,)`.
            ratings: The user's ratings of these items, `(m,)`. They are left out of the means.
        """
        overall = self.totals.sum() / self.counts.sum()
        totals = self.totals[candidates] - ratings + DAMPING * overall
        means = totals / (np.maximum(self.counts[candidates] - 1, 0) + DAMPING)
        order: np.ndarray = np.argsort(-means.round(9), kind="stable")
        return order
