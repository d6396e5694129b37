"""The windows of a source that has cut and split its log itself, with indices for ids."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from trl_rec.data.columns import encode
from trl_rec.data.indexed_log import CodedLog, check_missing, rows_of_ids
from trl_rec.data.log import SPLITS, Log
from trl_rec.ragged import Ragged


@dataclass(frozen=True, eq=False)
class Windows:
    """The windows of one split, by user and then time; rows of equal time keep the source's order.

    Args:
        user (`np.ndarray`): Each row's user.
        items (`Ragged`): Each row's items, the last being the target.
        timestamp (`np.ndarray`): Each row's time.
    """

    user: np.ndarray
    items: Ragged
    timestamp: np.ndarray


def code_windows(log: Log) -> tuple[CodedLog, dict[str, Windows]]:
    """The windows of each split, and the interactions that they tell of."""
    assert log.windows is not None and log.items is not None
    users = pa.table({"user_id": encode(pa.concat_tables([log.windows[split] for split in SPLITS])["user_id"])[1]})
    windows = {split: _coded(log, split, users) for split in SPLITS}
    return _interactions(users, log.items, windows), windows


def _coded(log: Log, split: str, users: pa.Table) -> Windows:
    assert log.windows is not None and log.items is not None
    table = log.windows[split]
    user, timestamp, row = (
        rows_of_ids(table["user_id"], users["user_id"]),
        table["timestamp"].to_numpy(),
        table["row"].to_numpy(),
    )
    lists = Ragged.from_arrow(table["item_ids"])
    item_ids = pa.chunked_array([pa.array(lists.values, pa.string())])
    items = rows_of_ids(item_ids, log.items["item_id"])
    check_missing(items, item_ids, "item", log.names[split], log.names["items"], row[lists.row_ids])
    order = np.lexsort((timestamp, user))
    return Windows(user[order], Ragged(items, lists.offsets).take(order), timestamp[order])


def _interactions(users: pa.Table, items: pa.Table, windows: Mapping[str, Windows]) -> CodedLog:
    """Each user's first window, timed as its row, and then every row's last item."""
    parts = [windows[split] for split in SPLITS]
    user = np.concatenate([part.user for part in parts])
    timestamp = np.concatenate([part.timestamp for part in parts])
    rows = Ragged.from_lengths(
        np.concatenate([part.items.values for part in parts]), np.concatenate([part.items.lengths for part in parts])
    )
    order = np.lexsort((timestamp, user))  # stable: of equal times, training comes first and test last
    first = np.diff(user[order], prepend=-1) > 0
    rows = rows.take(order)
    new = rows.slice(np.where(first, 0, rows.lengths - 1), rows.lengths)
    source = np.repeat(order, new.lengths)
    return CodedLog(users, items, user[source], new.values, timestamp[source], None)
