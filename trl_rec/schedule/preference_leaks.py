"""A preference table is held against the training split before anything is trained on it.

Negatives of self-play may hold anything, held-out items too: nothing told the table about them. Chosen items,
histories and what users said about items must be training's.
"""

from __future__ import annotations

import numpy as np
from datasets import Dataset

from trl_rec.data.dataset import RecDataset, split_rows
from trl_rec.ragged import Ragged, join, within
from trl_rec.schedule.prefixes import column
from trl_rec.schedule.training_pairs import TrainingPairs, pair_keys


def check_preference_leaks(table: Dataset, dataset: RecDataset, *, feedback: bool) -> None:
    """Raises unless every row asks a user for a training target after (the newest part of) what came before it in
    training.

    Args:
        table: The preference table.
        dataset: Where its items and users come from.
        feedback: Whether the rejected items, too, must be the user's own training items, as those of
            `feedback_preferences` are.
    """
    users, chosen, history = column(table, "user"), column(table, "chosen"), split_rows(table, "history")
    unknown = np.flatnonzero(~_is_prefix(users, chosen, history, dataset.train))
    if len(unknown):
        row = unknown[0]
        raise ValueError(
            f"leak: row {row} asks user {users[row]} for item {chosen[row]} after a history that it did not follow in training"
            f"{_told(dataset, users[row], chosen[row])}; make the table from dataset.train alone"
        )
    rejected = split_rows(table, "rejected")
    owner = rejected.row_ids
    foreign = (
        np.flatnonzero(~TrainingPairs.read(dataset.train).hold(users[owner], rejected.values))
        if feedback
        else owner[:0]
    )
    if len(foreign):
        row, item = owner[foreign[0]], rejected.values[foreign[0]]
        raise ValueError(
            f"leak: row {row} rejects item {item}, on which user {users[row]} gave no feedback in training"
            f"{_told(dataset, users[row], item)}; make the table from dataset.train alone"
        )


def _is_prefix(users: np.ndarray, chosen: np.ndarray, history: Ragged, train: Dataset) -> np.ndarray:
    """`(N,)`: whether a training row of the user holds the history, and then the chosen item as a target."""
    before, targets = split_rows(train, "history"), split_rows(train, "targets")
    sequences = join(before, targets)
    source = sequences.row_ids
    at = np.flatnonzero(within(sequences.lengths) >= before.lengths[source])  # places of the targets
    keys = pair_keys(column(train, "user")[source[at]], sequences.values[at])
    order = np.argsort(keys, kind="stable")
    wanted = pair_keys(users, chosen)
    first, last = (np.searchsorted(keys[order], wanted, side) for side in ("left", "right"))
    row = np.repeat(np.arange(len(users)), last - first)
    place = at[order[np.repeat(first, last - first) + within(last - first)]]
    room = place - sequences.offsets[source[place]]
    fits = history.lengths[row] <= room
    return _matched(history, row[fits], sequences.values, place[fits])


def _matched(history: Ragged, row: np.ndarray, values: np.ndarray, place: np.ndarray) -> np.ndarray:
    """`(N,)`: whether the history is what stands in `values` before one of the row's places, compared from its end."""
    matched = np.zeros(len(history), bool)
    for back in range(1, int(history.lengths.max(initial=0)) + 2):
        whole = history.lengths[row] < back
        matched[row[whole]] = True
        row, place = row[~whole], place[~whole]
        if not len(row):
            break
        same = history.values[history.offsets[row + 1] - back] == values[place - back]
        row, place = row[same], place[same]
    return matched


def _told(dataset: RecDataset, user: int, item: int) -> str:
    """Where else the user's item stands."""
    for split in (dataset.validation, dataset.test):
        targets = split_rows(split, "targets")
        if ((column(split, "user")[targets.row_ids] == user) & (targets.values == item)).any():
            return f" (the {split.split} split asks for it)"
    return ""
