"""Defines the baselines without learned parameters: random order, popularity, and item transitions.

The baseline with learned parameters, `sequence`, is in `trl_rec.schedule`.

The baselines in this module are fitted on the training split, and rank the whole catalogue. `fit` raises `ValueError`
if [`~trl_rec.data.dataset.check_is_train`] detects that the given split is not the training split. The baselines use
sparse arrays: memory and time grow with the number of items that are scored per history, not with users x items.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import numpy as np
from datasets import Dataset

from trl_rec.data.item_rows import Rows, item_rows
from trl_rec.data.train_interactions import TrainInteractions
from trl_rec.data.transitions import TransitionCounts, sum_by_key
from trl_rec.evaluation.random_order import permuted
from trl_rec.evaluation.rankings import INDEX, RANK, Rankings
from trl_rec.items.twins import Twins
from trl_rec.ragged import Ragged, within
from trl_rec.ranges import COUNT, SEED


BLOCK_ENTRIES = 1 << 21  # about this number of (row, item) pairs is ranked at a time; sorting them takes about 200 MB
SCORE_DECIMALS = 12  # scores are rounded to this number of decimals, so that rounding errors do not order items


class FittedBaseline(Protocol):
    """A baseline that is ready to rank. `histories` and `items` contain one row of item indices per user.
    [`RandomBaseline.rank`] describes the other arguments."""

    def rank(self, histories: Rows, top_k: int, exclude_history: bool, twins: Twins | None = None) -> Rankings:
        """Returns the best items `(num_users, top_k)`, with scores if the baseline has them."""

    def score(self, histories: Rows, items: Ragged) -> np.ndarray:
        """Returns one number per given item, `(len(items.values),)`. In each row, better items have higher numbers."""


class RandomBaseline:
    """Recommends items in a random order, drawn for each user. The order depends only on the seed and the number
    of the user's row.

    Args:
        seed (`int`, *optional*, defaults to `0`): Seed of the random orders.
    """

    def __init__(self, seed: int = 0) -> None:
        SEED.check("seed", seed)
        self.seed = seed
        self.num_items = 0

    def fit(self, train: Dataset, num_items: int | None = None) -> RandomBaseline:
        """Sets the number of items. `num_items` defaults to the largest index in `train` plus 1."""
        self.num_items = TrainInteractions.from_split(train, num_items).num_items
        return self

    def rank(self, histories: Rows, top_k: int, exclude_history: bool, twins: Twins | None = None) -> Rankings:
        """Returns the first items of each user's random order, `(num_users, top_k)`, without scores.

        A row is padded with -1 if fewer than `top_k` items can be recommended. If the items of the history are
        excluded and `twins` are given, all items with the same titles as these items are excluded too. This keeps the
        comparison fair: a model that writes titles cannot distinguish twins, so it must exclude them as well.
        """
        histories = _checked_histories(histories, top_k, self.num_items)
        excluded = _excluded(histories, exclude_history, twins)
        return Rankings(_rank_by_order(excluded, top_k, self.num_items, self._item_at))

    def score(self, histories: Rows, items: Ragged) -> np.ndarray:
        """Returns 0 for each of the given items, because on average over the seeds, no item ranks above another."""
        return np.zeros(len(items.values))

    def _item_at(self, rows: np.ndarray, positions: np.ndarray) -> np.ndarray:
        return permuted(positions, rows, self.seed, self.num_items)


class PopularityBaseline:
    """Recommends the items with the most interactions in the training split, in the same order for every user.

    Among equally popular items, the lower index comes first. `fit` sets two attributes: `popularity`
    `(num_items,)`, the number of interactions with each item, and `by_popularity` `(num_items,)`, the items in
    descending order of popularity.
    """

    def __init__(self) -> None:
        self.num_items = 0

    def fit(self, train: Dataset, num_items: int | None = None) -> PopularityBaseline:
        """Counts each training interaction once. `num_items` defaults to the largest index in `train` plus 1."""
        interactions = TrainInteractions.from_split(train, num_items)
        self.num_items = interactions.num_items
        self.popularity = interactions.popularity
        self.by_popularity = interactions.by_popularity
        return self

    def rank(self, histories: Rows, top_k: int, exclude_history: bool, twins: Twins | None = None) -> Rankings:
        """Returns items and their popularity, `(num_users, top_k)`. For the arguments, see [`RandomBaseline.rank`]."""
        histories = _checked_histories(histories, top_k, self.num_items)
        excluded = _excluded(histories, exclude_history, twins)
        items = _rank_by_order(excluded, top_k, self.num_items, lambda _, positions: self.by_popularity[positions])
        return Rankings(items, np.where(items >= 0, self.popularity[items], -np.inf).astype(np.float32))

    def score(self, histories: Rows, items: Ragged) -> np.ndarray:
        """Returns the popularity of each of the given items, `(len(items.values),)`. The histories have no effect."""
        scores: np.ndarray = self.popularity[items.values].astype(np.float64)
        return scores


class TransitionBaseline:
    """Recommends the items that followed the user's last items most often in the training split.

    Scores are those of [`~trl_rec.data.transitions.TransitionCounts`]. Items with equal scores are ordered by
    popularity, then by index. This includes the items with score 0, which come last.

    It is a strong baseline. With leave-one-out splits and excluded histories, it reaches Recall@10 .079 and NDCG@10
    .050 on Amazon Beauty, and .184 and .106 on MovieLens-100k. The values on Beauty are above the published values of
    TIGER and HSTU, and below those of the best variants of SASRec. `docs/results.md` names the sources.

    Args:
        window (`int`, *optional*, defaults to `3`): Maximum distance between two items that count as a transition.
        max_history (`int`, *optional*, defaults to `10`): Maximum number of history items to use. The newest are kept.
    """

    def __init__(self, window: int = 3, max_history: int = 10) -> None:
        COUNT.check("window", window)
        COUNT.check("max_history", max_history)
        self.window = window
        self.max_history = max_history
        self.num_items = 0

    def fit(self, train: Dataset, num_items: int | None = None) -> TransitionBaseline:
        """Counts each training transition once. `num_items` defaults to the largest index in `train` plus 1."""
        interactions = TrainInteractions.from_split(train, num_items)
        self.num_items = interactions.num_items
        self.popularity = interactions.popularity
        self.by_popularity = interactions.by_popularity
        self.counts = TransitionCounts.from_interactions(
            interactions, window=self.window, max_history=self.max_history
        )
        # `_rank_block` identifies items by their position in `by_popularity`, so that its stable sort keeps items with
        # equal scores in the order of popularity.
        self._position = np.argsort(self.by_popularity)  # (num_items,), the inverse of `by_popularity`
        return self

    def rank(self, histories: Rows, top_k: int, exclude_history: bool, twins: Twins | None = None) -> Rankings:
        """Returns items and their scores, `(num_users, top_k)`. For the arguments, see [`RandomBaseline.rank`]."""
        histories = _checked_histories(histories, top_k, self.num_items)
        excluded = _excluded(histories, exclude_history, twins)

        # Number of (row, item) pairs per row: one for each item that followed a recent item, `top_k` for popular
        # items, and two per excluded item. The two are the excluded item and a popular item that may replace it.
        costs = self.counts.num_followers(histories) + 2 * excluded.lengths + top_k

        ranks = _rank_in_blocks(
            costs, top_k, lambda rows: self._rank_block(histories.take(rows), excluded.take(rows), top_k), dtype=RANK
        )
        ranks["item"] = np.where(ranks["item"] >= 0, self.by_popularity[ranks["item"]], -1)
        return Rankings.from_ranks(ranks)

    def score(self, histories: Rows, items: Ragged) -> np.ndarray:
        """Returns numbers that order the given items of each row as `rank` does, `(len(items.values),)`.

        All given items are sorted in ascending order of score, then of popularity. The number of an item is its
        position in this order, so the best items have the highest numbers. Items with the same score and the same
        popularity have the same number.
        """
        histories = _checked_histories(histories, 1, self.num_items)
        scores = np.zeros(len(items.values))
        for rows in _blocks(self.counts.num_followers(histories) + items.lengths):
            # Sum the scores of each (row, item), and look up the sums of the given items. The given items are added
            # with score 0, so that each of them has a sum.
            followers, parts = self.counts.followers(histories.take(rows))
            given = items.take(rows)
            wanted = given.row_ids * self.num_items + given.values
            keys = np.concatenate([followers.row_ids * self.num_items + followers.values, wanted])
            keys, totals = sum_by_key(keys, np.concatenate([parts, np.zeros(len(wanted))]))
            start = items.offsets[rows[0]]
            scores[start : start + len(wanted)] = totals[np.searchsorted(keys, wanted)]

        both = np.stack([scores.round(SCORE_DECIMALS), self.popularity[items.values]], 1)
        places: np.ndarray = np.unique(both, axis=0, return_inverse=True)[1].reshape(-1).astype(np.float64)
        return places

    def _rank_block(self, histories: Ragged, excluded: Ragged, top_k: int) -> np.ndarray:
        """Returns the ranks of some rows, `(num_rows, top_k)` of type `RANK`, with items as positions in
        `by_popularity`."""
        # 1. Score the items that followed the recent items: one score per (recent item, following item).
        followers, scores = self.counts.followers(histories)

        # 2. Add the most popular items at score 0, enough to fill a list even if all excluded items are among them.
        num_popular = _num_needed(excluded, top_k, self.num_items)
        rows = [followers.row_ids, np.repeat(np.arange(len(histories)), num_popular)]
        items = [self._position[followers.values], within(num_popular)]
        parts = [scores, np.zeros(num_popular.sum())]

        # 3. Add -inf for each excluded item, so that its sum is -inf whatever its other scores are.
        rows.append(excluded.row_ids)
        items.append(self._position[excluded.values])
        parts.append(np.full(len(excluded.values), -np.inf))

        # 4. Sum the scores of each (row, item), and sort by row and descending score. Within a row, the keys are in
        #    the order of popularity. `lexsort` is stable, so items with equal scores stay in this order.
        keys, totals = sum_by_key(np.concatenate(rows) * self.num_items + np.concatenate(items), np.concatenate(parts))
        allowed = totals > -np.inf
        row, item = np.divmod(keys[allowed], self.num_items)
        totals = totals[allowed].round(SCORE_DECIMALS)
        order = np.lexsort((-totals, row))

        # 5. Cut each row to its best items.
        ranks = np.empty((len(histories), top_k), RANK)
        ranks["item"] = _top_of_each_row(row[order], item[order], len(histories), top_k)
        ranks["score"] = _top_of_each_row(row[order], totals[order], len(histories), top_k)
        return ranks


def _rank_by_order(
    excluded: Ragged, top_k: int, num_items: int, item_at: Callable[[np.ndarray, np.ndarray], np.ndarray]
) -> np.ndarray:
    """Ranks items by an order that does not depend on the history.

    `item_at(rows, positions)` returns the item at each position in the order of each row.
    """
    lengths = _num_needed(excluded, top_k, num_items)

    def _rank_block(block: np.ndarray) -> np.ndarray:
        # Take the first items of each row's order, enough to fill a list after all excluded items are removed.
        rows = np.repeat(np.arange(len(block)), lengths[block])
        items = item_at(block[rows], within(lengths[block]))

        # Encode each (row, item) pair as one integer, so that a single look-up removes the excluded items of all rows.
        removed = excluded.take(block)
        keep = ~np.isin(rows * num_items + items, removed.row_ids * num_items + removed.values)
        return _top_of_each_row(rows[keep], items[keep], len(block), top_k)

    return _rank_in_blocks(lengths + excluded.lengths, top_k, _rank_block)


def _excluded(histories: Ragged, exclude_history: bool, twins: Twins | None) -> Ragged:
    """Returns the items that must not be recommended, per row."""
    if not exclude_history:
        return Ragged(histories.values[:0], np.zeros(len(histories) + 1, np.int64))
    return histories if twins is None else twins.complete(histories)


def _checked_histories(histories: Rows, top_k: int, num_items: int) -> Ragged:
    if num_items == 0:
        raise ValueError("the baseline is not fitted; call fit with a training split first")
    COUNT.check("top_k", top_k)
    return item_rows(histories, "histories", num_items)


def _num_needed(excluded: Ragged, top_k: int, num_items: int) -> np.ndarray:
    """Returns how many items each row needs so that `top_k` are left after exclusion, `(num_rows,)`."""
    needed: np.ndarray = np.minimum(top_k + excluded.lengths, num_items)
    return needed


def _rank_in_blocks(
    costs: np.ndarray, top_k: int, rank_block: Callable[[np.ndarray], np.ndarray], dtype: np.dtype[Any] = INDEX
) -> np.ndarray:
    """Calls `rank_block` for each block of rows (see [`_blocks`]), and joins the results."""
    parts = [rank_block(rows) for rows in _blocks(costs)]
    return np.concatenate([np.empty((0, top_k), dtype), *parts])


def _blocks(costs: np.ndarray) -> list[np.ndarray]:
    """Divides rows among blocks of consecutive rows. The `costs` of a block add up to about `BLOCK_ENTRIES`."""
    block = np.cumsum(costs) // BLOCK_ENTRIES  # block number of each row
    edges = np.flatnonzero(np.diff(block)) + 1
    return [rows for rows in np.split(np.arange(len(costs)), edges) if len(rows)]


def _top_of_each_row(rows: np.ndarray, values: np.ndarray, num_rows: int, top_k: int) -> np.ndarray:
    """Returns the first `top_k` values of each row, `(num_rows, top_k)`, padded with -1. `rows` must be ascending."""
    rank = within(np.bincount(rows, minlength=num_rows))
    keep = rank < top_k
    ranked = np.full((num_rows, top_k), -1, values.dtype)
    ranked[rows[keep], rank[keep]] = values[keep]
    return ranked
