"""Collects the interactions of a training split. Each counts once, even if several rows of a user repeat it.

Rows may overlap. In windowed data a user has many rows, and the history of each row repeats targets of earlier rows.
So the new interactions of a row are its targets, plus its history if it is the user's first row.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from datasets import Dataset

from trl_rec.data.dataset import check_is_train, split_rows
from trl_rec.evaluation.rows import item_rows
from trl_rec.ragged import Ragged, join, within


@dataclass(frozen=True, eq=False)
class TrainInteractions:
    """What a baseline learns from.

    Args:
        sequences (`Ragged`): For each row of the split, its history followed by its targets.
        is_new (`np.ndarray` of shape `(len(sequences.values),)`): True where an interaction occurs for the first time.
        num_items (`int`): Size of the catalogue.
    """

    sequences: Ragged
    is_new: np.ndarray
    num_items: int

    @classmethod
    def from_split(cls, train: Dataset, num_items: int | None = None) -> TrainInteractions:
        """The interactions of a training split; raises for a validation or test split.

        Args:
            train (`Dataset`): The training split; the rows of each user are in time order.
            num_items (`int`, *optional*, defaults to the largest index in `train` plus 1): Size of the catalogue.
        """
        check_is_train(train, "a baseline")
        history = split_rows(train, "history")
        targets = split_rows(train, "targets")
        sequences = item_rows(join(history, targets), "train", num_items)

        # The first row of each user, whose history no earlier row has shown.
        users = train.select_columns(["user"]).with_format("numpy")[:]["user"]
        is_first_row = np.zeros(len(sequences), bool)
        is_first_row[np.unique(users, return_index=True)[1]] = True

        is_target = within(sequences.lengths) >= history.lengths[sequences.row_ids]
        if num_items is None:
            num_items = 1 + int(sequences.values.max(initial=-1))
        return cls(sequences, is_target | is_first_row[sequences.row_ids], num_items)

    @property
    def popularity(self) -> np.ndarray:
        """How often each item was chosen, `(num_items,)`."""
        return np.bincount(self.sequences.values[self.is_new], minlength=self.num_items)

    @property
    def by_popularity(self) -> np.ndarray:
        """The items from most to least chosen, `(num_items,)`; ties go to the lower index."""
        return np.argsort(-self.popularity, kind="stable")

    def pairs(self, window: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """All pairs of an item and a new item at most `window` positions later in the same row.

        Returns:
            The first items, the second items and their distances, three arrays of one length.
        """
        values = self.sequences.values
        rows = self.sequences.row_ids

        # For each distance, the positions in `values` where a pair ends.
        ends = [np.flatnonzero(self.is_new[d:] & (rows[d:] == rows[:-d])) + d for d in range(1, window + 1)]
        distance = np.repeat(np.arange(1, window + 1), [len(end) for end in ends])
        end = np.concatenate(ends)
        return values[end - distance], values[end], distance
