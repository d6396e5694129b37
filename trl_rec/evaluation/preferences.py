"""Measures whether a recommender ranks the items that a user liked above those that the user disliked.

Recall and NDCG count every held-out item as a success, whatever its rating. The measures here use the ratings of a
split, on a scale up to 5. Held-out items rated 4 or more are liked, and those rated 2 or less are disliked. All other
items are ignored. A measure is NaN for a user without the held-out items that the measure needs.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from datasets import Dataset

from trl_rec.data.dataset import split_rows
from trl_rec.evaluation import metrics
from trl_rec.ragged import Ragged


LIKED = 4.0  # lowest rating of a liked item
DISLIKED = 2.0  # highest rating of a disliked item
HIGHEST = 5.0  # upper end of the rating scale; LIKED and DISLIKED make sense only on this scale

logger = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class RatedTargets:
    """The liked and disliked held-out items of a split.

    Args:
        items (`Ragged`): The liked and disliked items of each row.
        is_liked (`np.ndarray` of shape `(len(items.values),)`): True for liked items, False for disliked ones.
    """

    items: Ragged
    is_liked: np.ndarray

    @classmethod
    def from_split(cls, rows: Dataset) -> RatedTargets | None:
        """Returns the liked and disliked held-out items of a split.

        Returns None if the split has no ratings, or if a rating exceeds `HIGHEST`.
        """
        if "target_ratings" not in rows.column_names:
            return None
        ratings = split_rows(rows, "target_ratings")
        known = ratings.values[~np.isnan(ratings.values)]
        if not len(known):
            return None
        highest = float(known.max())
        if highest > HIGHEST:
            logger.warning(
                "liked@k, disliked@k and preference_accuracy are left out, because ratings go up to %g, but these "
                "metrics use a scale up to %g",
                highest,
                HIGHEST,
            )
            return None

        targets = split_rows(rows, "targets")
        is_liked = ratings.values >= LIKED
        kept = is_liked | (ratings.values <= DISLIKED)
        lengths = np.bincount(targets.row_ids[kept], minlength=len(targets))
        return cls(Ragged.from_lengths(targets.values[kept].astype(np.int64), lengths), is_liked[kept])

    @cached_property
    def counts(self) -> tuple[np.ndarray, np.ndarray]:
        """The numbers of liked and of disliked items of each row, `(num_rows,)` each."""
        num_liked = np.bincount(self.items.row_ids[self.is_liked], minlength=len(self.items))
        return num_liked, self.items.lengths - num_liked

    @property
    def has_pairs(self) -> np.ndarray:
        """True for the rows that have both a liked and a disliked item, `(num_rows,)`."""
        num_liked, num_disliked = self.counts
        return (num_liked > 0) & (num_disliked > 0)

    @property
    def num_users(self) -> dict[str, int]:
        """Number of rows with a liked item (`liked_users`), a disliked item (`disliked_users`), and both
        (`preference_users`)."""
        num_liked, num_disliked = self.counts
        return {
            "liked_users": int((num_liked > 0).sum()),
            "disliked_users": int((num_disliked > 0).sum()),
            "preference_users": int(self.has_pairs.sum()),
        }

    def take(self, rows: np.ndarray) -> RatedTargets:
        """Selects the given rows."""
        kept = Ragged(self.is_liked, self.items.offsets).take(rows)
        return RatedTargets(self.items.take(rows), kept.values)

    def found(self, ranked: np.ndarray, ks: Sequence[int]) -> dict[str, np.ndarray]:
        """Computes `liked@k` and `disliked@k` per user, `(num_rows,)` each.

        `liked@k` is the share of a user's liked held-out items that are among the first k items of the
        user's ranking. `disliked@k` is the same share for the user's disliked held-out items. In a good ranking,
        `liked@k` is high and `disliked@k` is low.

        Args:
            ranked (`np.ndarray` of shape `(num_rows, K)`): Item indices, best first, padded with -1.
            ks (`Sequence[int]`): The cutoffs k, each at most K.
        """
        values = {}
        for name, wanted in (("liked", self.is_liked), ("disliked", ~self.is_liked)):
            hits, counts = metrics.find_hits(ranked, self.items.row_ids[wanted], self.items.values[wanted])
            for k in ks:
                recall = metrics.recall(hits, np.maximum(counts, 1), k)
                values[f"{name}@{k}"] = np.where(counts > 0, recall, np.nan)
        return values

    def accuracy(self, scores: np.ndarray) -> np.ndarray:
        """Computes `preference_accuracy` per user, `(num_rows,)`.

        Each pair consists of a liked and a disliked held-out item of a user. The accuracy is the share of the pairs in
        which the liked item has the higher score. A pair with equal scores counts half, so a recommender that gives
        all items the same score has an accuracy of 0.5.

        Args:
            scores (`np.ndarray` of shape `(len(items.values),)`): The score of each item.
        """
        # Sort the items of each row by score. A pair is in the right order if the disliked item has the lower score.
        rows = self.items.row_ids
        order = np.lexsort((scores, rows))
        rows = rows[order]
        liked = self.is_liked[order].astype(np.int64)
        num_liked, num_disliked = self.counts

        # Group the items of a row that have equal scores. Count the liked and the disliked items of each group.
        is_new = np.ones(len(rows), bool)
        is_new[1:] = (rows[1:] != rows[:-1]) | (scores[order][1:] != scores[order][:-1])
        group = np.cumsum(is_new) - 1
        liked_in = np.bincount(group, liked)
        disliked_in = np.bincount(group, 1 - liked)
        row_of = rows[is_new]

        # For each group, count the disliked items of the row that have lower scores.
        up_to = np.cumsum(disliked_in)
        before_row = np.concatenate([[0], np.cumsum(num_disliked)])[:-1]
        below = up_to - disliked_in - before_row[row_of]
        right = np.bincount(row_of, liked_in * (below + disliked_in / 2), len(self.items))
        pairs = num_liked * num_disliked
        return np.where(pairs > 0, right / np.maximum(pairs, 1), np.nan)
