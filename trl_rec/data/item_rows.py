"""Converts rows of item indices to `Ragged`, and checks that each index is a whole number in the catalogue's range."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TypeAlias

import numpy as np
import pyarrow as pa

from trl_rec.ragged import Ragged


Rows: TypeAlias = Ragged | pa.Array | pa.ChunkedArray | Iterable[Sequence[int]]


def item_rows(rows: Rows, name: str, num_items: int | None = None) -> Ragged:
    """Converts rows of item indices to an int64 `Ragged`. Raises `ValueError` if a value is not a valid index.

    Args:
        rows (`Ragged`, Arrow list column or iterable of lists): Rows of item indices. Rows may be empty.
        name (`str`): Name of the rows in the error message.
        num_items (`int`, *optional*): Size of the catalogue. If it is not given, indices have no upper bound.
    """
    if isinstance(rows, pa.Array | pa.ChunkedArray):
        rows = Ragged.from_arrow(rows)
    elif not isinstance(rows, Ragged):
        rows = Ragged.from_lists(rows, np.float64)  # float64, so that NaN and fractions reach the check below

    values = rows.values
    upper = np.inf if num_items is None else num_items
    invalid = ~((values >= 0) & (values == np.trunc(values)) & (values < upper))  # also true for NaN
    if invalid.any():
        first = int(np.flatnonzero(invalid)[0])
        row = rows.row_ids[first]
        bound = "" if num_items is None else f" to {num_items - 1}"
        raise ValueError(
            f"{name}, row {row}: {values[first]:.15g} is not an item index; give whole numbers from 0{bound}"
        )
    return Ragged(values.astype(np.int64), rows.offsets)
