"""Counts which items follow which in a training split, and scores the items that may follow a history.

Everything is sparse: memory and time grow with the number of counted pairs and of items scored per history, not with
the square of the number of items.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from trl_rec.data.train_interactions import TrainInteractions
from trl_rec.ragged import Ragged, within
from trl_rec.ranges import COUNT


@dataclass(frozen=True, eq=False)
class TransitionCounts:
    """The items that followed each item in training, and how often they did, as shares.

    T[i, j] is the sum of 1/d over all training pairs in which item j follows item i at a distance d <= `window`. Each
    row of T is then divided by its sum. The score of item j after a history is the sum of T[i, j] / (1 + w) over the
    last `max_history` items i of the history, where w = 0 for the newest item, 1 for the one before, and so on.

    Args:
        targets (`Ragged`): Row `i` contains the items that followed item `i`, in ascending order.
        shares (`np.ndarray` of shape `(len(targets.values),)`): T[i, j] for each of these items.
        max_history (`int`): Maximum number of history items to use, the newest first.
    """

    targets: Ragged
    shares: np.ndarray
    max_history: int

    @classmethod
    def from_interactions(
        cls, interactions: TrainInteractions, *, window: int = 3, max_history: int = 10
    ) -> TransitionCounts:
        """Counts each training transition once.

        Args:
            interactions (`TrainInteractions`): The interactions of a training split.
            window (`int`, *optional*, defaults to `3`): Maximum distance between the two items of a pair.
            max_history (`int`, *optional*, defaults to `10`): Maximum number of history items to use.
        """
        COUNT.check("window", window)
        COUNT.check("max_history", max_history)
        first, second, distance = interactions.pairs(window)
        return cls.from_pairs(first, second, 1 / distance, interactions.num_items, max_history)

    @classmethod
    def from_pairs(
        cls, first: np.ndarray, second: np.ndarray, weights: np.ndarray, num_items: int, max_history: int
    ) -> TransitionCounts:
        """Sums the weights of equal pairs, and divides each row by its sum.

        Args:
            first, second, weights (`np.ndarray` of shape `(P,)`): The two items of each pair, and its weight.
            num_items (`int`): Size of the catalogue.
            max_history (`int`): Maximum number of history items to use.
        """
        # Sum the weights of equal pairs: a sparse matrix in row order, with one entry per distinct pair.
        keys, inverse = np.unique(first * num_items + second, return_inverse=True)
        sums = np.bincount(inverse, weights, len(keys))
        source, target = np.divmod(keys, max(num_items, 1))

        # Divide each row by its sum.
        totals = np.bincount(source, sums, num_items)
        return cls(
            Ragged.from_lengths(target, np.bincount(source, minlength=num_items)), sums / totals[source], max_history
        )

    def followers(self, histories: Ragged) -> tuple[Ragged, np.ndarray]:
        """Returns the items that followed the recent items of each history, and the score of each one.

        An item occurs once for each recent item that it followed. The scores have the shape
        `(len(followers.values),)`.
        """
        recent = histories.tail(self.max_history)
        age = np.repeat(recent.lengths, recent.lengths) - 1 - within(recent.lengths)  # 0 for the newest item
        followers = self.targets.take(recent.values)
        shares = Ragged(self.shares, self.targets.offsets).take(recent.values).values
        return Ragged(followers.values, followers.offsets[recent.offsets]), shares / (1 + age)[followers.row_ids]

    def num_followers(self, histories: Ragged) -> np.ndarray:
        """Returns how many items [`followers`] returns for each history, `(len(histories),)`."""
        recent = histories.tail(self.max_history)
        num_targets = np.bincount(recent.row_ids, self.targets.lengths[recent.values], len(recent))
        return num_targets.astype(np.int64)


def sum_by_key(keys: np.ndarray, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns the distinct keys in ascending order, and the sum of the values per key."""
    if not len(keys):
        return keys, values
    # After sorting, equal keys are next to each other. The sort is stable, so that the values of a key are always
    # added in the same order.
    order = np.argsort(keys, kind="stable")
    keys = keys[order]
    starts = np.flatnonzero(np.concatenate([[True], keys[1:] != keys[:-1]]))
    return keys[starts], np.add.reduceat(values[order], starts)
