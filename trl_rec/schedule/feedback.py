"""Negatives that the users named themselves: what they disliked, or were lukewarm about, against what they liked.

Ratings tell which is which, or any score for each interaction that the caller brings. Prompts, chosen and rejected
items all come from the training split.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from datasets import Dataset

from trl_rec.data.dataset import check_is_train, split_rows
from trl_rec.items.catalog import ItemCatalog
from trl_rec.ragged import Ragged, join
from trl_rec.schedule.draws import draw_below
from trl_rec.schedule.preferences import check_negatives, preference_table
from trl_rec.schedule.prefixes import check_aligned, column, prefixes_at, ratings_of, sampled
from trl_rec.schedule.training_pairs import pair_keys, surface_codes


Cut: TypeAlias = tuple[float, float]
Scores: TypeAlias = str | Ragged | Callable[[Dataset], Ragged]


def feedback_preferences(
    train: Dataset,
    *,
    difficulty: str,
    liked: Cut = (5, 5),
    neutral: Cut = (3, 4),
    disliked: Cut = (1, 2),
    scores: Scores | None = None,
    num_negatives: int = 20,
    max_prompts: int | None = None,
    max_history: int | None = None,
    seed: int = 0,
    catalog: ItemCatalog | None = None,
) -> Dataset:
    """Preference table with a prompt for each training target that the user liked.

    Rejected are the user's disliked (easy) or neutral (hard) items from anywhere in training, those that the user
    liked another time left out. Where there are more than `num_negatives`, which of them is a function of the seed and
    the target.

    Args:
        train: `RecDataset.train`. The validation and test splits are refused.
        difficulty: `"easy"` or `"hard"`.
        liked, neutral, disliked: Lowest and highest score of each, both included. What lies in none of them, NaN too,
            is not used but as history.
        scores (*optional*): One number for each item of a row, history and targets joined; ratings otherwise. A
            `Ragged`, the name of a column of lists in `train`, or a callable that is given `train` and returns a
            `Ragged`. A dataset folder keeps no text of reviews, so a callable that scores reviews looks them up by the
            row's `user` and items.
        num_negatives: Most negatives of a prompt.
        max_prompts (*optional*): Most prompts, drawn evenly by the seed.
        max_history (*optional*): Most items of a history, the newest ones.
        seed: Chooses prompts and negatives.
        catalog (*optional*): Needed where items may be written the same. Those then count as one item: it is liked if
            one of them is.
    """
    check_is_train(train, "a preference")
    check_negatives(num_negatives)
    if difficulty not in ("easy", "hard"):
        raise ValueError(
            f"difficulty must be easy or hard, not {difficulty!r}: feedback is either disliked or neutral"
        )
    _check_cuts(liked, neutral, disliked)
    given = _scores(train, scores)
    _check_better_than_liked(given, liked)
    good = _inside(given, liked, "liked")
    bad = _inside(given, disliked, "disliked") if difficulty == "easy" else _inside(given, neutral, "neutral")
    of_targets = Ragged(good, given.offsets).slice(split_rows(train, "history").lengths, given.lengths)
    liked_targets = np.flatnonzero(of_targets.values)
    if not len(liked_targets):
        raise ValueError(f"no target of the train split has a score in liked={liked}; widen the cut")
    targets = liked_targets[sampled(len(liked_targets), max_prompts, seed)]
    prefixes = prefixes_at(train, targets, max_history=max_history)
    pool = _Pool.read(train, good, bad, None if catalog is None else surface_codes(catalog))
    return preference_table(prefixes, pool.draw(column(prefixes, "user"), targets, num_negatives, seed))


def _check_cuts(liked: Cut, neutral: Cut, disliked: Cut) -> None:
    told = f"liked={liked}, neutral={neutral}, disliked={disliked}"
    if not all(low <= high for low, high in (liked, neutral, disliked)):
        raise ValueError(f"{told}: each cut is a lowest and a highest score, in this order")
    if not disliked[1] < neutral[0] <= neutral[1] < liked[0]:
        raise ValueError(f"{told}: the cuts must not overlap, and rise from disliked over neutral to liked")


def _check_better_than_liked(given: Ragged, liked: Cut) -> None:
    """Of ratings from 1 to 10, the usual cuts would take the middle for the best."""
    best = given.values.max(initial=-np.inf, where=~np.isnan(given.values))
    if best > liked[1]:
        raise ValueError(
            f"the training split has scores up to {best:g}, above liked={liked}; give cuts for the scale it has"
        )


def _scores(train: Dataset, scores: Scores | None) -> Ragged:
    if scores is None:
        ratings = ratings_of(train)
        if ratings is None:
            raise ValueError(
                "the training split has no ratings to tell liked from disliked; prepare the data with ratings, or leave out "
                "the stages with source: feedback"
            )
        return ratings
    if isinstance(scores, str):
        if scores not in train.column_names:
            raise ValueError(
                f"the training split has no column {scores!r} of scores; it has {', '.join(train.column_names)}"
            )
        scores = split_rows(train, scores)
    elif not isinstance(scores, Ragged):
        scores = scores(train)
    check_aligned(scores, train, "scores")
    return scores


def _inside(scores: Ragged, cut: Cut, name: str) -> np.ndarray:
    """Which scores lie in the cut; a cut without any is refused."""
    inside = (scores.values >= cut[0]) & (scores.values <= cut[1])
    if not inside.any():
        known = scores.values[~np.isnan(scores.values)]
        told = f"they run from {known.min():g} to {known.max():g}" if len(known) else "there are none at all"
        raise ValueError(f"no score of the training split lies in {name}={cut}: {told}; give cuts that fit them")
    return inside


@dataclass(frozen=True, eq=False)
class _Pool:
    """What may be rejected: each user's items that were scored badly and never well, of those written the same one.

    Args:
        keys (`np.ndarray` of shape `(P,)`): What [`pair_keys`] makes of user and code, ascending.
        items (`np.ndarray` of shape `(P,)`): An item with that code which this user scored badly.
    """

    keys: np.ndarray
    items: np.ndarray

    @classmethod
    def read(cls, train: Dataset, good: np.ndarray, bad: np.ndarray, codes: np.ndarray | None) -> _Pool:
        sequences = join(split_rows(train, "history"), split_rows(train, "targets"))
        items = sequences.values
        keys = pair_keys(column(train, "user")[sequences.row_ids], items if codes is None else codes[items])
        pool, place = np.unique(keys[bad], return_index=True)
        left = ~np.isin(pool, keys[good])
        return cls(pool[left], items[bad][place[left]])

    def draw(self, users: np.ndarray, targets: np.ndarray, count: int, seed: int) -> Ragged:
        """Row `i`: up to `count` items of `users[i]`, by the seed and `targets[i]`."""
        start, stop = (np.searchsorted(self.keys, pair_keys(owner, np.array(0))) for owner in (users, users + 1))
        drawn = np.sort(draw_below(targets, count, stop - start, seed), 1)
        return Ragged.from_lengths(self.items[(start[:, None] + drawn)[drawn >= 0]], (drawn >= 0).sum(1))
