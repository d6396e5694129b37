"""Replaces the ids in the windows of a source by row numbers, and derives the interactions that the windows imply."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from trl_rec.data.columns import encode
from trl_rec.data.indexed_log import IndexedLog, check_known, rows_of_ids
from trl_rec.data.log import SPLITS, Log
from trl_rec.ragged import Ragged


@dataclass(frozen=True, eq=False)
class Windows:
    """The windows of one split, sorted by user and time; equal times keep the source's order.

    Args:
        user (`np.ndarray`): The user of each window.
        items (`Ragged`): The items of each window; the last is the target.
        timestamp (`np.ndarray`): The time of each window.
    """

    user: np.ndarray
    items: Ragged
    timestamp: np.ndarray


def index_windows(log: Log) -> tuple[IndexedLog, dict[str, Windows]]:
    """The windows of each split, and the interactions that they imply."""
    assert log.windows is not None and log.items is not None
    tables = [log.windows[split] for split in SPLITS]
    # Users are numbered in the order in which they first occur, training first.
    user_ids = encode(pa.concat_tables(tables)["user_id"])[1]
    users = pa.table({"user_id": user_ids})
    windows = {split: _index(log, split, users) for split in SPLITS}
    return _interactions(users, log.items, windows), windows


def _index(log: Log, split: str, users: pa.Table) -> Windows:
    """The windows of one split, sorted by user and time."""
    assert log.windows is not None and log.items is not None
    table = log.windows[split]
    user = rows_of_ids(table["user_id"], users["user_id"])
    timestamp = table["timestamp"].to_numpy()
    numbers = table["row"].to_numpy()

    # The items of all windows are looked up at once, as one flat column.
    lists = Ragged.from_arrow(table["item_ids"])
    item_ids = pa.chunked_array([pa.array(lists.values, pa.string())])
    items = rows_of_ids(item_ids, log.items["item_id"])
    check_known(items, item_ids, "item", log.names[split], log.names["items"], numbers[lists.row_ids])

    order = np.lexsort((timestamp, user))
    return Windows(user[order], Ragged(items, lists.offsets).take(order), timestamp[order])


def _interactions(users: pa.Table, items: pa.Table, windows: Mapping[str, Windows]) -> IndexedLog:
    """All items of each user's first window, and the last item of every later one, each at its window's time."""
    # 1. Join the splits, and sort. The sort is stable: of equal times, training comes first and test last.
    parts = [windows[split] for split in SPLITS]
    user = np.concatenate([part.user for part in parts])
    timestamp = np.concatenate([part.timestamp for part in parts])
    values = np.concatenate([part.items.values for part in parts])
    lengths = np.concatenate([part.items.lengths for part in parts])
    order = np.lexsort((timestamp, user))
    rows = Ragged.from_lengths(values, lengths).take(order)

    # 2. Keep the items that a window adds: successive windows of a user overlap in all but the last item.
    is_first = np.diff(user[order], prepend=-1) > 0
    new = rows.slice(np.where(is_first, 0, rows.lengths - 1), rows.lengths)
    source = np.repeat(order, new.lengths)
    return IndexedLog(users, items, user[source], new.values, timestamp[source], None)
