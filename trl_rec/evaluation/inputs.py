"""Rows of item indices in whatever form they come: `Ragged`, an Arrow list column, a split's column, lists of
lists."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TypeAlias

import numpy as np
import pyarrow as pa

from trl_rec.ragged import Ragged


Rows: TypeAlias = Ragged | pa.Array | pa.ChunkedArray | Iterable[Sequence[int]]


def item_rows(rows: Rows, name: str, num_items: int | None = None) -> Ragged:
    """`rows` as `Ragged` int64; what is not an item index from 0 below `num_items` is refused, with its row.

    Args:
        rows (`Ragged`, Arrow list column or iterable of lists): One row of item indices a user, possibly empty.
        name (`str`): What the rows are, for the error message.
        num_items (`int`, *optional*): Size of the catalogue; without it only the lower bound is checked.
    """
    if isinstance(rows, pa.Array | pa.ChunkedArray):
        rows = Ragged.from_arrow(rows)
    elif not isinstance(rows, Ragged):
        rows = Ragged.from_lists(rows, np.float64)
    values = rows.values
    bad = ~((values >= 0) & (values == np.floor(values)) & (values < (np.inf if num_items is None else num_items)))
    if bad.any():
        at = int(np.flatnonzero(bad)[0])
        bound = "" if num_items is None else f" below {num_items}"
        raise ValueError(
            f"{name}, row {rows.row_ids[at]}: {values[at]} is no item index; give whole numbers from 0{bound}"
        )
    return Ragged(values.astype(np.int64), rows.offsets)
