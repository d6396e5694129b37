"""Which items stand near each other in the training sequences, and how much more often than chance would have it.

Only pairs that occur are held, so that memory grows with the log and never with items x items.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from datasets import Dataset
from torch import Tensor

from trl_rec.data.dataset import check_is_train, split_rows
from trl_rec.ragged import Ragged, join, within


@dataclass(frozen=True, eq=False)
class SparseRows:
    """A square sparse matrix by rows: `columns[offsets[i] : offsets[i + 1]]` are the columns of row `i`, ascending.

    Args:
        offsets (`Tensor` of shape `(size + 1,)`): Where each row starts, and the number of entries at the end.
        columns (`Tensor` of shape `(entries,)`): The column of each entry.
        values (`Tensor` of shape `(entries,)`, float32): The entries.
    """

    offsets: Tensor
    columns: Tensor
    values: Tensor

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def times(self, dense: Tensor) -> Tensor:
        """The product with a dense `(size, width)`."""
        return torch.nn.functional.embedding_bag(
            self.columns, dense, self.offsets, mode="sum", per_sample_weights=self.values, include_last_offset=True
        )


def associations(train: Dataset, num_items: int, *, window: int = 5) -> SparseRows:
    """Positive pointwise mutual information of all pairs of items, `(num_items, num_items)` and symmetric.

    A pair at distance d <= `window` in a training sequence counts 1/d, as the transition baseline has it, in whatever
    order; an item beside itself does not count. The entry of a pair is log(its count x all counts / (the counts of
    either)), where that is positive. Rows of one user have to be in time order; overlapping ones count once.
    """
    check_is_train(train, "a semantic ID")
    low, high, counts = _pair_counts(train, num_items, window)
    totals = np.bincount(low, counts, num_items) + np.bincount(high, counts, num_items)
    strength = np.log(counts) + np.log(totals.sum()) - np.log(totals[low]) - np.log(totals[high])
    kept = strength > 0
    return _mirrored(low[kept], high[kept], strength[kept].astype(np.float32), num_items)


def popularity(train: Dataset, num_items: int) -> np.ndarray:
    """How often each item was chosen in training, `(num_items,)`."""
    check_is_train(train, "a semantic ID")
    sequences, new = training_sequences(train)
    return np.bincount(sequences.values[new], minlength=num_items)


def training_sequences(train: Dataset) -> tuple[Ragged, np.ndarray]:
    """History and targets of each row, joined, and which of the entries no earlier row of the same user has told
    of."""
    history, targets = split_rows(train, "history"), split_rows(train, "targets")
    sequences = join(history, targets)
    users = train.select_columns(["user"]).with_format("numpy")[:]["user"]
    first_row = np.zeros(len(sequences), bool)
    first_row[np.unique(users, return_index=True)[1]] = True
    is_target = within(sequences.lengths) >= history.lengths[sequences.row_ids]
    return sequences, is_target | first_row[sequences.row_ids]


def _pair_counts(train: Dataset, num_items: int, window: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The lower and the higher item of each pair that occurs, and its count."""
    sequences, new = training_sequences(train)
    items, rows = sequences.values.astype(np.int64), sequences.row_ids
    keys, counts = np.empty(0, np.int64), np.empty(0)
    for distance in range(
        1, window + 1
    ):  # one after the other, as all at once would be sorted in a multiple of the memory
        end = np.flatnonzero(new[distance:] & (rows[distance:] == rows[:-distance])) + distance
        first, second = items[end - distance], items[end]
        pairs = (np.minimum(first, second) * num_items + np.maximum(first, second))[first != second]
        found, times = np.unique(pairs, return_counts=True)
        keys, counts = _merged(keys, counts, found, times / distance)
    if not len(keys):
        raise ValueError(
            "the training split holds no two items of one user near each other; there is nothing to make IDs from"
        )
    low, high = np.divmod(keys, num_items)
    return low, high, counts


def _merged(
    keys: np.ndarray, counts: np.ndarray, more_keys: np.ndarray, more_counts: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Two sums by ascending key as one."""
    keys, counts = np.concatenate([keys, more_keys]), np.concatenate([counts, more_counts])
    order = np.argsort(keys, kind="stable")
    keys, counts = keys[order], counts[order]
    starts = np.flatnonzero(np.diff(keys, prepend=-1))
    return keys[starts], np.add.reduceat(counts, starts) if len(starts) else counts


def _mirrored(low: np.ndarray, high: np.ndarray, values: np.ndarray, size: int) -> SparseRows:
    rows, columns = (
        np.concatenate([high, low]),
        np.concatenate([low, high]),
    )  # this way round a stable sort keeps both ascending
    order = np.argsort(rows, kind="stable")
    offsets = np.concatenate([[0], np.cumsum(np.bincount(rows, minlength=size))])
    return SparseRows(*(torch.from_numpy(part) for part in (offsets, columns[order], np.tile(values, 2)[order])))
