"""Checks that a preference table was built only from the training split, before a policy is trained on the table.

Chosen items, histories, and items rejected because of the user's ratings must come from the training split. Items
rejected at random or in self-play may be any items, including held-out items, because they are selected without using
the held-out data.
"""

from __future__ import annotations

import numpy as np
from datasets import Dataset

from trl_rec.data.dataset import RecDataset, split_rows
from trl_rec.ragged import Ragged, join, within
from trl_rec.schedule.prefixes import column
from trl_rec.schedule.training_pairs import TrainingPairs, pair_keys


def check_preference_leaks(table: Dataset, dataset: RecDataset, *, feedback: bool) -> None:
    """Raises `ValueError` if a chosen item or its history does not come from the training data of the user.

    Each chosen item must be a training target of the user, and the history must be the items before this target. The
    history may be truncated to its newest items.

    Args:
        table: The preference table.
        dataset: The dataset from which the table was built.
        feedback: Whether the rejected items must also come from the training data of the user, as in the tables of
            `feedback_preferences`.
    """
    # 1. Check the chosen items and their histories.
    users = column(table, "user")
    chosen = column(table, "chosen")
    foreign_targets = np.flatnonzero(~_is_prefix(users, chosen, split_rows(table, "history"), dataset.train))
    if len(foreign_targets):
        row = foreign_targets[0]
        raise ValueError(
            f"leak: row {row}: item {chosen[row]} does not follow the row's history in the training data of user "
            f"{users[row]}{_held_out_note(dataset, users[row], chosen[row])}; make the table from dataset.train alone"
        )

    # 2. Check the rejected items.
    if not feedback:
        return
    rejected = split_rows(table, "rejected")
    rows = rejected.row_ids
    foreign_items = np.flatnonzero(~TrainingPairs.from_split(dataset.train).contain(users[rows], rejected.values))
    if len(foreign_items):
        row = rows[foreign_items[0]]
        item = rejected.values[foreign_items[0]]
        raise ValueError(
            f"leak: row {row} rejects item {item}, on which user {users[row]} gave no feedback in training"
            f"{_held_out_note(dataset, users[row], item)}; make the table from dataset.train alone"
        )


def _is_prefix(users: np.ndarray, chosen: np.ndarray, history: Ragged, train: Dataset) -> np.ndarray:
    """Returns whether each chosen item is a training target of the user and directly follows the history, `(N,)`."""
    before = split_rows(train, "history")
    sequences = join(before, split_rows(train, "targets"))

    # 1. Sort the training targets by user and item. `positions` are their indices into `sequences.values`.
    source = sequences.row_ids
    positions = np.flatnonzero(within(sequences.lengths) >= before.lengths[source])
    keys = pair_keys(column(train, "user")[source[positions]], sequences.values[positions])
    order = np.argsort(keys, kind="stable")

    # 2. Find the matches of each row: the positions where the chosen item is a target of the user. There may be
    # several.
    wanted = pair_keys(users, chosen)
    first = np.searchsorted(keys[order], wanted, "left")
    last = np.searchsorted(keys[order], wanted, "right")
    num_matches = last - first
    row = np.repeat(np.arange(len(users)), num_matches)
    position = positions[order[np.repeat(first, num_matches) + within(num_matches)]]

    # 3. Keep the matches that have enough items before them, and compare these items with the history.
    num_before = position - sequences.offsets[source[position]]
    fits = history.lengths[row] <= num_before
    return _ends_with(history, row[fits], sequences.values, position[fits])


def _ends_with(history: Ragged, row: np.ndarray, values: np.ndarray, position: np.ndarray) -> np.ndarray:
    """Returns for each row whether the row's history stands directly before one of the row's matches, `(N,)`.

    A match is a position in `values` at which the chosen item of a row is a target of the row's user. Match `i`
    belongs to row `row[i]`, and its position is `position[i]`. For all matches at the same time, the items before the
    match are compared with the history, backwards from the newest history item.
    """
    matched = np.zeros(len(history), bool)
    for back in range(1, int(history.lengths.max(initial=0)) + 2):
        # Earlier iterations dropped the matches that differ from the history of their row. So if the whole history of
        # a row has been compared, a match that is left for this row directly follows the history.
        complete = history.lengths[row] < back
        matched[row[complete]] = True
        row = row[~complete]
        position = position[~complete]
        if not len(row):
            break

        # Of the other matches, keep those whose next older item equals the next older item of the history.
        same = history.values[history.offsets[row + 1] - back] == values[position - back]
        row = row[same]
        position = position[same]
    return matched


def _held_out_note(dataset: RecDataset, user: int, item: int) -> str:
    """Returns a note for the error message if the item is a held-out target of the user, else an empty string."""
    for split in (dataset.validation, dataset.test):
        targets = split_rows(split, "targets")
        if ((column(split, "user")[targets.row_ids] == user) & (targets.values == item)).any():
            return f" (it is a target of the {split.split} split)"
    return ""
