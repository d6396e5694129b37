"""Defines baselines that order rated candidates without a language model: random, popularity, item mean, and bias.

They use only the training split. Each baseline is a function that returns the place of every candidate: 0 for the best
candidate, and -1 as padding for lists shorter than the longest. Candidates with equal scores stay in the order in
which they are listed.

Legend: N: lists, m: candidates of the longest list.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from datasets import Dataset

from trl_rec.data.dataset import split_rows
from trl_rec.data.train_interactions import TrainInteractions
from trl_rec.decoding.candidates.orders import draw_slots
from trl_rec.evaluation.graded.measures import places_by_score
from trl_rec.ragged import Ragged, join


SWEEPS = 20  # iterations of the fit in `bias_places`; further iterations would hardly change the effects


def random_places(train: Dataset, rows: Dataset, num_items: int, seed: int = 0) -> np.ndarray:
    """Orders each list randomly, `(N, m)`. The order depends only on the seed and the row number."""
    row_numbers = rows.with_format("numpy")[:]["row"]
    counts = split_rows(rows, "candidates").lengths
    orders = [draw_slots(count, 1, (seed, row))[0] for count, row in zip(counts, row_numbers, strict=True)]
    return Ragged.from_lists(orders).padded()


def popularity_places(train: Dataset, rows: Dataset, num_items: int, seed: int = 0) -> np.ndarray:
    """Orders candidates by their number of interactions in the training split, `(N, m)`."""
    return _places(TrainInteractions.from_split(train, num_items).popularity, rows)


def item_mean_places(train: Dataset, rows: Dataset, num_items: int, seed: int = 0) -> np.ndarray:
    """Orders candidates by their mean training rating, `(N, m)`. Items without ratings get the mean of all ratings."""
    ratings = train_ratings(train, num_items)
    counts = np.bincount(ratings.item, minlength=num_items)
    totals = np.bincount(ratings.item, ratings.rating, num_items)
    return _places(np.where(counts > 0, totals / np.maximum(counts, 1), ratings.rating.mean()), rows)


def bias_places(train: Dataset, rows: Dataset, num_items: int, seed: int = 0, damping: float = 5.0) -> np.ndarray:
    """Orders candidates by the item effect of a model in which rating = mean + user effect + item effect, `(N, m)`.

    Each effect is shrunk towards 0: it is the mean of its residuals and of `damping` additional zeros. The user effect
    is the same for all candidates of a list and does not change their order. The model contains it so that the item
    effects do not depend on how generously the users rate.
    """
    ratings = train_ratings(train, num_items)
    residual = ratings.rating - ratings.rating.mean()
    item_counts = np.bincount(ratings.item, minlength=num_items) + damping
    user_counts = np.bincount(ratings.user) + damping

    # Alternating least squares: fit the item effect to the residuals without the user effect, and vice versa.
    item_effect = np.zeros(num_items)
    user_effect = np.zeros(len(user_counts))
    for _ in range(SWEEPS):
        item_effect = np.bincount(ratings.item, residual - user_effect[ratings.user], num_items) / item_counts
        user_effect = np.bincount(ratings.user, residual - item_effect[ratings.item]) / user_counts
    return _places(item_effect, rows)


RATED_BASELINES: dict[str, Callable[[Dataset, Dataset, int, int], np.ndarray]] = {
    "random": random_places,
    "popularity": popularity_places,
    "item mean": item_mean_places,
    "bias": bias_places,
}


class TrainRatings(NamedTuple):
    """The ratings of the training split, each interaction once, as arrays of equal length. User numbers start at 0."""

    user: np.ndarray
    item: np.ndarray
    rating: np.ndarray


def train_ratings(train: Dataset, num_items: int) -> TrainRatings:
    """Returns the ratings of the training split, each interaction once."""
    interactions = TrainInteractions.from_split(train, num_items)
    ratings = join(split_rows(train, "history_ratings"), split_rows(train, "target_ratings"))

    # Repeat the user of each row for every rating in the row.
    user_of_row = np.unique(train.with_format("numpy")[:]["user"], return_inverse=True)[1]
    user = user_of_row[interactions.sequences.row_ids]
    is_new = interactions.is_new
    return TrainRatings(user[is_new], interactions.sequences.values[is_new], ratings.values[is_new].astype(float))


def _places(item_scores: np.ndarray, rows: Dataset) -> np.ndarray:
    candidates = split_rows(rows, "candidates").padded()  # (N, m)
    return places_by_score(item_scores[np.maximum(candidates, 0)], candidates >= 0)
