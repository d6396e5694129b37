"""Orders of rated candidates without a model of language, that any model should be shown beside: by chance, by how
often an item is chosen, by its mean rating, and by what is left of its ratings once their users' habits are taken out.

All learn from the training split alone. Each gives the place of every candidate, from 0; equal scores go by the items'
index.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from datasets import Dataset

from trl_rec.data.dataset import split_rows
from trl_rec.decoding.candidates.orders import draw_slots
from trl_rec.evaluation.graded.measures import places_of
from trl_rec.evaluation.training_log import TrainingLog
from trl_rec.ragged import Ragged, join


SWEEPS = 20  # of the bias model; its effects then move by less than a thousandth of a star


def random_places(train: Dataset, rows: Dataset, num_items: int, seed: int = 0) -> np.ndarray:
    """`(N, m)`: a random order of each list, the same for equal (seed, row)."""
    numbers, counts = rows.with_format("numpy")[:]["row"], split_rows(rows, "candidates").lengths
    orders = [draw_slots(count, 1, (seed, row))[0] for count, row in zip(counts, numbers, strict=True)]
    return Ragged.from_lists(orders).padded()


def popularity_places(train: Dataset, rows: Dataset, num_items: int, seed: int = 0) -> np.ndarray:
    """`(N, m)`: the order of how often items occur in training."""
    return _by_score(TrainingLog.read(train, num_items).popularity, rows)


def item_mean_places(train: Dataset, rows: Dataset, num_items: int, seed: int = 0) -> np.ndarray:
    """`(N, m)`: the order of items' mean training rating, that of all ratings for an item without any."""
    log = _ratings(train, num_items)
    counts, total = (np.bincount(log.item, weights, num_items) for weights in (None, log.rating))
    return _by_score(np.where(counts > 0, total / np.maximum(counts, 1), log.rating.mean()), rows)


def bias_places(train: Dataset, rows: Dataset, num_items: int, seed: int = 0, damping: float = 5.0) -> np.ndarray:
    """`(N, m)`: the order of item effects in the model rating = mean + user effect + item effect, each effect shrunk
    as if it had `damping` more ratings at 0. The user's own effect moves all candidates alike."""
    log = _ratings(train, num_items)
    rating = log.rating - log.rating.mean()
    counts = np.bincount(log.item, minlength=num_items) + damping, np.bincount(log.user) + damping
    of_item, of_user = np.zeros(num_items), np.zeros(len(counts[1]))
    for _ in range(SWEEPS):
        of_item = np.bincount(log.item, rating - of_user[log.user], num_items) / counts[0]
        of_user = np.bincount(log.user, rating - of_item[log.item]) / counts[1]
    return _by_score(of_item, rows)


RATED_BASELINES: dict[str, Callable[[Dataset, Dataset, int, int], np.ndarray]] = {
    "random": random_places,
    "popularity": popularity_places,
    "item mean": item_mean_places,
    "bias": bias_places,
}


class _Ratings(NamedTuple):
    """The training ratings, each once: user, item and rating of every one."""

    user: np.ndarray
    item: np.ndarray
    rating: np.ndarray


def _ratings(train: Dataset, num_items: int) -> _Ratings:
    log = TrainingLog.read(train, num_items)
    ratings = join(split_rows(train, "history_ratings"), split_rows(train, "target_ratings"))
    users = np.unique(train.with_format("numpy")[:]["user"], return_inverse=True)[1]
    user = users[log.sequences.row_ids]
    return _Ratings(user[log.new], log.sequences.values[log.new], ratings.values[log.new].astype(float))


def _by_score(scores: np.ndarray, rows: Dataset) -> np.ndarray:
    candidates = split_rows(rows, "candidates").padded()
    # ties by the items' index: by their place in the list they would go by time
    return places_of(scores[np.maximum(candidates, 0)] - 0.0, candidates >= 0)
