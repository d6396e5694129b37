"""Replaces the user and item ids of a log by row numbers, and sorts its interactions by user and time."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from trl_rec.data.columns import encode, shown
from trl_rec.data.log import Log


@dataclass(frozen=True, eq=False)
class IndexedLog:
    """Interactions as arrays of equal length, sorted by user and then by time.

    If a user's interactions have equal timestamps, they keep the order of the source. Timestamps that become equal
    only when they are rounded to float64 are sorted by their exact values.

    Args:
        users (`pa.Table`): One row per user, `user_id` first.
        items (`pa.Table`): One row per item, with `item_id` and `title`.
        user (`np.ndarray`): For each interaction, the index of its user's row in `users`, int32.
        item (`np.ndarray`): For each interaction, the index of its item's row in `items`, int32.
        timestamp (`np.ndarray`): Timestamp of each interaction, float64.
        rating (`np.ndarray`, *optional*): Rating of each interaction, float32. None if the source has no ratings.
    """

    users: pa.Table
    items: pa.Table
    user: np.ndarray
    item: np.ndarray
    timestamp: np.ndarray
    rating: np.ndarray | None

    def take(self, rows: np.ndarray) -> IndexedLog:
        """Returns the interactions with these indices, in the order of `rows`."""
        rating = None if self.rating is None else self.rating[rows]
        return replace(self, user=self.user[rows], item=self.item[rows], timestamp=self.timestamp[rows], rating=rating)

    def to_table(self) -> pa.Table:
        """Returns the interactions as an Arrow table."""
        columns = {"user": self.user, "item": self.item, "timestamp": self.timestamp}
        return pa.table(columns if self.rating is None else columns | {"rating": self.rating})


def index_log(log: Log, *, drop_unknown_items: bool = False) -> tuple[IndexedLog, dict[str, int]]:
    """Replaces ids by row numbers, and sorts the interactions by user and time.

    If the log has no table of users or items, the table is made from the ids in order of first appearance.

    Args:
        log: The interactions, optionally with tables of users and items.
        drop_unknown_items (*optional*, defaults to `False`): Whether to drop interactions with an item that is not in
            `log.items`. By default such an item raises a ValueError.

    Returns:
        The log and two counts. `unknown_items` is the number of dropped interactions. `merged_timestamps` is the
        number of interactions whose timestamp differs from that of the user's previous interaction, but equals it
        after rounding to float64.
    """
    assert log.interactions is not None
    table = log.interactions
    if drop_unknown_items and log.items is not None:
        known = rows_of_ids(table["item_id"], log.items["item_id"]) >= 0
        table = table.filter(pa.array(known))
        if not table.num_rows:
            raise ValueError(
                f"{log.names['interactions']} contains none of the items of {log.names['items']}; check that both "
                "files belong to the same data set"
            )

    # 1. Look up the ids.
    where = log.names["interactions"]
    numbers = table["row"].to_numpy()
    user, users = _index(table["user_id"], log.users, numbers, "user_id", where, log.names.get("users"))
    item, items = _index(table["item_id"], log.items, numbers, "item_id", where, log.names.get("items"))

    # 2. Sort. `lexsort` is stable, so equal timestamps keep their order.
    timestamp = table["timestamp"].to_numpy()
    exact = table["exact_time"].to_numpy() if "exact_time" in table.column_names else timestamp
    order = np.lexsort((exact, user))
    merged = (np.diff(user[order]) == 0) & (np.diff(timestamp[order]) == 0) & (np.diff(exact[order]) != 0)
    counts = {"unknown_items": log.interactions.num_rows - table.num_rows, "merged_timestamps": int(merged.sum())}

    rating = table["rating"].to_numpy() if "rating" in table.column_names else None
    return IndexedLog(users, items, user, item, timestamp, rating).take(order), counts


def rows_of_ids(ids: pa.ChunkedArray, table_ids: pa.ChunkedArray) -> np.ndarray:
    """Returns the position of each id in `table_ids`, int32, or -1 if `table_ids` does not contain it."""
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
    """Raises ValueError if an id has no row in its table.

    Args:
        rows: Row of each id, as returned by [`rows_of_ids`].
        ids: The ids.
        kind: `"user"` or `"item"`, for the error message.
        where: Name of the file that contains the ids.
        table_name: Name of the file in which every id must have a row.
        numbers: Row number of each id in the file `where`, starting from 1.
        remedy (*optional*): How to fix the problem, for the error message.
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
    """Returns the row of each id in `table`, and the table itself. A missing table is made from the ids."""
    codes, values = encode(ids)  # (num_interactions,), and the distinct ids in order of first appearance
    if table is None:
        columns = {"user_id": values} if name == "user_id" else {"item_id": values, "title": values}
        return codes, pa.table(columns)

    # Look up each distinct id once, then index by `codes` to get the row of every interaction.
    rows = rows_of_ids(pa.chunked_array([values]), table[name])[codes]
    remedy = "add it there, or leave the row out"
    if name == "item_id":
        remedy = "add it there, leave the row out, or set unknown_items: drop"
    check_known(rows, ids, name.removesuffix("_id"), where, table_name or "", numbers, remedy)
    return rows, table
