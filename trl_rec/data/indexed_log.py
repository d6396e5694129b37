"""A log with indices for ids, sorted by user and time."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from trl_rec.data.columns import encode
from trl_rec.data.log import Log


@dataclass(frozen=True, eq=False)
class CodedLog:
    """Interactions in arrays of one length, ordered by user, then by time, equal times in the source's order.

    Args:
        users (`pa.Table`): One row a user, `user_id` first; `user` holds its row numbers.
        items (`pa.Table`): One row an item with `item_id` and `title`; `item` holds its row numbers.
        user (`np.ndarray`): int32.
        item (`np.ndarray`): int32.
        timestamp (`np.ndarray`): float64.
        rating (`np.ndarray`, *optional*): float32.
    """

    users: pa.Table
    items: pa.Table
    user: np.ndarray
    item: np.ndarray
    timestamp: np.ndarray
    rating: np.ndarray | None

    def take(self, rows: np.ndarray) -> CodedLog:
        """The chosen interactions, in the order given."""
        rating = None if self.rating is None else self.rating[rows]
        return replace(self, user=self.user[rows], item=self.item[rows], timestamp=self.timestamp[rows], rating=rating)

    def to_table(self) -> pa.Table:
        """The interactions as an Arrow table."""
        columns = {"user": self.user, "item": self.item, "timestamp": self.timestamp}
        return pa.table(columns if self.rating is None else columns | {"rating": self.rating})


def code(log: Log) -> CodedLog:
    """The log's interactions with indices into its users and items; ids without a table are numbered by first
    appearance."""
    assert log.interactions is not None
    table, where = log.interactions, log.names["interactions"]
    user, users = _indices(table["user_id"], log.users, "user_id", where, log.names.get("users"))
    item, items = _indices(table["item_id"], log.items, "item_id", where, log.names.get("items"))
    timestamp = table["timestamp"].to_numpy()
    rating = table["rating"].to_numpy() if "rating" in table.column_names else None
    coded = CodedLog(users, items, user, item, timestamp, rating)
    return coded.take(np.lexsort((timestamp, user)))  # lexsort is stable


def rows_of_ids(ids: pa.ChunkedArray, among: pa.ChunkedArray) -> np.ndarray:
    """The row of each id, -1 where there is none."""
    return pc.fill_null(pc.index_in(ids, pa.concat_arrays(among.chunks)), -1).to_numpy().astype(np.int32)


def check_missing(
    found: np.ndarray, ids: pa.ChunkedArray, what: str, where: str, other: str, rows: np.ndarray
) -> None:
    """Raises where an id was not found; `rows` are the numbers to name the ids' rows by."""
    missing = np.flatnonzero(found < 0)
    if len(missing):
        first = int(missing[0])
        raise ValueError(
            f"{where}, row {rows[first]}: {what} {ids[first].as_py()!r} is not in {other}; add it there, or leave the row out"
        )


def _indices(
    ids: pa.ChunkedArray, table: pa.Table | None, name: str, where: str, other: str | None
) -> tuple[np.ndarray, pa.Table]:
    codes, values = encode(ids)
    if table is None:
        columns = {name: values}
        return codes, pa.table(columns if name == "user_id" else columns | {"title": values})
    rows = rows_of_ids(pa.chunked_array([values]), table[name])[codes]
    check_missing(rows, ids, name.removesuffix("_id"), where, other or "", np.arange(1, len(rows) + 1))
    return rows, table
