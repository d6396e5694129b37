"""Checks that nothing of validation or test is in a training row, by comparing the splits of a dataset.

Under leave-one-out, leave-last-m and a split by time, a user's later row must continue the earlier one exactly. That
leaves no room for a leak.

Windows cannot be held to this rule: they have a limited length, and the source may have left some out. Two weaker
rules apply to windows:

1. No row is later than a row of a later split. Equal times are allowed, since published data sets are often cut in the
   middle of a day.
2. No target occurs in an earlier split's row of the same user, unless the target also occurs in its own history.

Rule 2 also refuses a source in which users return to an item after more than a window's length. Such a source has to
be prepared from its interactions.
"""

from __future__ import annotations

import numpy as np
from datasets import Dataset

from trl_rec.ragged import Ragged, join


REMEDY = "prepare the data again from its source"


def check_leaks(train: Dataset, validation: Dataset, test: Dataset, split: str) -> None:
    """Raises if the splits overlap or do not fit together; `split` is their rule, one of `splits.RULES`."""
    # Windows of a user may overlap and have gaps, so only times and targets can be compared.
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

    # A test row continues the validation row, or the training row of a user who has no validation row.
    _check_continued(train, validation)
    _check_continued(validation, test)
    _check_continued(train, _without_users_of(test, validation))


def find_mixed_users(users: np.ndarray, history: Ragged, targets: Ragged) -> np.ndarray:
    """The users whose rows come from several splits, in ascending order.

    A user is found if the history of one row begins with all items of the user's shortest row. If each row has one
    target, nobody is found, since the windows of one split may continue each other in the same way.

    Args:
        users: The user of each row.
        history: The items before the targets.
        targets: The targets.
    """
    if not len(users) or (targets.lengths == 1).all():
        return users[:0]
    sequences = join(history, targets)

    # 1. Find the shortest row of each row's user.
    order = np.lexsort((sequences.lengths, users))
    _, first, group = np.unique(users[order], return_index=True, return_inverse=True)
    shortest = np.empty(len(users), np.int64)
    shortest[order] = order[first][group]  # (num_rows,)

    # 2. Of the other rows, keep those whose history is long enough to contain the whole shortest row.
    width = sequences.lengths[shortest]
    is_other = shortest != np.arange(len(users))
    longer = np.flatnonzero(is_other & (width > 0) & (width <= history.lengths))

    # 3. Compare the beginning of their history with that row, item by item.
    whole = sequences.take(shortest[longer])
    beginning = history.take(longer).head(width[longer])
    num_different = np.bincount(whole.row_ids, whole.values != beginning.values, minlength=len(longer))
    return np.unique(users[longer[num_different == 0]])


def _column(rows: Dataset, name: str) -> np.ndarray:
    """A column of numbers."""
    values: np.ndarray = rows.data.column(name).to_numpy()
    return values


def _ragged(rows: Dataset, name: str) -> Ragged:
    """A column of lists."""
    return Ragged.from_arrow(rows.data.column(name))


def _check_one_row_per_user(rows: Dataset) -> None:
    """Raises if a user has several rows in the split."""
    users, counts = np.unique(_column(rows, "user"), return_counts=True)
    if (counts > 1).any():
        raise ValueError(
            f"leak: the {rows.split} split has more than one row of user {users[counts > 1][0]}; {REMEDY}"
        )


def _check_same_users(train: Dataset, validation: Dataset, test: Dataset) -> None:
    """Raises unless validation and test have the same users, and all of them have a training row."""
    for rows, others in ((validation, test), (test, validation), (validation, train)):
        missing = np.setdiff1d(_column(rows, "user"), _column(others, "user"))
        if len(missing):
            raise ValueError(
                f"leak: user {missing[0]} has a {rows.split} row but none in the {others.split} split; {REMEDY}"
            )


def _check_same_lengths(validation: Dataset, test: Dataset, split: str) -> None:
    """Raises unless all rows of validation and test have the same number of targets: one under leave-one-out."""
    lengths = {str(rows.split): _ragged(rows, "targets").lengths for rows in (validation, test)}
    if split == "leave_one_out":
        num_targets = 1
        expected = "one target, as leave-one-out requires"
    else:
        num_targets = max(int(counts.max(initial=0)) for counts in lengths.values())
        expected = f"{num_targets} targets, as other rows do"

    for name, counts in lengths.items():
        wrong = np.flatnonzero(counts != num_targets)
        if len(wrong):
            raise ValueError(f"leak: {name} row {wrong[0]} does not have exactly {expected}; {REMEDY}")


def _check_later(train: Dataset, validation: Dataset, test: Dataset, *, strictly: bool) -> None:
    """Raises if a row is later than a row of a later split or, with `strictly`, has the same time."""
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
    """Raises unless each user's later history consists of the earlier row's history and targets.

    The later row must not have an earlier time either. Users with a row in only one of the splits are ignored.
    """
    users, earlier_rows, later_rows = np.intersect1d(
        _column(earlier, "user"), _column(later, "user"), return_indices=True
    )
    sequence = join(_ragged(earlier, "history"), _ragged(earlier, "targets")).take(earlier_rows)
    history = _ragged(later, "history").take(later_rows)

    # Rows of different lengths are broken; rows of equal length are compared item by item.
    broken = sequence.lengths != history.lengths  # (num_users,)
    comparable = np.flatnonzero(~broken)
    sequence = sequence.take(comparable)
    differs = sequence.values != history.take(comparable).values
    broken[comparable[sequence.row_ids[differs]]] = True
    broken |= _column(earlier, "timestamp")[earlier_rows] > _column(later, "timestamp")[later_rows]

    if broken.any():
        user = users[broken][0]
        raise ValueError(
            f"leak: the {earlier.split} row of user {user} is not exactly what the {later.split} row's history "
            f"contains; {REMEDY}"
        )


def _without_users_of(rows: Dataset, others: Dataset) -> Dataset:
    """The rows of users who have no row in `others`."""
    kept = ~np.isin(_column(rows, "user"), _column(others, "user"))
    return Dataset(rows.data.table.filter(kept), split=rows.split)


def _check_unseen_targets(earlier: list[Dataset], later: Dataset) -> None:
    """Raises if a target is in an earlier split's row of the same user and not in its own history."""
    # 1. Which targets are in an earlier row of the same user?
    known = np.concatenate(
        [_keys(rows, column, _column(rows, "user")) for rows in earlier for column in ("history", "targets")]
    )
    was_known = np.isin(_keys(later, "targets", _column(later, "user")), known)

    # 2. Which are in the history of their own row?
    row = np.arange(len(later))
    in_history = np.isin(_keys(later, "targets", row), _keys(later, "history", row))
    leaked = np.flatnonzero(was_known & ~in_history)
    if len(leaked):
        position = _ragged(later, "targets").row_ids[leaked[0]]
        raise ValueError(
            f"leak: the target of {later.split} row {position} is in an earlier split's row of the same user; "
            f"{REMEDY}, or, if users do come back to items, give the interactions themselves as a table"
        )


def _keys(rows: Dataset, column: str, owner: np.ndarray) -> np.ndarray:
    """One number per pair of a row's owner and an item in the row's column, so that pairs can be compared."""
    values = _ragged(rows, column)
    keys: np.ndarray = owner[values.row_ids].astype(np.int64) * (1 << 32) + values.values  # item indices are int32
    return keys
