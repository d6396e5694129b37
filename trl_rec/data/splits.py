"""Splits a log into training, validation and test rows: leave-one-out, leave-last-m, by time, or as in the source.

A row has the columns `user, history, history_ratings, targets, target_ratings, timestamp`. The split rule determines
where training, validation and test end in the item sequence of each user. The rows are then:

- In a training row, the history is the first item of the sequence. The targets are the following training items.
- In a validation or test row, the targets are the user's items in that split. The history is all items before them.

Some sources contain windows (lists of successive items of one user), already divided into training, validation and
test windows. The last item of a window is the target, and the items before it are the history.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pyarrow as pa

from trl_rec.data.indexed_log import IndexedLog
from trl_rec.data.log import SPLITS
from trl_rec.data.windows import Windows
from trl_rec.ragged import Ragged


RULES = {  # {num_held_out} and {fewest} are filled in by `describe_rule`
    "leave_one_out": "each user's last item is the test item, and the item before it is the validation item; users "
    "with fewer than 3 items are used for training only",
    "leave_last": "each user's last {num_held_out} items are the test items, and the {num_held_out} before them are "
    "the validation items; users with fewer than {fewest} items are used for training only",
    "time": "the last tenth of the interactions by time is the test split, and the tenth before it is the validation "
    "split; interactions with equal timestamps are in the same split",
    "windows": "each row is a window (successive items of one user), and the source has already split the windows",
}


def describe_rule(rule: str, num_held_out: int = 1) -> str:
    """Returns the description of a split rule."""
    return RULES[rule].format(num_held_out=num_held_out, fewest=2 * num_held_out + 1)


def split_log(log: IndexedLog, rule: str, num_held_out: int = 1) -> tuple[dict[str, pa.Table], dict[str, int]]:
    """Splits a log.

    Args:
        log: The interactions, sorted by user and time.
        rule: `"leave_one_out"`, `"leave_last"` or `"time"`.
        num_held_out (*optional*, defaults to `1`): With `"leave_last"`, the number of targets per user in the
            validation split, and also in the test split. With 1, the rows are the same as with `"leave_one_out"`.

    Returns:
        The rows of each split, and the numbers of cold users in validation and test. A cold user has items in the
        split but no row, because the user has no items before the split.
    """
    moments = _split_times(log.timestamp) if rule == "time" else None
    tables: dict[str, list[pa.Table]] = {split: [] for split in SPLITS}
    cold_users = dict.fromkeys(SPLITS[1:], 0)
    for users, interactions in log.blocks():
        block = log.take(interactions)
        lengths = np.diff(log.offsets[users.start : users.stop + 1])  # (users of the block,)
        ends = _ends_of_last(lengths, num_held_out) if moments is None else _ends_by_time(block, lengths, moments)

        # The targets of a split begin where the previous split ends. The training targets begin after the first item.
        starts = [np.minimum(1, ends[0]), ends[0], ends[1]]
        for split, start, end in zip(SPLITS, starts, ends, strict=True):
            # A user with a single training item has a training row without targets.
            wanted = (end > start) | (split == "train")
            has_history = start > 0
            if split != "train":
                cold_users[split] += int((wanted & ~has_history).sum())
            chosen = np.flatnonzero(wanted & has_history)
            tables[split].append(_cut_rows(block, users.start, chosen, lengths, start, end))
    return {split: pa.concat_tables(parts) for split, parts in tables.items()}, cold_users


def split_windows(windows: Mapping[str, Windows]) -> dict[str, pa.Table]:
    """Returns the rows of each split, one for each window of this split. The last item of a window is the target."""
    tables = {}
    for split in SPLITS:
        rows = windows[split]
        last = rows.items.lengths - 1  # position of the target in each window
        items = (rows.items.head(last), rows.items.slice(last, last + 1))
        no_ratings = _empty_rows(len(rows.user))
        tables[split] = _table(rows.user, items, (no_ratings, no_ratings), rows.timestamp)
    return tables


def _ends_of_last(lengths: np.ndarray, num_held_out: int) -> list[np.ndarray]:
    """Returns where training, validation and test end in each user's sequence.

    Sequences of fewer than `2 * num_held_out + 1` items are used for training only.
    """
    held_out = np.where(lengths < 2 * num_held_out + 1, 0, num_held_out)
    return [lengths - 2 * held_out, lengths - held_out, lengths]


def _split_times(timestamp: np.ndarray) -> tuple[float, float]:
    """Returns the times at which the validation split and the test split begin.

    An interaction at the time at which a split begins belongs to that split, so interactions with equal timestamps
    stay together.
    """
    validation, test = (len(timestamp) * tenths // 10 for tenths in (8, 9))
    ordered = np.partition(timestamp, (validation, test))
    return ordered[validation], ordered[test]


def _ends_by_time(log: IndexedLog, lengths: np.ndarray, moments: tuple[float, float]) -> list[np.ndarray]:
    """Returns where training, validation and test end in each user's sequence. All users share the same end times.

    `log` contains the interactions of the users that `lengths` describes, and no others.
    """
    row = np.repeat(np.arange(len(lengths)), lengths)
    ends = [np.bincount(row[log.timestamp < moment], minlength=len(lengths)) for moment in moments]
    return [*ends, lengths]


def _cut_rows(
    log: IndexedLog, first_user: int, users: np.ndarray, lengths: np.ndarray, start: np.ndarray, end: np.ndarray
) -> pa.Table:
    """Returns one row for each of `users`. The targets are the items from position `start` up to, but not including,
    `end`. The history is all items before `start`.

    `log`, `lengths`, `start` and `end` cover all users of a block (a range of successive users). The first user of the
    block is `first_user`. The numbers in `users` are counted from the start of the block.
    """
    start = start[users]
    end = end[users]
    items = _cut(log.item, lengths, users, start, end)
    ratings = _cut(log.rating, lengths, users, start, end)

    # The timestamp of a row is the time of its first target, or of its last history item if it has no target.
    first_target = (np.cumsum(lengths) - lengths)[users] + start
    timestamp = log.timestamp[first_target - (end == start)]
    return _table((first_user + users).astype(np.int32), items, ratings, timestamp)


def _cut(
    values: np.ndarray | None, lengths: np.ndarray, users: np.ndarray, start: np.ndarray, end: np.ndarray
) -> tuple[Ragged, Ragged]:
    """Returns the values before `start`, and those from `start` to `end`, for each user in `users`.

    Without `values`, all rows of both results are empty.
    """
    if values is None:
        return _empty_rows(len(users)), _empty_rows(len(users))
    sequences = Ragged.from_lengths(values, lengths).take(users)  # the log is sorted by user
    return sequences.head(start), sequences.slice(start, end)


def _empty_rows(count: int) -> Ragged:
    """Returns `count` empty rows."""
    return Ragged(np.empty(0, np.float32), np.zeros(count + 1, np.int64))


def _table(
    user: np.ndarray, items: tuple[Ragged, Ragged], ratings: tuple[Ragged, Ragged], timestamp: np.ndarray
) -> pa.Table:
    """Returns the rows as an Arrow table. `items` and `ratings` are pairs of history and targets."""
    columns = {
        "user": user,
        "history": items[0].to_arrow(),
        "history_ratings": ratings[0].to_arrow(),
        "targets": items[1].to_arrow(),
        "target_ratings": ratings[1].to_arrow(),
        "timestamp": timestamp,
    }
    return pa.table(columns)
