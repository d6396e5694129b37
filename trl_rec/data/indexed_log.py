"""A log whose users and items are row numbers instead of ids, sorted by user and time."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from trl_rec.data.columns import encode, shown
from trl_rec.data.log import Log


@dataclass(frozen=True, eq=False)
class IndexedLog:
    """Interactions as arrays of one length, sorted by user, then time; equal times keep the source's order.

    Args:
        users (`pa.Table`): One row per user, `user_id` first.
        items (`pa.Table`): One row per item, with `item_id` and `title`.
        user (`np.ndarray`): Row in `users` of each interaction, int32.
        item (`np.ndarray`): Row in `items` of each interaction, int32.
        timestamp (`np.ndarray`): float64.
        rating (`np.ndarray`, *optional*): float32.
    """

    users: pa.Table
    items: pa.Table
    user: np.ndarray
    item: np.ndarray
    timestamp: np.ndarray
    rating: np.ndarray | None

    def take(self, rows: np.ndarray) -> IndexedLog:
        """The chosen interactions, in the order given."""
        rating = None if self.rating is None else self.rating[rows]
        return replace(self, user=self.user[rows], item=self.item[rows], timestamp=self.timestamp[rows], rating=rating)

    def to_table(self) -> pa.Table:
        """The interactions as an Arrow table."""
        columns = {"user": self.user, "item": self.item, "timestamp": self.timestamp}
        return pa.table(columns if self.rating is None else columns | {"rating": self.rating})


def index_log(log: Log, *, drop_unknown_items: bool = False) -> tuple[IndexedLog, dict[str, int]]:
    """Replaces ids by row numbers, and sorts.

    Without a table of users or items, one is made from the ids, in the order in which they first occur.

    Args:
        log: The interactions, and perhaps tables of users and items.
        drop_unknown_items (*optional*, defaults to `False`): Whether interactions with an item that is not in the
            table are left out. By default such an item is an error.

    Returns:
        The log, and two counts: `unknown_items`, the interactions left out, and `merged_timestamps`, the interactions
        whose timestamp differs from the one before by less than float64 can represent.
    """
    assert log.interactions is not None
    table = log.interactions
    if drop_unknown_items and log.items is not None:
        known = rows_of_ids(table["item_id"], log.items["item_id"]) >= 0
        table = table.filter(pa.array(known))
        if not table.num_rows:
            raise ValueError(
                f"{log.names['interactions']} contains none of the items of {log.names['items']}; are these files of "
                "one data set?"
            )

    # 1. Look up the ids.
    where = log.names["interactions"]
    numbers = table["row"].to_numpy()
    user, users = _index(table["user_id"], log.users, numbers, "user_id", where, log.names.get("users"))
    item, items = _index(table["item_id"], log.items, numbers, "item_id", where, log.names.get("items"))

    # 2. Sort. lexsort is stable: equal times keep their order.
    timestamp = table["timestamp"].to_numpy()
    exact = table["exact_time"].to_numpy() if "exact_time" in table.column_names else timestamp
    order = np.lexsort((exact, user))
    merged = (np.diff(user[order]) == 0) & (np.diff(timestamp[order]) == 0) & (np.diff(exact[order]) != 0)
    counts = {"unknown_items": log.interactions.num_rows - table.num_rows, "merged_timestamps": int(merged.sum())}

    rating = table["rating"].to_numpy() if "rating" in table.column_names else None
    return IndexedLog(users, items, user, item, timestamp, rating).take(order), counts


def rows_of_ids(ids: pa.ChunkedArray, table_ids: pa.ChunkedArray) -> np.ndarray:
    """Each id's row among `table_ids`, int32; -1 if it is not there."""
    rows: np.ndarray = (
        pc.fill_null(pc.index_in(ids, pa.concat_arrays(table_ids.chunks)), -1).to_numpy().astype(np.int32)
    )
    return rows


def check_known(
    rows: np.ndarray,
    ids: pa.ChunkedArray,
    kind: str,
    where: str,
    table_name: str,
    numbers: np.ndarray,
    remedy: str = "add it there, or leave the row out",
) -> None:
    """Raises if an id has no row in its table.

    Args:
        rows: What [`rows_of_ids`] returned for the ids.
        ids: The ids.
        kind: `"user"` or `"item"`, for the message.
        where: Name of the file that contains the ids.
        table_name: Name of the file in which every id must have a row.
        numbers: Each id's row number in its own file, from 1.
        remedy (*optional*): What to do about it, for the message.
    """
    missing = np.flatnonzero(rows < 0)
    if len(missing):
        first = int(missing[0])
        raise ValueError(
            f"{where}, row {numbers[first]}: {kind} {shown(ids[first].as_py())} is not in {table_name}; {remedy}"
        )


def _index(
    ids: pa.ChunkedArray, table: pa.Table | None, numbers: np.ndarray, name: str, where: str, table_name: str | None
) -> tuple[np.ndarray, pa.Table]:
    """Each id's row in the table, and the table, which is made from the ids if there is none."""
    codes, values = encode(ids)  # (num_interactions,), and the distinct ids in order of appearance
    if table is None:
        columns = {"user_id": values} if name == "user_id" else {"item_id": values, "title": values}
        return codes, pa.table(columns)

    # Each distinct id is looked up once; the codes then spread the rows over all interactions.
    rows = rows_of_ids(pa.chunked_array([values]), table[name])[codes]
    remedy = "add it there, or leave the row out"
    if name == "item_id":
        remedy = "add it there, leave the row out, or set unknown_items: drop"
    check_known(rows, ids, name.removesuffix("_id"), where, table_name or "", numbers, remedy)
    return rows, table
