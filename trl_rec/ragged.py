"""Stores rows of unequal length as a flat array of values and an array of the offsets at which the rows start.

Histories, targets and token paths are stored in this way. Every operation except `from_lists` is vectorised, so that
ten million interactions are processed without a Python loop over rows. numpy and pyarrow are the only dependencies.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa


BLOCK = 4_000_000  # number of values processed at a time, where processing all at once would take too much memory
LIST_ARRAY_LIMIT = 2**31 - 1  # number of values that the 32-bit offsets of an Arrow list array can address


def within(lengths: np.ndarray) -> np.ndarray:
    """Returns the position of each value in its row. For example, lengths `[2, 3]` give `[0, 1, 0, 1, 2]`."""
    ends = np.cumsum(lengths)
    positions: np.ndarray = np.arange(ends[-1] if len(ends) else 0) - np.repeat(ends - lengths, lengths)
    return positions


@dataclass(frozen=True, eq=False)
class Ragged:
    """Rows of unequal length. Row `i` is `values[offsets[i] : offsets[i + 1]]`.

    Args:
        values (`np.ndarray` of shape `(total,)`): The values of all rows, one row after the other.
        offsets (`np.ndarray` of shape `(num_rows + 1,)`): Index at which each row starts, followed by `total`.
    """

    values: np.ndarray
    offsets: np.ndarray

    @classmethod
    def from_lengths(cls, values: np.ndarray, lengths: np.ndarray) -> Ragged:
        """Cuts `values` into rows of the given lengths."""
        return cls(values, np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)]))

    @classmethod
    def from_lists(cls, rows: Iterable[Sequence[Any] | np.ndarray], dtype: Any = np.int64) -> Ragged:
        """Copies rows from Python sequences or arrays."""
        arrays = [np.asarray(row, dtype=dtype) for row in rows]
        values = np.concatenate(arrays) if arrays else np.empty(0, dtype=dtype)
        return cls.from_lengths(values, np.array([len(array) for array in arrays], dtype=np.int64))

    @classmethod
    def repeated(cls, row: np.ndarray, count: int) -> Ragged:
        """Repeats one row `count` times."""
        return cls.from_lengths(np.tile(row, count), np.full(count, len(row)))

    @classmethod
    def from_arrow(cls, column: pa.ChunkedArray | pa.Array) -> Ragged:
        """Reads the rows of an Arrow list column, without a Python object per row. No row may be null."""
        # 1. Join the chunks.
        if isinstance(column, pa.ChunkedArray):
            if pa.types.is_list(column.type) and column.num_chunks > 1:  # the joined offsets may exceed 32 bits
                column = column.cast(pa.large_list(column.type.value_type))
            column = column.combine_chunks()

        # 2. If the column is a slice of a longer array, its offsets count from the start of that array, so the first
        # offset may be above 0.
        offsets = column.offsets.to_numpy(zero_copy_only=False).astype(np.int64)
        return cls(column.flatten().to_numpy(zero_copy_only=False), offsets - offsets[0])

    def to_arrow(self) -> pa.ListArray | pa.LargeListArray:
        """Converts the rows to an Arrow list array, with 64-bit offsets if 32 bits cannot address all values."""
        if len(self.values) > LIST_ARRAY_LIMIT:
            return pa.LargeListArray.from_arrays(pa.array(self.offsets, pa.int64()), pa.array(self.values))
        return pa.ListArray.from_arrays(pa.array(self.offsets, pa.int32()), pa.array(self.values))

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, row: int) -> np.ndarray:
        return self.values[self.offsets[row] : self.offsets[row + 1]]

    @property
    def lengths(self) -> np.ndarray:
        """`(num_rows,)`: the length of each row."""
        return np.diff(self.offsets)

    @property
    def row_ids(self) -> np.ndarray:
        """`(total,)`: the row that each value belongs to."""
        return np.repeat(np.arange(len(self)), self.lengths)

    def take(self, rows: np.ndarray) -> Ragged:
        """Selects the given rows, in the given order; a row may occur several times."""
        lengths = self.lengths[rows]
        index = np.repeat(self.offsets[:-1][rows], lengths) + within(lengths)
        return Ragged.from_lengths(self.values[index], lengths)

    def first(self, count: int) -> Ragged:
        """Returns the first `count` rows."""
        return Ragged(self.values[: self.offsets[count]], self.offsets[: count + 1])

    def slice(self, start: np.ndarray, stop: np.ndarray) -> Ragged:
        """Cuts row `i` to its values `[start[i] : stop[i]]`, counted from the start of the row."""
        return self.pieces(np.arange(len(self)), start, stop)

    def pieces(self, rows: np.ndarray, start: np.ndarray, stop: np.ndarray) -> Ragged:
        """Returns the same as `take(rows).slice(start, stop)`, but never copies whole rows. This saves much memory if
        many short pieces are taken from a long row."""
        lengths = stop - start
        index = np.repeat(self.offsets[:-1][rows] + start, lengths) + within(lengths)
        return Ragged.from_lengths(self.values[index], lengths)

    def head(self, length: int | np.ndarray) -> Ragged:
        """Keeps the first `length` values of each row.

        `length` is one number for all rows, or an array with one number per row.
        """
        stop = np.minimum(self.lengths, length)
        return self.slice(np.zeros_like(stop), stop)

    def tail(self, length: int) -> Ragged:
        """Keeps the last `length` values of each row."""
        return self.slice(np.maximum(self.lengths - length, 0), self.lengths)

    def flatten(self, inner: Ragged) -> Ragged:
        """Replaces each value `v` by all values of the row `inner[v]`."""
        chosen = inner.take(self.values)
        return Ragged(chosen.values, chosen.offsets[self.offsets])

    def padded(self, *, fill: Any = -1, width: int | None = None, left: bool = False) -> np.ndarray:
        """Returns the rows as an array `(num_rows, width)`, padded with `fill`.

        The padding is on the right, or on the left if `left` is True. By default, `width` is the length of the longest
        row.
        """
        lengths = self.lengths
        width = int(lengths.max(initial=0)) if width is None else width
        out = np.full((len(self), width), fill, dtype=self.values.dtype)
        columns = within(lengths) + (np.repeat(width - lengths, lengths) if left else 0)
        out[self.row_ids, columns] = self.values
        return out


def is_in(values: np.ndarray, known: np.ndarray) -> np.ndarray:
    """Returns whether each value occurs in `known`. Same as `np.isin`, but several times faster for a short `known`.

    `np.isin` may sort all `values`. This function sorts only `known`, and finds each value in it by binary search.
    """
    if not len(known):
        return np.zeros(values.shape, bool)
    known = np.sort(known)
    found: np.ndarray = known[np.searchsorted(known, values).clip(max=len(known) - 1)] == values
    return found


def stable_order(numbers: np.ndarray) -> np.ndarray:
    """Returns the indices that sort `numbers`, which must be integers from 0 to 2**32 - 1. Equal numbers keep their
    order.

    The lower and then the upper 16 bits are sorted, because numpy sorts 16-bit integers with a radix sort, which is
    several times faster than its stable sort of longer integers.
    """
    order = np.argsort((numbers & 0xFFFF).astype(np.uint16), kind="stable")
    if numbers.max(initial=0) > 0xFFFF:
        high = (numbers >> 16).astype(np.uint16)
        order = order[np.argsort(high[order], kind="stable")]
    return order


def row_blocks(offsets: np.ndarray, size: int) -> Iterator[slice]:
    """Divides rows into consecutive blocks, so that a long array can be processed in bounded memory.

    A block has at most `size` values, or a single row that is longer.

    Args:
        offsets (`np.ndarray` of shape `(num_rows + 1,)`): As in [`Ragged`].
        size (`int`): Maximum number of values per block.

    Returns:
        A slice of the rows for each block.
    """
    start = 0
    while start < len(offsets) - 1:
        stop = int(np.searchsorted(offsets, offsets[start] + size, side="right")) - 1
        stop = max(stop, start + 1)
        yield slice(start, stop)
        start = stop


def join(*parts: Ragged) -> Ragged:
    """Joins the parts row by row: row `i` of the result is the concatenation of the parts' rows `i`."""
    # Find where each part of each row starts in the flat result: the start of the row plus the lengths of its earlier
    # parts.
    lengths = np.stack([part.lengths for part in parts])  # (parts, rows)
    starts = np.cumsum(lengths.sum(0)) - lengths.sum(0) + np.cumsum(lengths, 0) - lengths

    # Copy the values in blocks of rows. For all rows at once, `place` (the index of each value in the flat result)
    # would take several times the memory of the values.
    values = np.empty(int(lengths.sum()), dtype=np.result_type(*(part.values for part in parts)))
    for part, start, length in zip(parts, starts, lengths, strict=True):
        for rows in row_blocks(part.offsets, BLOCK):
            place = np.repeat(start[rows], length[rows]) + within(length[rows])
            values[place] = part.values[part.offsets[rows.start] : part.offsets[rows.stop]]
    return Ragged.from_lengths(values, lengths.sum(0))


def append(first: Ragged, second: Ragged) -> Ragged:
    """Returns the rows of `first`, followed by the rows of `second`."""
    values = np.concatenate([first.values, second.values])
    return Ragged(values, np.concatenate([first.offsets, second.offsets[1:] + first.offsets[-1]]))
