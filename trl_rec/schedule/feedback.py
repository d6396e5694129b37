"""Builds preference tables from ratings: a user liked the chosen items, and rated the rejected items lower.

A preference table has one row per prompt, with a chosen item and its rejected items (see `preferences.py`).
Interactions are liked, neutral or disliked according to their rating, or another score that the caller provides. All
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
Scores: TypeAlias = str | Ragged | Callable[[Dataset], Ragged]  # see the argument `scores` below


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
    """Builds a preference table with one prompt per training target that the user liked.

    With `difficulty="easy"`, the rejected items are the items that the user disliked anywhere in the training split.
    With `"hard"`, they are the neutral items. Items that the user also liked at another time are left out. If more
    than `num_negatives` remain, a random sample is used, which depends only on the seed and the target. If none
    remain, the row has no rejected items.

    Args:
        train: `RecDataset.train`. Other splits raise `ValueError`.
        difficulty: `"easy"` or `"hard"`.
        liked, neutral, disliked (*optional*): Lowest and highest score of liked, neutral and disliked items, both
            inclusive. Items with any other score, including NaN, occur only in histories.
        scores (*optional*, defaults to the ratings): One score per item of each row, first for the history and then
            for the targets. Either a `Ragged`, the name of a column of lists in `train`, or a function that maps
            `train` to a `Ragged`. Dataset folders do not contain review texts, so a function that scores reviews has
            to look up the texts by the `user` and the items of each row.
        num_negatives (*optional*, defaults to `20`): Maximum number of negatives per prompt.
        max_prompts (*optional*, defaults to all): Maximum number of prompts, sampled uniformly.
        max_history (*optional*, defaults to all): Maximum number of history items. The newest items are kept.
        seed (*optional*, defaults to `0`): Seed of the sampled prompts and negatives.
        catalog (*optional*): Required if several items may have the same text. They then count as one item, which is
            liked if any of them is liked.
    """
    check_is_train(train, "preferences")
    COUNT.check("num_negatives", num_negatives)
    if difficulty not in ("easy", "hard"):
        raise ValueError(
            f"difficulty must be 'easy' (disliked items) or 'hard' (neutral items) for feedback, not {difficulty!r}"
        )
    _check_ranges(liked, neutral, disliked)

    # 1. Find the interactions that are liked, and those that may be rejected.
    item_scores = _load_scores(train, scores)
    _check_scale(item_scores, liked)
    is_liked = _inside(item_scores, liked, "liked")
    if difficulty == "easy":
        is_negative = _inside(item_scores, disliked, "disliked")
    else:
        is_negative = _inside(item_scores, neutral, "neutral")

    # 2. Sample the liked targets, and build their prompts.
    num_history = split_rows(train, "history").lengths
    is_liked_target = Ragged(is_liked, item_scores.offsets).slice(num_history, item_scores.lengths)
    liked_targets = np.flatnonzero(is_liked_target.values)  # indices into the targets of all rows
    if not len(liked_targets):
        raise ValueError(f"no target of the training split has a score in liked={liked}; widen the range")
    targets = liked_targets[even_sample(len(liked_targets), max_prompts, seed)]
    prefixes = prefixes_at(train, targets, max_history=max_history)

    # 3. For each liked target, draw negatives from the items that the same user rated lower.
    codes = None if catalog is None else surface_codes(catalog)
    pool = _NegativePool.from_split(train, is_liked, is_negative, codes)
    return preference_table(prefixes, pool.draw(column(prefixes, "user"), targets, num_negatives, seed))


def _check_ranges(liked: ScoreRange, neutral: ScoreRange, disliked: ScoreRange) -> None:
    """Raises `ValueError` if a range is invalid, or if the ranges overlap or are in the wrong order."""
    values = f"liked={liked}, neutral={neutral}, disliked={disliked}"
    if not all(low <= high for low, high in (liked, neutral, disliked)):
        raise ValueError(f"{values}: each range must be a lowest and a highest score, in this order")
    if not disliked[1] < neutral[0] <= neutral[1] < liked[0]:
        raise ValueError(f"{values}: the ranges must not overlap, and must be in the order disliked, neutral, liked")


def _check_scale(scores: Ragged, liked: ScoreRange) -> None:
    """Raises `ValueError` if a score is above the range `liked`.

    Without this check, the default ranges would treat 5 as the best rating on a scale from 1 to 10.
    """
    best = scores.values.max(initial=-np.inf, where=~np.isnan(scores.values))
    if best > liked[1]:
        raise ValueError(
            f"the training split has scores up to {best:g}, above liked={liked}; give ranges that fit the scale of "
            "the scores"
        )


def _load_scores(train: Dataset, scores: Scores | None) -> Ragged:
    """Returns the scores of all items in all rows, converted to a `Ragged`."""
    # By default, the scores are the ratings.
    if scores is None:
        ratings = ratings_of(train)
        if ratings is None:
            raise ValueError(
                "the training split has no ratings that distinguish liked from disliked items; prepare the data "
                "with ratings, or leave out the stages whose source is 'feedback'"
            )
        return ratings

    # Otherwise, read a column, or call a function.
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
    """Returns which scores lie in the range, `(len(scores.values),)`. Raises `ValueError` if there are none."""
    low, high = score_range
    inside = (scores.values >= low) & (scores.values <= high)
    if not inside.any():
        known = scores.values[~np.isnan(scores.values)]
        extent = f"the scores are from {known.min():g} to {known.max():g}" if len(known) else "there are no scores"
        raise ValueError(
            f"no score of the training split is in the range {name}={score_range} ({extent}); give ranges that fit "
            "the scores"
        )
    return inside


@dataclass(frozen=True, eq=False)
class _NegativePool:
    """The items that may be rejected, per user: disliked items that the user never liked.

    With `difficulty="hard"`, the pool contains neutral instead of disliked items. Each item has a code, which is a
    number. With a catalogue, items with the same text have the same code. A user's pool contains at most one item per
    code.

    Args:
        keys (`np.ndarray` of shape `(P,)`): The key of each pair of user and code (see [`pair_keys`]), in ascending
            order.
        items (`np.ndarray` of shape `(P,)`): For each pair, an item with this code that the user disliked (or, with
            `difficulty="hard"`, scored as neutral).
    """

    keys: np.ndarray
    items: np.ndarray

    @classmethod
    def from_split(
        cls, train: Dataset, is_liked: np.ndarray, is_negative: np.ndarray, codes: np.ndarray | None
    ) -> _NegativePool:
        """Builds the pool from a training split.

        Args:
            train: The training split.
            is_liked, is_negative: Which interactions are liked, and which may be rejected. One boolean per item of
                each row, first for the history and then for the targets.
            codes (*optional*): The code of each item's text. By default, every item has its own code.
        """
        sequences = join(split_rows(train, "history"), split_rows(train, "targets"))
        items = sequences.values
        users = column(train, "user")[sequences.row_ids]
        keys = pair_keys(users, items if codes is None else codes[items])

        # Collect the distinct pairs to reject, without those that were liked at another time.
        pool, first = np.unique(keys[is_negative], return_index=True)
        never_liked = ~np.isin(pool, keys[is_liked])
        return cls(pool[never_liked], items[is_negative][first[never_liked]])

    def draw(self, users: np.ndarray, targets: np.ndarray, count: int, seed: int) -> Ragged:
        """Draws up to `count` items per target from the user's pool. The draw depends on the seed and the target."""
        # The pool of a user is a slice, because keys are sorted by user first.
        start = np.searchsorted(self.keys, pair_keys(users, np.array(0)))
        stop = np.searchsorted(self.keys, pair_keys(users + 1, np.array(0)))

        drawn = np.sort(draw_below(targets, count, stop - start, seed), 1)  # (N, count), padded with -1
        is_drawn = drawn >= 0
        return Ragged.from_lengths(self.items[(start[:, None] + drawn)[is_drawn]], is_drawn.sum(1))
