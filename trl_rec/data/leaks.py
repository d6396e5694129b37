"""Checks that no validation or test item leaks into training rows, by comparing the splits of a dataset.

Under leave-one-out, leave-last-m and a split by time, the history of a validation or test row must equal the history
and targets of the same user's row in the previous split. If a user has a test row but no validation row, the test row
is compared with the user's training row, if there is one. Each row of a user then continues the previous row, so no
row contains the targets of a later split. Under a split by time, all rows of a split must also have earlier
timestamps than all rows of the later splits.

A source may also consist of windows: rows with a history and one target each. A user may have several windows in a
split. The rule above does not hold for windows, because their length is limited and the source may have dropped some
of them. Two weaker rules apply to windows:

1. All rows of a split precede all rows of the later splits. Equal times are allowed, because published datasets often
   record only the day of an interaction, and are cut in the middle of a day.
2. No validation or test target occurs in a row of the same user in an earlier split, unless the target also occurs in
   the history of its own row.

Rule 2 also rejects some sources without a leak. If a user chooses an item again, the second choice may be the target
of a validation or test window that is too short to contain the first choice. Such a source has to be prepared from a
table of its interactions.
"""

from __future__ import annotations

import numpy as np
from datasets import Dataset

from trl_rec.ragged import BLOCK, Ragged, join, row_blocks


REMEDY = "prepare the data again from its source"


def check_leaks(train: Dataset, validation: Dataset, test: Dataset, split: str) -> None:
    """Raises ValueError if the splits overlap or are inconsistent. `split` is a key of `splits.RULES`."""
    # Windows of a user may overlap or have gaps, so compare only their times and targets.
    if split == "windows":
        _check_later(train, validation, test, strictly=False)
        _check_unseen_targets([train], validation)
        _check_unseen_targets([train, validation], test)
        return

    for rows in (train, validation, test):
        _check_one_row_per_user(rows)
    if split == "time":
        _check_later(train, validation, test, strictly=True)
    else:
        _check_same_users(train, validation, test)
        _check_same_lengths(validation, test, split)

    # A test row continues the user's validation row, or the training row if the user has no validation row.
    _check_continued(train, validation)
    _check_continued(validation, test)
    _check_continued(train, _without_users_of(test, validation))


def find_mixed_users(users: np.ndarray, history: Ragged, targets: Ragged) -> np.ndarray:
    """Returns the users whose rows come from several splits, in ascending order.

    A user is returned if the history of one of the user's rows begins with all items of the user's shortest row (its
    history and targets). If every row has one target, no user is returned, because the windows of a single split may
    also continue each other in this way.

    Args:
        users: The user of each row.
        history: The history of each row.
        targets: The targets of each row.
    """
    if not len(users) or (targets.lengths == 1).all():
        return users[:0]
    sequences = join(history, targets)

    # 1. For each row, find the shortest row of the same user.
    order = np.lexsort((sequences.lengths, users))
    _, first, group = np.unique(users[order], return_index=True, return_inverse=True)
    shortest = np.empty(len(users), np.int64)
    shortest[order] = order[first][group]  # (num_rows,)

    # 2. Keep the longer rows whose history is long enough to contain the whole shortest row.
    width = sequences.lengths[shortest]
    is_other = shortest != np.arange(len(users))
    longer = np.flatnonzero(is_other & (width > 0) & (width <= history.lengths))

    # 3. Compare the beginning of each such history with the shortest row, item by item.
    whole = sequences.take(shortest[longer])
    beginning = history.take(longer).head(width[longer])
    num_different = np.bincount(whole.row_ids, whole.values != beginning.values, minlength=len(longer))
    return np.unique(users[longer[num_different == 0]])


def _column(rows: Dataset, name: str) -> np.ndarray:
    """Returns a column of numbers as an array."""
    values: np.ndarray = rows.data.column(name).to_numpy()
    return values


def _ragged(rows: Dataset, name: str) -> Ragged:
    """Returns a column of lists."""
    return Ragged.from_arrow(rows.data.column(name))


def _check_one_row_per_user(rows: Dataset) -> None:
    """Raises ValueError if a user has several rows in the split."""
    users, counts = np.unique(_column(rows, "user"), return_counts=True)
    if (counts > 1).any():
        raise ValueError(
            f"leak: the {rows.split} split has more than one row of user {users[counts > 1][0]}; {REMEDY}"
        )


def _check_same_users(train: Dataset, validation: Dataset, test: Dataset) -> None:
    """Raises ValueError unless validation and test have the same users, each with a training row."""
    for rows, others in ((validation, test), (test, validation), (validation, train)):
        missing = np.setdiff1d(_column(rows, "user"), _column(others, "user"))
        if len(missing):
            raise ValueError(
                f"leak: user {missing[0]} has a {rows.split} row but none in the {others.split} split; {REMEDY}"
            )


