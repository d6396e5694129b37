"""Replaces the user and item ids of a log by row numbers, and sorts its interactions by user and time.

[`code_log`] replaces the ids, and [`sort_log`] sorts the interactions. These are two functions, so that the caller can
release the table of interactions with the original ids between the two calls. For a large log, this table, the coded
log and the sorted log together would take too much memory.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from trl_rec.data.columns import encode, shown
from trl_rec.data.log import Log
from trl_rec.ragged import BLOCK, row_blocks


@dataclass(frozen=True, eq=False)
class IndexedLog:
    """Interactions as arrays of equal length, sorted by user and then by time.

    If a user's interactions have equal timestamps, they keep the order of the source. Timestamps that become equal
    only when they are rounded to float64 are sorted by their exact values.

    Args:
        users (`pa.Table`): One row per user. The first column is `user_id`.
        items (`pa.Table`): One row per item, with the columns `item_id` and `title`.
        user (`np.ndarray`): For each interaction, the index of its user's row in `users`, int32.
        item (`np.ndarray`): For each interaction, the index of its item's row in `items`, int32.
        timestamp (`np.ndarray`): Timestamp of each interaction, float64.
        rating (`np.ndarray`, *optional*): Rating of each interaction, float32. None if the source has no ratings.
        place (`np.ndarray`, *optional*): For each interaction, its index in the sorted log before k-core filtering,
            not counting interactions with items that the source's item table lacks. Only set if those interactions
            are kept in a separate table (see [`separate_unlisted`]).
    """

    users: pa.Table
    items: pa.Table
    user: np.ndarray
    item: np.ndarray
    timestamp: np.ndarray
    rating: np.ndarray | None
    place: np.ndarray | None = None

    @cached_property
    def offsets(self) -> np.ndarray:
        """`(num_users + 1,)`: index of the first interaction of each user, followed by the number of interactions."""
        return np.searchsorted(self.user, np.arange(self.users.num_rows + 1, dtype=self.user.dtype))

    def blocks(self) -> Iterator[tuple[slice, slice]]:
        """Divides the log into blocks of about `BLOCK` interactions. All interactions of a user are in one block.

        Returns:
            For each block, a slice of the users and a slice of their interactions.
        """
        for users in row_blocks(self.offsets, BLOCK):
            yield users, slice(self.offsets[users.start], self.offsets[users.stop])

    def take(self, rows: np.ndarray | slice) -> IndexedLog:
        """Returns a log of chosen interactions. `rows` is a slice, an array of indices, or an array of booleans."""
        rating = None if self.rating is None else self.rating[rows]
        place = None if self.place is None else self.place[rows]
        chosen = {"user": self.user[rows], "item": self.item[rows], "timestamp": self.timestamp[rows]}
        return replace(self, **chosen, rating=rating, place=place)

    def to_table(self) -> pa.Table:
        """Returns the interactions as an Arrow table."""
        columns = {"user": self.user, "item": self.item, "timestamp": self.timestamp}
        return pa.table(columns if self.rating is None else columns | {"rating": self.rating})


@dataclass(frozen=True, eq=False)
class CodedLog:
    """Interactions as arrays of equal length, in the order of the source.

    Args:
        users, items, user, item, timestamp, rating: Same as in [`IndexedLog`].
        exact_time (`np.ndarray`, *optional*): The exact timestamps, int64, if different timestamps may become equal
            when they are rounded to float64.
        unlisted_ids (`pa.Array`, *optional*): Ids of items that `items` lacks, if interactions with them are kept. In
            the array `item`, these items are numbered from `items.num_rows`.
    """

    users: pa.Table
    items: pa.Table
    user: np.ndarray
    item: np.ndarray
    timestamp: np.ndarray
    rating: np.ndarray | None
    exact_time: np.ndarray | None
    unlisted_ids: pa.Array | None = None


def code_log(log: Log, *, unknown_items: str = "refuse") -> tuple[CodedLog, int]:
    """Replaces the user and item ids of a log by row numbers in its tables of users and items.

    If the log has no table of users or items, the table is made from the ids in order of first appearance.

    Args:
        log: The interactions, optionally with tables of users and items.
        unknown_items (*optional*, defaults to `"refuse"`): What to do with an interaction whose item is not in
            `log.items`. `"refuse"` raises a ValueError, and `"drop"` drops the interaction. `"keep"` keeps it (see
            `CodedLog.unlisted_ids`) if its user is known, and drops it otherwise. A user is known if `log.users`
            contains the user or, without this table, if the user has an interaction with an item in `log.items`.

    Returns:
        The log, and the number of dropped interactions.
    """
    # 1. Take out the interactions with unknown items. With "refuse", they stay, and the look-up raises an error.
    assert log.interactions is not None
    table = log.interactions
    known = None
    if unknown_items != "refuse" and log.items is not None:
        known = rows_of_ids(table["item_id"], log.items["item_id"]) >= 0
        table = table.filter(pa.array(known))
        if not table.num_rows:
            raise ValueError(
                f"{log.names['interactions']} contains none of the items of {log.names['items']}; check that these "
                "files belong to the same dataset"
            )

    # 2. Look up the ids.
    where = log.names["interactions"]
    numbers = table["row"].to_numpy()
    user, users = _index(table["user_id"], log.users, numbers, "user_id", where, log.names.get("users"))
    item, items = _index(table["item_id"], log.items, numbers, "item_id", where, log.names.get("items"))

    arrays = {
        name: table[name].to_numpy() for name in ("timestamp", "rating", "exact_time") if name in table.column_names
    }
    coded = CodedLog(users, items, user, item, arrays["timestamp"], arrays.get("rating"), arrays.get("exact_time"))

    # 3. Put back the interactions with unknown items, if they are kept.
    if known is not None and unknown_items == "keep":
        coded = _with_unlisted(coded, log.interactions, known)
    return coded, log.interactions.num_rows - len(coded.user)


def _with_unlisted(log: CodedLog, table: pa.Table, known: np.ndarray) -> CodedLog:
    """Inserts the interactions with unknown items, in the order of the source.

    Interactions of users who are not in `log.users` are left out.

    Args:
        log: The interactions with known items.
        table: All interactions of the source.
        known: Whether the item of each interaction of the source is known.
    """
    # 1. Look up the users of the interactions with unknown items, and number these items.
    rows = np.flatnonzero(~known)
    user = rows_of_ids(table["user_id"].take(pa.array(rows)), log.users["user_id"])
    rows = rows[user >= 0]
    codes, unlisted_ids = encode(table["item_id"].take(pa.array(rows)))

    # 2. Merge these interactions with those with known items, in the order of the source.
    order = np.argsort(np.concatenate([np.flatnonzero(known), rows]), kind="stable")
    more = table.take(pa.array(rows))
    item = np.concatenate([log.item, (codes + log.items.num_rows).astype(log.item.dtype)])[order]
    merged: dict[str, np.ndarray] = {}
    for name in ("timestamp", "rating", "exact_time"):
        values = getattr(log, name)
        if values is not None:
            merged[name] = np.concatenate([values, more[name].to_numpy()])[order]
    users = np.concatenate([log.user, user[user >= 0].astype(log.user.dtype)])[order]
    return replace(log, user=users, item=item, unlisted_ids=unlisted_ids, **merged)


def sort_log(log: CodedLog) -> tuple[IndexedLog, int]:
    """Sorts the interactions by user and time.

    Returns:
        The log, and the number of interactions whose timestamp differs from that of the user's previous interaction,
        but equals it after rounding to float64.
    """
    exact = log.exact_time
    order = _order(log.user, log.users.num_rows, log.timestamp if exact is None else exact)
    in_order = IndexedLog(log.users, log.items, log.user, log.item, log.timestamp, log.rating).take(order)

    num_merged = 0
    if exact is not None:
        same_user = np.diff(in_order.user) == 0
        num_merged = int((same_user & (np.diff(in_order.timestamp) == 0) & (np.diff(exact[order]) != 0)).sum())
    return in_order, num_merged


def separate_unlisted(log: IndexedLog, unlisted_ids: pa.Array) -> tuple[IndexedLog, pa.Table]:
    """Separates the interactions with listed items (items in `log.items`) from those with unlisted items.

    Args:
        log: All interactions, sorted. The indices of unlisted items follow those of `log.items`.
        unlisted_ids: The ids of the unlisted items.

    Returns:
        The interactions with listed items, with their `place`, and a table of the interactions with unlisted items.
        The columns of the table are `user`, `item_id`, `timestamp` and `place`. In the table, `place` is the number of
        interactions with listed items that precede the interaction in the log.
    """
    listed = log.item < log.items.num_rows
    rows = np.flatnonzero(~listed)
    columns = {
        "user": log.user[rows],
        "item_id": unlisted_ids.take(pa.array(log.item[rows] - log.items.num_rows)).cast(pa.string()),
        "timestamp": log.timestamp[rows],
        "place": rows - np.arange(len(rows)),
    }
    log = log.take(listed)
    return replace(log, place=np.arange(len(log.user))), pa.table(columns)


def place_unlisted(unlisted: pa.Table, before: pa.Table, log: IndexedLog) -> pa.Table:
    """Updates the table returned by [`separate_unlisted`] after the log was filtered.

    Interactions of users that filtering dropped are removed from the table.

    Args:
        unlisted: The table that [`separate_unlisted`] returned.
        before: The table of users before filtering.
        log: The filtered log, with `place`.
    """
    assert log.place is not None
    new_rows = rows_of_ids(before["user_id"], log.users["user_id"])  # (num_users_before,)
    user = new_rows[unlisted["user"].to_numpy()]
    place = np.searchsorted(log.place, unlisted["place"].to_numpy())
    columns = {"user": user, "item_id": unlisted["item_id"], "timestamp": unlisted["timestamp"], "place": place}
    return pa.table(columns).filter(pa.array(user >= 0))


def rows_of_ids(ids: pa.ChunkedArray, table_ids: pa.ChunkedArray) -> np.ndarray:
    """Returns the position of each id in `table_ids`, int32, or -1 if `table_ids` does not contain it."""
    if pa.types.is_dictionary(ids.type):  # look up each distinct id once
        codes, values = encode(ids)
        distinct = rows_of_ids(pa.chunked_array([values]), table_ids)
        return np.take(distinct, codes)
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


def _order(user: np.ndarray, num_users: int, time: np.ndarray) -> np.ndarray:
    """Returns the indices that sort interactions by user and then by time. Equal times keep their order.

    A long log is first sorted by ranges of users, and then within blocks of ranges. Sorting many short arrays is
    several times faster than sorting one long array, and needs memory for one block at a time.
    """
    if len(user) <= BLOCK:
        return np.lexsort((time, user))

    # 1. Sort by ranges of users. There are at most 2**16 ranges, because numpy sorts 16-bit integers with the fast
    #    radix sort.
    per_range = -(-num_users // 2**16)
    range_of = (user // per_range).astype(np.uint16)
    order = np.argsort(range_of, kind="stable")
    numbers = np.arange(-(-num_users // per_range)).astype(np.uint16)
    offsets = np.append(np.searchsorted(range_of[order], numbers), len(user))
    del range_of

    # 2. Sort within each block of ranges.
    for block in row_blocks(offsets, BLOCK):
        part = slice(offsets[block.start], offsets[block.stop])
        rows = order[part]
        order[part] = rows[np.lexsort((time[rows], user[rows]))]
    return order


def _index(
    ids: pa.ChunkedArray, table: pa.Table | None, numbers: np.ndarray, name: str, where: str, table_name: str | None
) -> tuple[np.ndarray, pa.Table]:
    """Returns the row of each id in `table`, and the table. If `table` is None, a table is made from the ids."""
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
