"""Counts which items follow which in a training split, and scores the items that may follow a history.

All counts and scores are sparse. Memory and time grow with the number of counted pairs and with the number of items
that are scored per history, not with the square of the number of items.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from trl_rec.data.train_interactions import TrainInteractions
from trl_rec.ragged import Ragged, within
from trl_rec.ranges import COUNT, NOT_NEGATIVE


@dataclass(frozen=True, eq=False)
class TransitionCounts:
    """For each item, the items that follow it in the training split, and the share of each of these followers.

    S[i, j] is the sum of the weights of all pairs in which item j follows item i. `from_interactions` counts the pairs
    at a distance d of at most `window` and gives them the weight 1/d. The share T[i, j] is S[i, j] divided by the sum
    of row i of S. The score of item j after a history is the sum of T[i, j] / (1 + w) ** decay over the last
    `max_history` items i of the history, where w = 0 for the newest item, 1 for the one before, and so on.

    Args:
        targets (`Ragged`): Row `i` contains the items that followed item `i`, in ascending order.
        shares (`np.ndarray` of shape `(len(targets.values),)`): The share T[i, j] of each of these items.
        max_history (`int`): Maximum number of history items to use, the newest first.
        decay (`float`, *optional*, defaults to `1.0`): How fast the weight of history items falls with their age w;
            0 gives all of them the same weight.
    """

    targets: Ragged
    shares: np.ndarray
    max_history: int
    decay: float = 1.0

    @classmethod
    def from_interactions(
        cls, interactions: TrainInteractions, *, window: int = 3, max_history: int = 10
    ) -> TransitionCounts:
        """Counts the pairs of interactions of the same row. A pair is counted once even if several rows contain it.

        Args:
            interactions (`TrainInteractions`): The interactions of a training split.
            window (`int`, *optional*, defaults to `3`): Maximum distance between the two items of a pair.
            max_history (`int`, *optional*, defaults to `10`): Maximum number of history items to use.
        """
        COUNT.check("window", window)
        COUNT.check("max_history", max_history)
        first, second, distance = interactions.pairs(window)
        return cls.from_pairs(first, second, 1 / distance, interactions.num_items, max_history=max_history)

    @classmethod
    def from_pairs(
        cls,
        first: np.ndarray,
        second: np.ndarray,
        weights: np.ndarray,
        num_items: int,
        *,
        max_history: int,
        decay: float = 1.0,
    ) -> TransitionCounts:
        """Sums the weights of equal pairs, and divides the sums of each first item by their total.

        Args:
            first, second, weights (`np.ndarray` of shape `(P,)`): The two items of each pair, and its weight.
            num_items (`int`): Size of the catalogue.
            max_history, decay: As in the class.
        """
        # Sum the weights of equal pairs. This gives the sparse matrix S in row order, one entry per distinct pair.
        keys, inverse = np.unique(first * num_items + second, return_inverse=True)
        sums = np.bincount(inverse, weights, len(keys))
        source, target = np.divmod(keys, max(num_items, 1))

        # Divide each row of S by its sum.
        totals = np.bincount(source, sums, num_items)
        targets = Ragged.from_lengths(target, np.bincount(source, minlength=num_items))
        return cls(targets, sums / totals[source], max_history, decay)

    def largest(self, most: int) -> TransitionCounts:
        """Returns the counts with only the `most` largest shares of each row. The kept shares are not rescaled, so the
        sum of a row may be below 1."""
        rows = self.targets.row_ids
        order = np.lexsort((-self.shares, rows))
        kept = np.sort(order[within(self.targets.lengths) < most])
        targets = Ragged.from_lengths(self.targets.values[kept], np.minimum(self.targets.lengths, most))
        return replace(self, targets=targets, shares=self.shares[kept])

    def check(self, num_items: int) -> None:
        """Raises `ValueError` if the counts are not valid for a catalogue of this size."""
        COUNT.check("max_history", self.max_history)
        NOT_NEGATIVE.check("decay", self.decay)
        offsets = self.targets.offsets
        if len(offsets) != num_items + 1:
            raise ValueError(f"the counts are for {len(offsets) - 1} items, but the catalogue has {num_items}")
        is_divided = (
            offsets[0] == 0 and offsets[-1] == len(self.targets.values) and bool((np.diff(offsets) >= 0).all())
        )
        if not is_divided or len(self.shares) != len(self.targets.values):
            raise ValueError("the counts do not have one row per item")
        if not bool(((self.targets.values >= 0) & (self.targets.values < num_items)).all()):
            raise ValueError(f"the counts contain an item that is not from 0 to {num_items - 1}")
        if not bool((np.isfinite(self.shares) & (self.shares >= 0) & (self.shares <= 1)).all()):
            raise ValueError("the counts contain a share that is not from 0 to 1")

    def followers(self, histories: Ragged) -> tuple[Ragged, np.ndarray]:
        """Returns the followers of the last `max_history` items of each history, and their partial scores.

        A follower occurs once for each of these history items that it followed. The sum of its partial scores is its
        score. The partial scores have the shape `(len(followers.values),)`.
        """
        recent = histories.tail(self.max_history)
        age = np.repeat(recent.lengths, recent.lengths) - 1 - within(recent.lengths)  # 0 for the newest item
        followers = self.targets.take(recent.values)
        shares = Ragged(self.shares, self.targets.offsets).take(recent.values).values
        ages = (1 + age) ** self.decay
        return Ragged(followers.values, followers.offsets[recent.offsets]), shares / ages[followers.row_ids]

    def num_followers(self, histories: Ragged) -> np.ndarray:
        """Returns how many values [`followers`] returns for each history, `(len(histories),)`."""
        recent = histories.tail(self.max_history)
        num_targets = np.bincount(recent.row_ids, self.targets.lengths[recent.values], len(recent))
        return num_targets.astype(np.int64)


def sum_by_key(keys: np.ndarray, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns the distinct keys in ascending order, and the sum of the values per key. Keys are at least 0."""
    if not len(keys):
        return keys, values

    # If the keys are dense, a table with one entry per possible key is faster than sorting the keys.
    num_keys = int(keys.max()) + 1
    if num_keys <= 2 * len(keys):
        occurs = np.zeros(num_keys, bool)
        occurs[keys] = True
        found = np.flatnonzero(occurs)
        return found, np.bincount(keys, values, num_keys)[found]

    # After sorting, equal keys are next to each other. The sort is stable, so that the values of a key are always
    # added in the same order.
    order = np.argsort(keys, kind="stable")
    keys = keys[order]
    starts = np.flatnonzero(np.concatenate([[True], keys[1:] != keys[:-1]]))
    return keys[starts], np.add.reduceat(values[order], starts)