def _check_same_lengths(validation: Dataset, test: Dataset, split: str) -> None:
    """Raises ValueError unless all validation and test rows have the same number of targets (1 for leave-one-out)."""
    lengths = {str(rows.split): _ragged(rows, "targets").lengths for rows in (validation, test)}
    if split == "leave_one_out":
        num_targets = 1
        expected = "one target, as leave-one-out requires"
    else:
        num_targets = max(int(counts.max(initial=0)) for counts in lengths.values())
        expected = f"{num_targets} targets, like the other rows"

    for name, counts in lengths.items():
        wrong = np.flatnonzero(counts != num_targets)
        if len(wrong):
            raise ValueError(f"leak: {name} row {wrong[0]} must have exactly {expected}; {REMEDY}")


def _check_later(train: Dataset, validation: Dataset, test: Dataset, *, strictly: bool) -> None:
    """Raises ValueError unless all rows of a split precede all rows of the splits that follow it.

    Equal timestamps are allowed unless `strictly` is True.
    """
    for earlier, later in ((train, validation), (validation, test), (train, test)):
        if not len(earlier) or not len(later):
            continue
        times = _column(earlier, "timestamp")
        first = _column(later, "timestamp").min()
        row = int(times.argmax())
        if times[row] > first or (strictly and times[row] == first):
            raise ValueError(
                f"leak: {earlier.split} row {row} (time {times[row]:.15g}) is not before the first {later.split} row "
                f"(time {first:.15g}); {REMEDY}"
            )


def _check_continued(earlier: Dataset, later: Dataset) -> None:
    """Raises ValueError unless each user's history in `later` equals the user's history and targets in `earlier`.

    Also raises ValueError if the user's row in `later` has an earlier timestamp than the user's row in `earlier`. Only
    users who have a row in both splits are checked.
    """
    users, earlier_rows, later_rows = np.intersect1d(
        _column(earlier, "user"), _column(later, "user"), return_indices=True
    )
    before = _ragged(earlier, "history")
    targets = _ragged(earlier, "targets")
    history = _ragged(later, "history")

    # Sequences of different lengths cannot be equal. Compare the remaining sequences item by item, in blocks of users.
    lengths = history.lengths[later_rows]  # (num_users,)
    broken = before.lengths[earlier_rows] + targets.lengths[earlier_rows] != lengths
    comparable = np.flatnonzero(~broken)
    for block in row_blocks(np.concatenate([[0], np.cumsum(lengths[comparable])]), BLOCK):
        pairs = comparable[block]
        sequence = join(before.take(earlier_rows[pairs]), targets.take(earlier_rows[pairs]))
        differs = sequence.values != history.take(later_rows[pairs]).values
        broken[pairs[sequence.row_ids[differs]]] = True
    broken |= _column(earlier, "timestamp")[earlier_rows] > _column(later, "timestamp")[later_rows]

    if broken.any():
        user = users[broken][0]
        raise ValueError(
            f"leak: the {later.split} row of user {user} does not continue the {earlier.split} row: its history "
            f"must equal the history and targets of the {earlier.split} row, and its timestamp must not be earlier; "
            f"{REMEDY}"
        )


def _without_users_of(rows: Dataset, others: Dataset) -> Dataset:
    """Returns the rows of users who have no row in `others`."""
    kept = ~np.isin(_column(rows, "user"), _column(others, "user"))
    return Dataset(rows.data.table.filter(kept), split=rows.split)


def _check_unseen_targets(earlier: list[Dataset], later: Dataset) -> None:
    """Raises ValueError if a target of `later` is in a row of the same user in an earlier split.

    Targets that are also in the history of their own row are allowed.
    """
    # 1. Find the targets that occur in a row of the same user in an earlier split.
    known = np.concatenate(
        [_keys(rows, column, _column(rows, "user")) for rows in earlier for column in ("history", "targets")]
    )
    was_known = np.isin(_keys(later, "targets", _column(later, "user")), known)

    # 2. Of these, keep the targets that are not in the history of their own row.
    row = np.arange(len(later))
    in_history = np.isin(_keys(later, "targets", row), _keys(later, "history", row))
    leaked = np.flatnonzero(was_known & ~in_history)
    if len(leaked):
        position = _ragged(later, "targets").row_ids[leaked[0]]
        raise ValueError(
            f"leak: the target of {later.split} row {position} already occurs in an earlier split for the same "
            f"user; {REMEDY}, or, if users may choose an item again, prepare a table of interactions instead of "
            "windows"
        )


def _keys(rows: Dataset, column: str, owner: np.ndarray) -> np.ndarray:
    """Encodes each item of a column and the `owner` of its row as one number, so that such pairs can be compared.

    `owner` contains one integer per row: the row's user, or the row's own index.
    """
    values = _ragged(rows, column)
    keys: np.ndarray = owner[values.row_ids].astype(np.int64) * (1 << 32) + values.values  # item indices are int32
    return keys
