"""The interactions of a training split, each counted once, however many rows of a user repeat it.

Rows may overlap: in windowed data a user has many, and each row's history holds what the rows before it taught. A
row's targets are new, and so is the history of a user's first row; everything else has been seen.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from datasets import Dataset

from trl_rec.data.dataset import check_is_train, split_rows
from trl_rec.evaluation.inputs import item_rows
from trl_rec.ragged import Ragged, join, within


@dataclass(frozen=True, eq=False)
class TrainingLog:
    """What a baseline learns from.

    Args:
        sequences (`Ragged`): Row `i`: history and targets of row `i` of the split, joined.
        new (`np.ndarray` of shape `(len(sequences.values),)`): True where an interaction occurs for the first time.
        num_items (`int`): Size of the catalogue.
    """

    sequences: Ragged
    new: np.ndarray
    num_items: int

    @classmethod
    def read(cls, train: Dataset, num_items: int | None = None) -> TrainingLog:
        """The log of a training split, rows of one user in time order; validation and test splits are refused.

        `num_items` is 1 + the largest index seen unless given.
        """
        check_is_train(train, "a baseline")
        history, targets = split_rows(train, "history"), split_rows(train, "targets")
        sequences = item_rows(join(history, targets), "train", num_items)
        users = train.select_columns(["user"]).with_format("numpy")[:]["user"]
        first_row = np.zeros(len(sequences), bool)
        first_row[np.unique(users, return_index=True)[1]] = True
        is_target = within(sequences.lengths) >= history.lengths[sequences.row_ids]
        seen = 1 + int(sequences.values.max(initial=-1))
        return cls(sequences, is_target | first_row[sequences.row_ids], seen if num_items is None else num_items)

    @property
    def popularity(self) -> np.ndarray:
        """How often each item was chosen, `(num_items,)`."""
        return np.bincount(self.sequences.values[self.new], minlength=self.num_items)

    @property
    def by_popularity(self) -> np.ndarray:
        """The items, most chosen first, ties by index, `(num_items,)`."""
        return np.argsort(-self.popularity, kind="stable")

    def pairs(self, window: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """All pairs of an item and a new one at most `window` places later in the same row: first, second,
        distance."""
        values, rows = self.sequences.values, self.sequences.row_ids
        ends = [np.flatnonzero(self.new[d:] & (rows[d:] == rows[:-d])) + d for d in range(1, window + 1)]
        distance = np.repeat(np.arange(1, window + 1), [len(end) for end in ends])
        end = np.concatenate(ends)
        return values[end - distance], values[end], distance
