"""Computes how much more often pairs of items occur near each other in a sequence than expected by chance.

Only pairs that occur are stored, so memory grows with the number of interactions, not with the square of the number of
items.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from datasets import Dataset
from torch import Tensor

from trl_rec.data.dataset import check_is_train, split_rows, split_users
from trl_rec.ragged import Ragged, join, within


@dataclass(frozen=True, eq=False)
class SparseRows:
    """A square sparse matrix in CSR format.

    The entries of row `i` are in the columns `columns[offsets[i] : offsets[i + 1]]`, in ascending order.

    Args:
        offsets (`torch.Tensor` of shape `(size + 1,)`): Start of each row; the last element is the number of entries.
        columns (`torch.Tensor` of shape `(entries,)`): The column of each entry.
        values (`torch.Tensor` of shape `(entries,)`, float32): The entries.
    """

    offsets: Tensor
    columns: Tensor
    values: Tensor

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def times(self, dense: Tensor) -> Tensor:
        """Returns the product with a dense matrix `(size, width)`."""
        # embedding_bag is faster than torch.sparse on a CPU.
        return torch.nn.functional.embedding_bag(
            self.columns, dense, self.offsets, mode="sum", per_sample_weights=self.values, include_last_offset=True
        )


def associations(train: Dataset, num_items: int, *, window: int = 5) -> SparseRows:
    """Computes the positive pointwise mutual information of all pairs of items, a symmetric matrix.

    Two items at distance d <= `window` in a training sequence add 1/d to the count of their pair. Pairs of an item
    with itself are ignored. The total of an item is the sum of the counts of its pairs. The entry of a pair is
    log(count of the pair * sum of all totals / (total of the first item * total of the second item)) if this logarithm
    is positive. The transition baseline (`TransitionCounts`) also weights pairs by 1/d, but distinguishes which of the
    two items comes first.

    Args:
        train (`Dataset`): The training split. Any other split raises a ValueError. The rows of a user must be in
            chronological order. Interactions that are repeated in overlapping rows count once.
        num_items (`int`): Number of items in the catalogue.
        window (`int`, *optional*, defaults to `5`): Maximum distance at which a pair counts.

    Returns:
        [`SparseRows`]: The positive entries of the matrix `(num_items, num_items)`.
    """
    check_is_train(train, "semantic IDs")
    low, high, counts = _pair_counts(train, num_items, window)
    totals = np.bincount(low, counts, num_items) + np.bincount(high, counts, num_items)
    information = np.log(counts) + np.log(totals.sum()) - np.log(totals[low]) - np.log(totals[high])
    positive = information > 0
    return _symmetric(low[positive], high[positive], information[positive].astype(np.float32), num_items)


def popularity(train: Dataset, num_items: int) -> np.ndarray:
    """Returns the number of interactions with each item in the training split, `(num_items,)`."""
    check_is_train(train, "semantic IDs")
    sequences, is_new = training_sequences(train)
    return np.bincount(sequences.values[is_new], minlength=num_items)


def training_sequences(train: Dataset) -> tuple[Ragged, np.ndarray]:
    """Concatenates the history and the targets of each row.

    Returns:
        The sequences, and a mask `(number of values,)` that is True for interactions that no earlier row of the same
        user contains.
    """
    history = split_rows(train, "history")
    sequences = join(history, split_rows(train, "targets"))

    # The history of a row repeats interactions of the user's earlier rows, so only the history of the user's first row
    # is new.
    is_first_row = np.zeros(len(sequences), bool)
    is_first_row[np.unique(split_users(train), return_index=True)[1]] = True
    is_target = within(sequences.lengths) >= history.lengths[sequences.row_ids]
    return sequences, is_target | is_first_row[sequences.row_ids]


def _pair_counts(train: Dataset, num_items: int, window: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Counts pairs of items. Returns the lower index, the higher index and the count of each pair that occurs."""
    sequences, is_new = training_sequences(train)
    items = sequences.values.astype(np.int64)
    rows = sequences.row_ids

    # Process one distance at a time, because sorting the pairs of all distances would need several times the memory.
    keys = np.empty(0, np.int64)
    counts = np.empty(0)
    longest = int(sequences.lengths.max(initial=0))
    for distance in range(1, min(window, longest - 1) + 1):
        # A pair counts if its later item is new and both items are in the same row.
        end = np.flatnonzero(is_new[distance:] & (rows[distance:] == rows[:-distance])) + distance
        first = items[end - distance]
        second = items[end]
        pairs = (np.minimum(first, second) * num_items + np.maximum(first, second))[first != second]
        distinct, times = np.unique(pairs, return_counts=True)
        keys, counts = _add_counts(keys, counts, distinct, times / distance)

    if not len(keys):
        raise ValueError(
            "no user of the training split has two different items near each other, so semantic IDs cannot be made "
            "from co-occurrence; use a log with longer histories"
        )
    low, high = np.divmod(keys, num_items)
    return low, high, counts


def _add_counts(
    keys: np.ndarray, counts: np.ndarray, more_keys: np.ndarray, more_counts: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Adds two tables of counts. The keys are ascending in both tables and in the result."""
    keys = np.concatenate([keys, more_keys])
    counts = np.concatenate([counts, more_counts])
    order = np.argsort(keys, kind="stable")
    keys = keys[order]
    counts = counts[order]
    starts = np.flatnonzero(np.diff(keys, prepend=-1))
    return keys[starts], np.add.reduceat(counts, starts) if len(starts) else counts


def _symmetric(low: np.ndarray, high: np.ndarray, values: np.ndarray, size: int) -> SparseRows:
    """Builds the symmetric matrix with the given values at `(low, high)` and at `(high, low)`.

    The pairs must be sorted by `low`, then by `high`.
    """
    # The entries below the diagonal come first. A stable sort by row then leaves the columns of each row ascending.
    rows = np.concatenate([high, low])
    columns = np.concatenate([low, high])
    order = np.argsort(rows, kind="stable")
    offsets = np.concatenate([[0], np.cumsum(np.bincount(rows, minlength=size))])
    return SparseRows(
        offsets=torch.from_numpy(offsets),
        columns=torch.from_numpy(columns[order]),
        values=torch.from_numpy(np.tile(values, 2)[order]),
    )
