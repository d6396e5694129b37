"""Describes training rows with several targets of one sequence, each predicted from the items before it.

These rows are needed if an item is written with different tokens in a history and in a completion, or if the prompt
has a separator between the items or a tail (text after the items). Otherwise, an ordinary row, in which the items
simply follow each other, is enough.

A row with branches begins with a trunk: the head of the prompt (the text before the items) and the items before the
last target, with their separators. The other targets are among these items. One branch per target follows: the tail
of the prompt and the target's path (its tokens in a completion). A branch continues a prefix of the trunk, namely the
head and the items before its target. One row with branches replaces the separate rows of all its targets, and contains
their common beginning only once. A row without branches consists of its trunk alone.

    trunk                        branches
    head | item 1 | item 2 | ... | tail, path of target 1 | tail, path of target 2 | ...

A token of a path is *learned* if it is a label. Usually, all tokens of a path are learned. If the loss is a softmax
over the tokens that a trie allows, the tokens after the last one for which the trie allows an alternative are not
learned, and the branch leaves them out.

A column is the place of one token in its row. Column `c` predicts the label of column `c + 1`. Unlike in an ordinary
row, this label may differ from the token of column `c + 1`:

- The last learned token of a path is only a label, because nothing is predicted from it. The branch ends before this
  token. The token is the label of the column after the branch, although this column contains a token of a later
  branch. The last branch of a row is an exception: it contains its last learned token, because otherwise no column
  would follow that could have this label.
- If the tail is empty, the last column of the prefix predicts the first token of the path. So this token is the label
  of the column after the prefix: a column of the trunk or, if the prefix is the whole trunk, the first column after
  the trunk.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from trl_rec.ragged import Ragged, within


IGNORED = -100  # label of a token that is excluded from the loss
COLUMNS = ("branch_prefixes", "branch_lengths")  # names under which a `Dataset` stores the branches of its rows


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
        """Returns two arrays, which define the columns that each column of each row attends to.

        Both have the shape `(total,)`, where `total` is the number of columns of all rows together.

        - `seen`: The column attends to the first `seen` columns of its row. For a column of the trunk, these are the
          earlier columns and itself. For a column of a branch, they are the prefix that the branch continues.
        - `starts`: The column also attends to the columns from `starts` to itself: the earlier columns of its branch
          and itself. For a column of the trunk, `starts` is the next column, so this range is empty.

        The position id of column `c` is `seen + c - starts`.
        """
        seen = within(self.row_lengths) + 1
        starts = seen.copy()
        places = self._places()
        lengths = self.lengths.values
        seen[places] = np.repeat(self.prefixes.values, lengths)
        starts[places] = np.repeat(self.firsts(), lengths)
        return seen, starts

    def of_labels(self) -> np.ndarray:
        """Returns the branch that the label of each column belongs to, `(total,)`, with `total` as in [`columns`].

        Branches are numbered from 0 over all rows. The number is -1 in rows without branches, and arbitrary for
        columns without a label.
        """
        numbers = np.arange(len(self.lengths.values))
        # The column after the end of a row is the first column of the next row. The additional entry at the end of
        # `owners` is for the column after the last row.
        owners = np.full(int(self.row_lengths.sum()) + 1, -1)

        # Each column of a branch predicts the label of the next column, so the labels are one column to the right. The
        # column after the prefix has the first label if the tail is empty.
        predicted = self._places() + 1
        owners[predicted] = np.repeat(numbers, self.lengths.values)
        owners[self.row_starts()[self.prefixes.row_ids] + self.prefixes.values] = numbers

        # The first column of a row has no label.
        owners = owners[:-1]
        owners[within(self.row_lengths) == 0] = -1
        return owners

    def row_starts(self) -> np.ndarray:
        """Returns the first column of each row, as an index among the columns of all rows."""
        starts: np.ndarray = np.cumsum(self.row_lengths) - self.row_lengths
        return starts

    def firsts(self) -> np.ndarray:
        """Returns the first column of each branch, as an index in its row."""
        ends = np.concatenate([[0], np.cumsum(self.lengths.values)])
        totals = np.diff(ends[self.lengths.offsets])  # number of columns of each row's branches
        trunks = self.row_lengths - totals
        firsts: np.ndarray = (trunks - ends[self.lengths.offsets[:-1]])[self.lengths.row_ids] + ends[:-1]
        return firsts

    def _places(self) -> np.ndarray:
        """Returns the columns of all branches, as indices among the columns of all rows."""
        firsts = self.row_starts()[self.lengths.row_ids] + self.firsts()
        places: np.ndarray = np.repeat(firsts, self.lengths.values) + within(self.lengths.values)
        return places
