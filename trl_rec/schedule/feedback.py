"""Preference tables from users' ratings: items that a user liked against items that the same user disliked.

Ratings, or any other score per interaction that the caller provides, decide what is liked, neutral or disliked. All
prompts, chosen items and rejected items come from the training split.
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
from trl_rec.ranges import COUNT
from trl_rec.schedule.draws import draw_below
from trl_rec.schedule.preferences import preference_table
from trl_rec.schedule.prefixes import check_aligned, column, even_sample, prefixes_at, ratings_of
from trl_rec.schedule.training_pairs import pair_keys, surface_codes


ScoreRange: TypeAlias = tuple[float, float]  # lowest and highest score, both included
Scores: TypeAlias = str | Ragged | Callable[[Dataset], Ragged]


def feedback_preferences(
    train: Dataset,
    *,
    difficulty: str,
    liked: ScoreRange = (5, 5),
    neutral: ScoreRange = (3, 4),
    disliked: ScoreRange = (1, 2),
    scores: Scores | None = None,
    num_negatives: int = 20,
    max_prompts: int | None = None,
    max_history: int | None = None,
    seed: int = 0,
    catalog: ItemCatalog | None = None,
) -> Dataset:
    """Preference table with one prompt per training target that the user liked.

    The rejected items are the user's disliked (easy) or neutral (hard) items from anywhere in training, except those
    that the user also liked at another time. If there are more than `num_negatives`, a sample that depends only on the
    seed and the target is used.

    Args:
        train: `RecDataset.train`. Raises for the validation and test splits.
        difficulty: `"easy"` or `"hard"`.
        liked, neutral, disliked (*optional*): Lowest and highest score of such items, both included. Items with any
            other score, NaN included, occur in histories only.
        scores (*optional*, defaults to the ratings): One number per item of each row, history and targets joined: a
            `Ragged`, the name of a column of lists in `train`, or a function from `train` to a `Ragged`. Dataset
            folders do not contain review texts; a function that scores reviews finds them by the row's `user` and
            items.
        num_negatives (*optional*, defaults to `20`): Largest number of negatives per prompt.
        max_prompts (*optional*, defaults to all): Number of prompts, drawn evenly by the seed.
        max_history (*optional*, defaults to all): Number of items of a history; the newest ones are kept.
        seed (*optional*, defaults to `0`): Chooses prompts and negatives.
        catalog (*optional*): Needed if several items may be written in the same way. Such items then count
            as one, which is liked if any of them is liked.
    """
    check_is_train(train, "a preference")
    COUNT.check("num_negatives", num_negatives)
    if difficulty not in ("easy", "hard"):
        raise ValueError(
            f"difficulty must be easy or hard, not {difficulty!r}: feedback is either disliked or neutral"
        )
    _check_ranges(liked, neutral, disliked)

    # 1. Which interactions are liked, and which may be rejected.
    item_scores = _load_scores(train, scores)
    _check_scale(item_scores, liked)
    is_liked = _inside(item_scores, liked, "liked")
    if difficulty == "easy":
        is_negative = _inside(item_scores, disliked, "disliked")
    else:
        is_negative = _inside(item_scores, neutral, "neutral")

    # 2. The liked targets, and the prompts that lead to them.
    num_history = split_rows(train, "history").lengths
    is_liked_target = Ragged(is_liked, item_scores.offsets).slice(num_history, item_scores.lengths)
    liked_targets = np.flatnonzero(is_liked_target.values)  # numbered through all rows
    if not len(liked_targets):
        raise ValueError(f"no target of the train split has a score in liked={liked}; widen the range")
    targets = liked_targets[even_sample(len(liked_targets), max_prompts, seed)]
    prefixes = prefixes_at(train, targets, max_history=max_history)

    # 3. Negatives of the same user.
    codes = None if catalog is None else surface_codes(catalog)
    pool = _NegativePool.from_split(train, is_liked, is_negative, codes)
    return preference_table(prefixes, pool.draw(column(prefixes, "user"), targets, num_negatives, seed))


def _check_ranges(liked: ScoreRange, neutral: ScoreRange, disliked: ScoreRange) -> None:
    values = f"liked={liked}, neutral={neutral}, disliked={disliked}"
    if not all(low <= high for low, high in (liked, neutral, disliked)):
        raise ValueError(f"{values}: each is a lowest and a highest score, in this order")
    if not disliked[1] < neutral[0] <= neutral[1] < liked[0]:
        raise ValueError(f"{values}: the ranges must not overlap, and must rise from disliked over neutral to liked")


def _check_scale(scores: Ragged, liked: ScoreRange) -> None:
    """Raises if a score is above `liked`: with ratings from 1 to 10, the defaults would take 5 for the best."""
    best = scores.values.max(initial=-np.inf, where=~np.isnan(scores.values))
    if best > liked[1]:
        raise ValueError(
            f"the training split has scores up to {best:g}, above liked={liked}; give ranges that fit its scale"
        )


def _load_scores(train: Dataset, scores: Scores | None) -> Ragged:
    """The scores of all items of all rows, from whichever form they are given in."""
    if scores is None:
        ratings = ratings_of(train)
        if ratings is None:
            raise ValueError(
                "the training split has no ratings to tell liked from disliked items; prepare the data with ratings, "
                "or leave out the stages with source: feedback"
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


def _inside(scores: Ragged, score_range: ScoreRange, name: str) -> np.ndarray:
    """Which scores lie in the range, `(len(scores.values),)`; raises if none does."""
    low, high = score_range
    inside = (scores.values >= low) & (scores.values <= high)
    if not inside.any():
        known = scores.values[~np.isnan(scores.values)]
        extent = f"they run from {known.min():g} to {known.max():g}" if len(known) else "there are no scores at all"
        raise ValueError(
            f"no score of the training split lies in {name}={score_range}: {extent}; give ranges that fit them"
        )
    return inside


@dataclass(frozen=True, eq=False)
class _NegativePool:
    """The items that may be rejected, per user: scored badly and never well.

    Items are compared by their codes, so that of several items with the same text one at most is in a user's pool.

    Args:
        keys (`np.ndarray` of shape `(P,)`): The key of user and code, see [`pair_keys`], in ascending order.
        items (`np.ndarray` of shape `(P,)`): An item with that code which the user scored badly.
    """

    keys: np.ndarray
    items: np.ndarray

    @classmethod
    def from_split(
        cls, train: Dataset, is_liked: np.ndarray, is_negative: np.ndarray, codes: np.ndarray | None
    ) -> _NegativePool:
        """The pool of a training split, given which of its interactions are liked and which may be rejected."""
        sequences = join(split_rows(train, "history"), split_rows(train, "targets"))
        items = sequences.values
        users = column(train, "user")[sequences.row_ids]
        keys = pair_keys(users, items if codes is None else codes[items])

        pool, first = np.unique(keys[is_negative], return_index=True)
        never_liked = ~np.isin(pool, keys[is_liked])
        return cls(pool[never_liked], items[is_negative][first[never_liked]])

    def draw(self, users: np.ndarray, targets: np.ndarray, count: int, seed: int) -> Ragged:
        """Up to `count` items of each user's pool, one row per target, drawn by the seed and the target's number."""
        # The pool of a user is a slice, as keys sort by user first.
        start = np.searchsorted(self.keys, pair_keys(users, np.array(0)))
        stop = np.searchsorted(self.keys, pair_keys(users + 1, np.array(0)))

        drawn = np.sort(draw_below(targets, count, stop - start, seed), 1)  # (N, count), -1 where there is none
        is_drawn = drawn >= 0
        return Ragged.from_lengths(self.items[(start[:, None] + drawn)[is_drawn]], is_drawn.sum(1))
