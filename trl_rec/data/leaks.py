"""Nothing of validation or test may stand in a training row: the splits of a dataset are held against each other.

Under leave-one-out, leave-last-m and a split by time each user's rows must continue each other exactly, which leaves
no place for a leak. Windows do not (they are cut short, and the source may have left some out), so for them two weaker
rules hold: no row of an earlier split is later than any of a later split (equal times pass, as published sets are cut
by rows, not by days), and no row of an earlier split holds an item that a later split asks the same user for, unless
the asking row's own history tells of it. A log in which users come back to an item after longer than a window is
thereby refused too: it has to be prepared as a log.
"""

from __future__ import annotations

import numpy as np
from datasets import Dataset

from trl_rec.ragged import Ragged, join


REMEDY = "prepare the data again from its source"


def check_leaks(train: Dataset, validation: Dataset, test: Dataset, split: str) -> None:
    """Raises where the splits overlap or do not fit; `split` is the rule that they were made by, one of
    `splits.RULES`."""
    if split == "windows":
        _check_later(train, validation, test, strictly=False)
        _check_known_targets([train], validation)
        _check_known_targets([train, validation], test)
        return
    for rows in (train, validation, test):
        _check_two_rows(rows)
    if split == "time":
        _check_later(train, validation, test, strictly=True)
    else:
        _check_unpaired(train, validation, test, split)
    _check_breaks(train, validation)
    _check_breaks(validation, test)
    _check_breaks(train, _without(test, validation))


def continued(users: np.ndarray, history: Ragged, targets: Ragged) -> np.ndarray:
    """Users, ascending, of whom one row's history begins with all that their shortest row holds: rows of several
    splits.

    Nobody where each row has one target, as windows may grow in that way within one split.
    """
    sequences = join(history, targets)
    if not len(users) or (targets.lengths == 1).all():
        return users[:0]
    order = np.lexsort((sequences.lengths, users))
    _, first, group = np.unique(users[order], return_index=True, return_inverse=True)
    shortest = np.empty(len(users), np.int64)
    shortest[order] = order[first][group]
    width = sequences.lengths[shortest]
    later = np.flatnonzero((shortest != np.arange(len(users))) & (width > 0) & (width <= history.lengths))
    whole, beginning = sequences.take(shortest[later]), history.take(later).slice(0 * later, width[later])
    differs = np.bincount(whole.row_ids, whole.values != beginning.values, minlength=len(later)) > 0
    return np.unique(users[later[~differs]])


def _column(rows: Dataset, name: str) -> np.ndarray:
    return rows.data.column(name).to_numpy()


def _ragged(rows: Dataset, name: str) -> Ragged:
    return Ragged.from_arrow(rows.data.column(name))


def _check_two_rows(rows: Dataset) -> None:
    users, counts = np.unique(_column(rows, "user"), return_counts=True)
    if (counts > 1).any():
        raise ValueError(
            f"leak: the {rows.split} split holds more than one row of user {users[counts > 1][0]}; {REMEDY}"
        )


def _check_unpaired(train: Dataset, validation: Dataset, test: Dataset, split: str) -> None:
    """Every user with a validation row has a test row, both of one target, or of as many as the other users', and a
    training row."""
    for rows, others in ((validation, test), (test, validation), (validation, train)):
        alone = np.setdiff1d(_column(rows, "user"), _column(others, "user"))
        if len(alone):
            raise ValueError(
                f"leak: user {alone[0]} has a {rows.split} row but none in the {others.split} split; {REMEDY}"
            )
    counts = {str(rows.split): _ragged(rows, "targets").lengths for rows in (validation, test)}
    most = 1 if split == "leave_one_out" else max(int(lengths.max(initial=0)) for lengths in counts.values())
    for name, lengths in counts.items():
        other = np.flatnonzero(lengths != most)
        if len(other):
            told = (
                "one target, as leave-one-out wants"
                if split == "leave_one_out"
                else f"{most} targets, as other rows do"
            )
            raise ValueError(f"leak: {name} row {other[0]} does not have exactly {told}; {REMEDY}")


def _check_later(train: Dataset, validation: Dataset, test: Dataset, *, strictly: bool) -> None:
    for earlier, later in ((train, validation), (validation, test), (train, test)):
        if not len(earlier) or not len(later):
            continue
        times, first = _column(earlier, "timestamp"), _column(later, "timestamp").min()
        row = int(times.argmax())
        if times[row] > first or (strictly and times[row] == first):
            raise ValueError(
                f"leak: {earlier.split} row {row} (time {times[row]:.15g}) is not before the first {later.split} row "
                f"(time {first:.15g}); {REMEDY}"
            )


def _check_breaks(earlier: Dataset, later: Dataset) -> None:
    """The history of a user's later row must be what the user's earlier row ends up with, and come after it."""
    users, mine, theirs = np.intersect1d(_column(earlier, "user"), _column(later, "user"), return_indices=True)
    before = join(_ragged(earlier, "history"), _ragged(earlier, "targets")).take(mine)
    history = _ragged(later, "history").take(theirs)
    broken = before.lengths != history.lengths
    same = np.flatnonzero(~broken)
    unequal = before.take(same).values != history.take(same).values
    broken[same[np.repeat(np.arange(len(same)), before.lengths[same])[unequal]]] = True
    broken |= _column(earlier, "timestamp")[mine] > _column(later, "timestamp")[theirs]
    if broken.any():
        user = users[broken][0]
        raise ValueError(
            f"leak: the {earlier.split} row of user {user} is not exactly what the {later.split} row's history tells; {REMEDY}"
        )


def _without(rows: Dataset, others: Dataset) -> Dataset:
    """The rows of users that have no row in `others`."""
    alone = ~np.isin(_column(rows, "user"), _column(others, "user"))
    return Dataset(rows.data.table.filter(alone), split=rows.split)


def _check_known_targets(earlier: list[Dataset], later: Dataset) -> None:
    known = np.concatenate(
        [_keys(rows, column, _column(rows, "user")) for rows in earlier for column in ("history", "targets")]
    )
    suspect = np.isin(_keys(later, "targets", _column(later, "user")), known)
    row = np.arange(len(later))
    told = np.isin(_keys(later, "targets", row), _keys(later, "history", row))
    leaked = np.flatnonzero(suspect & ~told)
    if len(leaked):
        position = _ragged(later, "targets").row_ids[leaked[0]]
        raise ValueError(
            f"leak: what {later.split} row {position} asks for stands in an earlier split's row of the same user; {REMEDY}, "
            "or, if users do come back to items, give the interactions themselves as a table"
        )


def _keys(rows: Dataset, column: str, owner: np.ndarray) -> np.ndarray:
    """One number for each pair of the row's owner and an item of the column."""
    values = _ragged(rows, column)
    return owner[values.row_ids].astype(np.int64) * (1 << 32) + values.values  # item indices are int32
