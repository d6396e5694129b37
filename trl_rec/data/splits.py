"""Training, validation and test rows of a log: leave-one-out, leave-last-m, by time, or the windows that the source
has cut itself.

A row is `user, history, history_ratings, targets, target_ratings, timestamp`; what each split's history and targets
are is told by three numbers a user: how many of the user's interactions are training, come before the test, and exist
at all.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pyarrow as pa

from trl_rec.data.indexed_log import CodedLog
from trl_rec.data.log import SPLITS
from trl_rec.data.windows import Windows
from trl_rec.ragged import Ragged


RULES = {  # {num_held_out} and {fewest} are filled in by `describe_rule`
    "leave_one_out": "each user's last item is the test, the one before it the validation; users with fewer than 3 only train",
    "leave_last": "each user's last {num_held_out} items are the test, the {num_held_out} before them the validation; "
    "users with fewer than {fewest} only train",
    "time": "the last tenth of the interactions by time is the test, the tenth before it the validation; ties stay together",
    "windows": "as the source has split its windows",
}


def describe_rule(rule: str, num_held_out: int = 1) -> str:
    """The rule in words."""
    return RULES[rule].format(num_held_out=num_held_out, fewest=2 * num_held_out + 1)


def split_log(log: CodedLog, rule: str, num_held_out: int = 1) -> tuple[dict[str, pa.Table], dict[str, int]]:
    """The three splits of a log, and how many users have something in a split but, for want of a history, no row.

    `num_held_out` is for the rule `"leave_last"`; with 1 it is `"leave_one_out"`.
    """
    lengths = np.bincount(log.user, minlength=log.users.num_rows)
    ends = _by_time(log, lengths) if rule == "time" else _leave_last(lengths, num_held_out)
    starts = [np.minimum(1, ends[0]), ends[0], ends[1]]
    tables, cold = {}, {}
    for split, start, end in zip(SPLITS, starts, ends, strict=True):
        wanted = (end > start) | (split == "train")
        if split != "train":
            cold[split] = int((wanted & (start == 0)).sum())
        tables[split] = _rows(log, np.flatnonzero(wanted & (start > 0)), lengths, start, end)
    return tables, cold


def split_windows(windows: Mapping[str, Windows]) -> dict[str, pa.Table]:
    """The three splits of ready windows: the last item of each is its target."""
    tables = {}
    for split in SPLITS:
        rows = windows[split]
        nothing, last = _nothing(len(rows.user)), rows.items.lengths - 1
        cut = rows.items.slice(0 * last, last), rows.items.slice(last, last + 1)
        tables[split] = _table(rows.user, cut, (nothing, nothing), rows.timestamp)
    return tables


def _leave_last(lengths: np.ndarray, num_held_out: int) -> list[np.ndarray]:
    held_out = np.where(lengths < 2 * num_held_out + 1, 0, num_held_out)
    return [lengths - 2 * held_out, lengths - held_out, lengths]


def _by_time(log: CodedLog, lengths: np.ndarray) -> list[np.ndarray]:
    timestamps = np.sort(log.timestamp)
    cuts = [timestamps[len(timestamps) * tenths // 10] for tenths in (8, 9)]
    return [np.bincount(log.user[log.timestamp < cut], minlength=len(lengths)) for cut in cuts] + [lengths]


def _rows(log: CodedLog, users: np.ndarray, lengths: np.ndarray, start: np.ndarray, end: np.ndarray) -> pa.Table:
    """For each of `users` the row with `history = [:start]` and `targets = [start:end]`."""
    start, end = start[users], end[users]
    items, ratings = (_cut(values, lengths, users, start, end) for values in (log.item, log.rating))
    first_target = (np.cumsum(lengths) - lengths)[users] + start
    return _table(users.astype(np.int32), items, ratings, log.timestamp[first_target - (end == start)])


def _cut(
    values: np.ndarray | None, lengths: np.ndarray, users: np.ndarray, start: np.ndarray, end: np.ndarray
) -> tuple[Ragged, Ragged]:
    if values is None:
        return _nothing(len(users)), _nothing(len(users))
    sequences = Ragged.from_lengths(values, lengths).take(users)
    return sequences.slice(0 * start, start), sequences.slice(start, end)


def _nothing(num_rows: int) -> Ragged:
    return Ragged(np.empty(0, np.float32), np.zeros(num_rows + 1, np.int64))


def _table(
    user: np.ndarray, items: tuple[Ragged, Ragged], ratings: tuple[Ragged, Ragged], timestamp: np.ndarray
) -> pa.Table:
    columns = {
        "user": user,
        "history": items[0].to_arrow(),
        "history_ratings": ratings[0].to_arrow(),
        "targets": items[1].to_arrow(),
        "target_ratings": ratings[1].to_arrow(),
        "timestamp": timestamp,
    }
    return pa.table(columns)
