"""Collects the interactions of a training split. Each interaction is counted once, even if several rows contain it.

In windowed data a user has many overlapping rows, because the history of a row contains the targets of the user's
earlier rows. In the first row of each user, both the history and the targets are new interactions. In later rows, only
the targets are.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from datasets import Dataset

from trl_rec.data.dataset import check_is_train, split_rows
from trl_rec.data.item_rows import item_rows
from trl_rec.ragged import Ragged, join, within


@dataclass(frozen=True, eq=False)
class TrainInteractions:
    """The interactions of a training split, from which baselines are fitted.

    Args:
        sequences (`Ragged`): The history followed by the targets, for each row of the split.
        is_new (`np.ndarray` of shape `(len(sequences.values),)`): True where an interaction occurs for the first time.
        num_items (`int`): Size of the catalogue.
    """

    sequences: Ragged
    is_new: np.ndarray
    num_items: int

    @classmethod
    def from_split(cls, train: Dataset, num_items: int | None = None) -> TrainInteractions:
        """Returns the interactions of a training split. Raises `ValueError` for a validation or test split.

        Args:
            train (`Dataset`): The training split. The rows of each user must be in chronological order.
            num_items (`int`, *optional*, defaults to the largest index in `train` plus 1): Size of the catalogue.
        """
        check_is_train(train, "baselines")
        history = split_rows(train, "history")
        targets = split_rows(train, "targets")
        sequences = item_rows(join(history, targets), "train", num_items)

        # Find the first row of each user. In these rows, the history is new as well.
        users = train.select_columns(["user"]).with_format("numpy")[:]["user"]
        is_first_row = np.zeros(len(sequences), bool)
        is_first_row[np.unique(users, return_index=True)[1]] = True

        is_target = within(sequences.lengths) >= history.lengths[sequences.row_ids]
        if num_items is None:
            num_items = 1 + int(sequences.values.max(initial=-1))
        return cls(sequences, is_target | is_first_row[sequences.row_ids], num_items)

    @property
    def popularity(self) -> np.ndarray:
        """The number of interactions with each item in the training split, `(num_items,)`."""
        return np.bincount(self.sequences.values[self.is_new], minlength=self.num_items)

    @property
    def by_popularity(self) -> np.ndarray:
        """The items by descending [`popularity`], `(num_items,)`. Equally popular items are in ascending order."""
        return np.argsort(-self.popularity, kind="stable")

    def pairs(self, window: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Returns the pairs of items of the same row in which the second item is new (see `is_new`) and follows the
        first at a distance of at most `window` positions.

        Returns:
            The first items, the second items and their distances: three arrays of the same length.
        """
        values = self.sequences.values
        rows = self.sequences.row_ids

        # For each distance d, find the indices into `values` of all items that are the second item of a pair.
        ends = [np.flatnonzero(self.is_new[d:] & (rows[d:] == rows[:-d])) + d for d in range(1, window + 1)]
        distance = np.repeat(np.arange(1, window + 1), [len(end) for end in ends])
        end = np.concatenate(ends)
        return values[end - distance], values[end], distance
