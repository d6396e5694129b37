"""Replaces the ids in the windows of a source by row numbers, and derives the interactions from the windows.

A window is a list of successive items of one user. The last item is the target. The row numbers refer to the tables of
users and items.
"""

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
    """The windows of one split, sorted by user and then by time.

    If windows of a user have equal timestamps, they keep the order of the source.

    Args:
        user (`np.ndarray`): The row of each window's user in the table of users, int32.
        items (`Ragged`): The item indices of each window, oldest first. The last item is the target.
        timestamp (`np.ndarray`): Timestamp of each window, float64.
    """

    user: np.ndarray
    items: Ragged
    timestamp: np.ndarray


def index_windows(log: Log) -> tuple[IndexedLog, dict[str, Windows]]:
    """Returns the interactions derived from all windows, and the windows of each split."""
    assert log.windows is not None and log.items is not None
    tables = [log.windows[split] for split in SPLITS]
    # Number the users in order of first appearance, starting with the training split.
    user_ids = encode(pa.concat_tables(tables)["user_id"])[1]
    users = pa.table({"user_id": user_ids})
    windows = {split: _index(log, split, users) for split in SPLITS}
    return _interactions(users, log.items, windows), windows


def _index(log: Log, split: str, users: pa.Table) -> Windows:
    """Returns the windows of one split, sorted by user and time."""
    assert log.windows is not None and log.items is not None
    table = log.windows[split]
    user = rows_of_ids(table["user_id"], users["user_id"])
    timestamp = table["timestamp"].to_numpy()
    numbers = table["row"].to_numpy()

    # Look up the items of all windows at once, as one flat column.
    lists = Ragged.from_arrow(table["item_ids"])
    item_ids = pa.chunked_array([pa.array(lists.values, pa.string())])
    items = rows_of_ids(item_ids, log.items["item_id"])
    check_known(items, item_ids, "item", log.names[split], log.names["items"], numbers[lists.row_ids])

    order = np.lexsort((timestamp, user))
    return Windows(user[order], Ragged(items, lists.offsets).take(order), timestamp[order])


def _interactions(users: pa.Table, items: pa.Table, windows: Mapping[str, Windows]) -> IndexedLog:
    """Reconstructs the interactions from the windows of all splits.

    The first window of a user contributes all of its items, and each later window contributes its last item. Every
    interaction has the timestamp of its window.
    """
    # 1. Join the splits and sort. The sort is stable, so training precedes validation and test at equal timestamps.
    parts = [windows[split] for split in SPLITS]
    user = np.concatenate([part.user for part in parts])
    timestamp = np.concatenate([part.timestamp for part in parts])
    values = np.concatenate([part.items.values for part in parts])
    lengths = np.concatenate([part.items.lengths for part in parts])
    order = np.lexsort((timestamp, user))
    rows = Ragged.from_lengths(values, lengths).take(order)

    # 2. Keep only the items that a window adds. This assumes that all items of a later window, except the last, are
    # in earlier windows.
    is_first = np.diff(user[order], prepend=-1) > 0
    new = rows.slice(np.where(is_first, 0, rows.lengths - 1), rows.lengths)
    source = np.repeat(order, new.lengths)
    return IndexedLog(users, items, user[source], new.values, timestamp[source], None)
