"""Compares a preference table with the training split, before anything is trained on the table.

Chosen items, histories and users' feedback must come from training. The negatives of self-play may be any items, even
held-out ones, because they were chosen without looking at the held-out data.
"""

from __future__ import annotations

import numpy as np
from datasets import Dataset

from trl_rec.data.dataset import RecDataset, split_rows
from trl_rec.ragged import Ragged, join, within
from trl_rec.schedule.prefixes import column
from trl_rec.schedule.training_pairs import TrainingPairs, pair_keys


def check_preference_leaks(table: Dataset, dataset: RecDataset, *, feedback: bool) -> None:
    """Raises unless each row's chosen item is a training target of its user, and its history the items before it.

    The history may be shortened to its newest items.

    Args:
        table: The preference table.
        dataset: The dataset that its items and users come from.
        feedback: Whether the rejected items, too, must be items of the user's training data, as in the tables of
            `feedback_preferences`.
    """
    users = column(table, "user")
    chosen = column(table, "chosen")

    foreign_targets = np.flatnonzero(~_is_prefix(users, chosen, split_rows(table, "history"), dataset.train))
    if len(foreign_targets):
        row = foreign_targets[0]
        raise ValueError(
            f"leak: row {row}: item {chosen[row]} does not follow this history of user {users[row]} in training"
            f"{_held_out_note(dataset, users[row], chosen[row])}; make the table from dataset.train alone"
        )

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
    """`(N,)`: whether a training row of the user contains the history, followed by the chosen item as a target."""
    before = split_rows(train, "history")
    sequences = join(before, split_rows(train, "targets"))

    # 1. The training targets, sorted by user and item; `positions` are indices into `sequences.values`.
    source = sequences.row_ids
    positions = np.flatnonzero(within(sequences.lengths) >= before.lengths[source])
    keys = pair_keys(column(train, "user")[source[positions]], sequences.values[positions])
    order = np.argsort(keys, kind="stable")

    # 2. Each row's matches: the positions at which its user has its chosen item as a target. There may be several.
    wanted = pair_keys(users, chosen)
    first = np.searchsorted(keys[order], wanted, "left")
    last = np.searchsorted(keys[order], wanted, "right")
    num_matches = last - first
    row = np.repeat(np.arange(len(users)), num_matches)
    position = positions[order[np.repeat(first, num_matches) + within(num_matches)]]

    # 3. Keep the matches with enough items before them, and compare these with the history.
    num_before = position - sequences.offsets[source[position]]
    fits = history.lengths[row] <= num_before
    return _ends_with(history, row[fits], sequences.values, position[fits])


def _ends_with(history: Ragged, row: np.ndarray, values: np.ndarray, position: np.ndarray) -> np.ndarray:
    """`(N,)`: whether, for any match of a row, the row's history equals the `values` just before the position.

    A match is a pair `row[i]`, `position[i]`. All are compared at once, backwards from the newest item.
    """
    matched = np.zeros(len(history), bool)
    for back in range(1, int(history.lengths.max(initial=0)) + 2):
        # Matches whose whole history has been compared are complete.
        complete = history.lengths[row] < back
        matched[row[complete]] = True
        row = row[~complete]
        position = position[~complete]
        if not len(row):
            break

        # The others stay in if the next older item is the same.
        same = history.values[history.offsets[row + 1] - back] == values[position - back]
        row = row[same]
        position = position[same]
    return matched


def _held_out_note(dataset: RecDataset, user: int, item: int) -> str:
    """For the error message: the held-out split in which the item is a target of the user, if any."""
    for split in (dataset.validation, dataset.test):
        targets = split_rows(split, "targets")
        if ((column(split, "user")[targets.row_ids] == user) & (targets.values == item)).any():
            return f" (it is a target of the {split.split} split)"
    return ""
