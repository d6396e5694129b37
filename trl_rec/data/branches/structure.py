"""Describes rows in which every item of a history is a target, although targets and histories are written differently.

Such a row begins with a trunk: the head of the prompt and the pieces of the history. Behind the trunk follows one
branch per target: the tail of the prompt and the target's path. A branch continues a prefix of the trunk, namely the
items before its target. So the row contains the same texts as one row per target, but their common beginning only
once. A row without branches is an ordinary row, which consists of its trunk alone.

As in ordinary rows, column `c` predicts the label of column `c + 1`. Therefore the last target token of a branch is
no column of the branch. It is the label of the column after the branch, whichever token that column contains. Only the
last branch of a row contains its last target token, so that there is such a column. If the tail is empty, the first
token of a path is predicted by the last column of the prefix, and is the label of the column after that.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from trl_rec.ragged import Ragged, within


IGNORED = -100  # label of a token that is excluded from the loss
COLUMNS = ("branch_prefixes", "branch_lengths")  # columns of a dataset that contain the branches of its rows


@dataclass(frozen=True, eq=False)
class Branches:
    """The branches of some rows.

    Args:
        row_lengths (`np.ndarray` of shape `(num_rows,)`): Number of columns of each row, including its branches.
        prefixes (`Ragged`): For each branch of each row, the number of trunk columns that it continues.
        lengths (`Ragged`): For each branch of each row, its number of columns. May be 0 if the tail is empty.
    """

    row_lengths: np.ndarray
    prefixes: Ragged
    lengths: Ragged

    def columns(self) -> tuple[np.ndarray, np.ndarray]:
        """Returns what each column of each row attends to, as two arrays `(total,)` of column numbers in the row.

        - `seen`: The column attends to the first `seen` columns of its row.
        - `starts`: The column also attends to the columns from `starts` to itself. In the trunk, there are none.

        The position of column `c` is `seen + c - starts`.
        """
        seen = within(self.row_lengths) + 1
        starts = seen.copy()
        places = self._places()
        lengths = self.lengths.values
        seen[places] = np.repeat(self.prefixes.values, lengths)
        starts[places] = np.repeat(self.firsts(), lengths)
        return seen, starts

    def of_labels(self) -> np.ndarray:
        """Returns the branch that the label of each column belongs to, `(total,)`.

        Branches are numbered from 0 over all rows. The number is -1 in rows without branches, and arbitrary for
        columns without a label.
        """
        numbers = np.arange(len(self.lengths.values))
        # Columns after the end of a row belong to the next row. The surplus entry takes those of the last row.
        owners = np.full(int(self.row_lengths.sum()) + 1, -1)
        predicted = self._places() + 1
        owners[predicted] = np.repeat(numbers, self.lengths.values)
        owners[self.row_starts()[self.prefixes.row_ids] + self.prefixes.values] = numbers
        owners = owners[:-1]
        owners[within(self.row_lengths) == 0] = -1
        return owners

    def row_starts(self) -> np.ndarray:
        """Returns the index of the first column of each row among the columns of all rows."""
        starts: np.ndarray = np.cumsum(self.row_lengths) - self.row_lengths
        return starts

    def firsts(self) -> np.ndarray:
        """Returns the first column of each branch in its row."""
        ends = np.concatenate([[0], np.cumsum(self.lengths.values)])
        totals = np.diff(ends[self.lengths.offsets])  # columns of all branches of a row
        trunks = self.row_lengths - totals
        firsts: np.ndarray = (trunks - ends[self.lengths.offsets[:-1]])[self.lengths.row_ids] + ends[:-1]
        return firsts

    def _places(self) -> np.ndarray:
        """Returns the index of each column of each branch among the columns of all rows."""
        firsts = self.row_starts()[self.lengths.row_ids] + self.firsts()
        places: np.ndarray = np.repeat(firsts, self.lengths.values) + within(self.lengths.values)
        return places
