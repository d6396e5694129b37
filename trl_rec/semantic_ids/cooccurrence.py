"""Which items occur near each other in the training sequences, and how much more often than by chance.

Only pairs that occur are stored, so memory grows with the log and not with the square of the catalogue.
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
    """A square sparse matrix by rows: `columns[offsets[i] : offsets[i + 1]]` are the columns of row `i`, ascending.

    Args:
        offsets (`torch.Tensor` of shape `(size + 1,)`): Where each row starts; the number of entries at the end.
        columns (`torch.Tensor` of shape `(entries,)`): The column of each entry.
        values (`torch.Tensor` of shape `(entries,)`, float32): The entries.
    """

    offsets: Tensor
    columns: Tensor
    values: Tensor

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def times(self, dense: Tensor) -> Tensor:
        """The product with a dense matrix `(size, width)`."""
        # A weighted sum of embeddings per row is faster than torch.sparse on a CPU.
        return torch.nn.functional.embedding_bag(
            self.columns, dense, self.offsets, mode="sum", per_sample_weights=self.values, include_last_offset=True
        )


def associations(train: Dataset, num_items: int, *, window: int = 5) -> SparseRows:
    """Positive pointwise mutual information of all pairs of items, symmetric, `(num_items, num_items)`.

    Two items at distance d <= `window` in a training sequence count 1/d, as in the transition baseline but in either
    order. An item next to itself does not count. The entry of a pair is log(count of the pair * sum of all counts /
    (total of one item * total of the other)) if that is positive.

    Args:
        train (`Dataset`): The training split; any other raises. The rows of a user have to be in time order;
            interactions that are repeated in overlapping rows count once.
        num_items (`int`): Size of the catalogue.
        window (`int`, *optional*, defaults to `5`): Largest distance at which a pair counts.

    Returns:
        [`SparseRows`]: The positive entries.
    """
    check_is_train(train, "a semantic ID")
    low, high, counts = _pair_counts(train, num_items, window)
    totals = np.bincount(low, counts, num_items) + np.bincount(high, counts, num_items)
    information = np.log(counts) + np.log(totals.sum()) - np.log(totals[low]) - np.log(totals[high])
    positive = information > 0
    return _symmetric(low[positive], high[positive], information[positive].astype(np.float32), num_items)


def popularity(train: Dataset, num_items: int) -> np.ndarray:
    """How often each item was chosen in training, `(num_items,)`."""
    check_is_train(train, "a semantic ID")
    sequences, is_new = training_sequences(train)
    return np.bincount(sequences.values[is_new], minlength=num_items)


def training_sequences(train: Dataset) -> tuple[Ragged, np.ndarray]:
    """Joins the history of each row and its targets.

    Returns:
        The sequences, and a mask `(number of values,)` of the interactions that no earlier row of the same user
        contains.
    """
    history = split_rows(train, "history")
    sequences = join(history, split_rows(train, "targets"))

    # Later rows of a user repeat earlier interactions as their history, so only a user's first history is new.
    is_first_row = np.zeros(len(sequences), bool)
    is_first_row[np.unique(split_users(train), return_index=True)[1]] = True
    is_target = within(sequences.lengths) >= history.lengths[sequences.row_ids]
    return sequences, is_target | is_first_row[sequences.row_ids]


def _pair_counts(train: Dataset, num_items: int, window: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Counts the pairs of items. Returns the lower item, the higher item and the count of each pair that occurs."""
    sequences, is_new = training_sequences(train)
    items = sequences.values.astype(np.int64)
    rows = sequences.row_ids

    # One distance at a time: sorting the pairs of all distances at once would take several times the memory.
    keys = np.empty(0, np.int64)
    counts = np.empty(0)
    for distance in range(1, window + 1):
        # A pair counts where its later item is new and both are in one row.
        end = np.flatnonzero(is_new[distance:] & (rows[distance:] == rows[:-distance])) + distance
        first = items[end - distance]
        second = items[end]
        pairs = (np.minimum(first, second) * num_items + np.maximum(first, second))[first != second]
        distinct, times = np.unique(pairs, return_counts=True)
        keys, counts = _add_counts(keys, counts, distinct, times / distance)

    if not len(keys):
        raise ValueError(
            "no user of the training split has two different items near each other, so there is nothing to make "
            "semantic IDs from; use a log with longer histories"
        )
    low, high = np.divmod(keys, num_items)
    return low, high, counts


def _add_counts(
    keys: np.ndarray, counts: np.ndarray, more_keys: np.ndarray, more_counts: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Adds two tables of counts. Keys are ascending in both tables and in the result."""
    keys = np.concatenate([keys, more_keys])
    counts = np.concatenate([counts, more_counts])
    order = np.argsort(keys, kind="stable")
    keys = keys[order]
    counts = counts[order]
    starts = np.flatnonzero(np.diff(keys, prepend=-1))
    return keys[starts], np.add.reduceat(counts, starts) if len(starts) else counts


def _symmetric(low: np.ndarray, high: np.ndarray, values: np.ndarray, size: int) -> SparseRows:
    """Makes the symmetric matrix with these values at `(low, high)` and `(high, low)`. Pairs are sorted by `low`."""
    # With `high` first, the stable sort by row leaves the columns of every row in ascending order.
    rows = np.concatenate([high, low])
    columns = np.concatenate([low, high])
    order = np.argsort(rows, kind="stable")
    offsets = np.concatenate([[0], np.cumsum(np.bincount(rows, minlength=size))])
    return SparseRows(
        offsets=torch.from_numpy(offsets),
        columns=torch.from_numpy(columns[order]),
        values=torch.from_numpy(np.tile(values, 2)[order]),
    )
