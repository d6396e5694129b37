"""Recommenders without parameters, as baselines for any model: random, popular, and item-to-item transitions.

All three use the training split alone, raise for any other split, and rank the whole catalogue. They use sparse
arrays: memory and time grow with the number of candidates that the histories lead to, not with users x items.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from datasets import Dataset

from trl_rec.evaluation.random_order import permuted
from trl_rec.evaluation.rows import Rows, item_rows
from trl_rec.evaluation.train_interactions import TrainInteractions
from trl_rec.items.twins import Twins
from trl_rec.ragged import Ragged, within
from trl_rec.ranges import COUNT, SEED


BLOCK_ENTRIES = 1 << 21  # (row, item) pairs that are ranked at a time; sorting them takes about 200 MB
SCORE_DECIMALS = 12  # smaller differences between scores come from the order of float additions, and count as ties


class RandomBaseline:
    """A random order of the catalogue for each user: what pure chance reaches. Equal (seed, row) give equal orders.

    Args:
        seed (`int`, *optional*, defaults to `0`): Chooses the orders.
    """

    def __init__(self, seed: int = 0) -> None:
        SEED.check("seed", seed)
        self.seed = seed
        self.num_items = 0

    def fit(self, train: Dataset, num_items: int | None = None) -> RandomBaseline:
        """Sets the number of items: `num_items`, or else the largest index in `train` plus 1."""
        self.num_items = TrainInteractions.from_split(train, num_items).num_items
        return self

    def rank(self, histories: Rows, top_k: int, exclude_history: bool, twins: Twins | None = None) -> np.ndarray:
        """Item indices `(num_users, top_k)`, best first, -1 where the catalogue is exhausted.

        Excluding a history excludes the `twins` of its items too, which is what models do where items are written as
        titles.
        """
        histories = _checked_histories(histories, top_k, self.num_items)
        excluded = _excluded(histories, exclude_history, twins)
        return _rank_by_order(excluded, top_k, self.num_items, self._item_at)

    def _item_at(self, rows: np.ndarray, positions: np.ndarray) -> np.ndarray:
        return permuted(positions, rows, self.seed, self.num_items)


class PopularityBaseline:
    """The items chosen most often in training, the same order for every user; ties go to the lower index.

    `fit` sets two attributes: `popularity` `(num_items,)`, how often each item was chosen, and `by_popularity`
    `(num_items,)`, the items in descending order of it.
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

    def rank(self, histories: Rows, top_k: int, exclude_history: bool, twins: Twins | None = None) -> np.ndarray:
        """Item indices `(num_users, top_k)`, best first; the arguments are as for [`RandomBaseline`]."""
        histories = _checked_histories(histories, top_k, self.num_items)
        excluded = _excluded(histories, exclude_history, twins)
        return _rank_by_order(excluded, top_k, self.num_items, lambda _, positions: self.by_popularity[positions])


class TransitionBaseline:
    """Recommends what followed the user's last items in the training histories: a counter without parameters.

    T[i, j] is the sum of 1/d over all training pairs of an item i and an item j that follows it d <= `window`
    positions later; each row of T is then divided by its sum. The score of j is the sum of T[i, j] / (1 + w) over the
    last `max_history` items i of a history, where w counts back from the newest item, w = 0. Ties go to the more
    popular item, then to the lower index; items with score 0 follow in the same order.

    It is hard to beat. With leave-one-out splits and excluded histories, it reaches Recall@10 .079 and NDCG@10 .050 on
    Amazon Beauty, above the figures published there for SASRec, HSTU and TIGER and for much other neural work. On
    MovieLens-100k it reaches .184 and .106.

    Args:
        window (`int`, *optional*, defaults to `3`): Largest distance of a pair.
        max_history (`int`, *optional*, defaults to `10`): Number of items of the history that count.
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
        self.by_popularity = interactions.by_popularity

        # From here on an item is its position in the order of popularity, so that a stable sort breaks ties correctly.
        self._position = np.argsort(self.by_popularity)  # (num_items,), the inverse of `by_popularity`
        first, second, distance = interactions.pairs(self.window)
        pairs = self._position[first] * self.num_items + self._position[second]

        # The counts as a sparse matrix in row order: one entry per distinct pair.
        keys, inverse = np.unique(pairs, return_inverse=True)
        weights = np.bincount(inverse, 1 / distance, len(keys))
        source, target = np.divmod(keys, max(self.num_items, 1))

        # Each row is divided by its sum, and stored as ragged rows of targets and weights.
        totals = np.bincount(source, weights, self.num_items)
        lengths = np.bincount(source, minlength=self.num_items)
        self._targets = Ragged.from_lengths(target, lengths)
        self._weights = Ragged.from_lengths(weights / totals[source], lengths)
        return self

    def rank(self, histories: Rows, top_k: int, exclude_history: bool, twins: Twins | None = None) -> np.ndarray:
        """Item indices `(num_users, top_k)`, best first; the arguments are as for [`RandomBaseline`]."""
        histories = _checked_histories(histories, top_k, self.num_items)
        excluded = _excluded(histories, exclude_history, twins)
        recent = Ragged(self._position[histories.values], histories.offsets).tail(self.max_history)
        excluded = Ragged(self._position[excluded.values], excluded.offsets)

        # What a row adds to its block: the targets of its recent items, `top_k` popular items, and its excluded items
        # twice (as they are, and as the further popular items that take their place).
        num_targets = np.bincount(recent.row_ids, self._targets.lengths[recent.values], len(recent))
        costs = num_targets.astype(np.int64) + 2 * excluded.lengths + top_k

        ranked = _rank_in_blocks(
            costs, top_k, lambda rows: self._rank_block(recent.take(rows), excluded.take(rows), top_k)
        )
        return np.where(ranked >= 0, self.by_popularity[ranked], -1)

    def _rank_block(self, recent: Ragged, excluded: Ragged, top_k: int) -> np.ndarray:
        # 1. What followed the recent items: one score per (history item, target).
        age = np.repeat(recent.lengths, recent.lengths) - 1 - within(recent.lengths)  # 0 for the newest item
        targets = self._targets.take(recent.values)
        scores = self._weights.take(recent.values).values / (1 + age)[targets.row_ids]

        # 2. Enough of the most popular items, at score 0, to fill a list even if all excluded items are among them.
        num_popular = _num_needed(excluded, top_k, self.num_items)
        rows = [recent.row_ids[targets.row_ids], np.repeat(np.arange(len(recent)), num_popular)]
        items = [targets.values, within(num_popular)]
        parts = [scores, np.zeros(num_popular.sum())]

        # 3. An excluded item gets -inf, which no sum of scores can undo.
        rows.append(excluded.row_ids)
        items.append(excluded.values)
        parts.append(np.full(len(excluded.values), -np.inf))

        # 4. The sum of each (row, item), sorted by row and descending score. The keys ascend by popularity within a
        #    row and `lexsort` is stable, so that ties stay in that order.
        keys, totals = _sum_by_key(
            np.concatenate(rows) * self.num_items + np.concatenate(items), np.concatenate(parts)
        )
        allowed = totals > -np.inf
        row, item = np.divmod(keys[allowed], self.num_items)
        order = np.lexsort((-totals[allowed].round(SCORE_DECIMALS), row))
        return _top_of_each_row(row[order], item[order], len(recent), top_k)


def _rank_by_order(
    excluded: Ragged, top_k: int, num_items: int, item_at: Callable[[np.ndarray, np.ndarray], np.ndarray]
) -> np.ndarray:
    """Ranks by an order known in advance: `item_at(rows, positions)` is the item at a position of a row's order."""
    lengths = _num_needed(excluded, top_k, num_items)

    def _rank_block(block: np.ndarray) -> np.ndarray:
        # The beginning of each row's order, long enough to fill a list after all excluded items are removed.
        rows = np.repeat(np.arange(len(block)), lengths[block])
        items = item_at(block[rows], within(lengths[block]))

        # A (row, item) pair becomes one integer, so that one look-up removes the excluded items of all rows.
        removed = excluded.take(block)
        keep = ~np.isin(rows * num_items + items, removed.row_ids * num_items + removed.values)
        return _top_of_each_row(rows[keep], items[keep], len(block), top_k)

    return _rank_in_blocks(lengths + excluded.lengths, top_k, _rank_block)


def _excluded(histories: Ragged, exclude_history: bool, twins: Twins | None) -> Ragged:
    """The items that no list may contain, per row."""
    if not exclude_history:
        return Ragged(histories.values[:0], np.zeros(len(histories) + 1, np.int64))
    return histories if twins is None else twins.complete(histories)


def _checked_histories(histories: Rows, top_k: int, num_items: int) -> Ragged:
    if num_items == 0:
        raise ValueError("the baseline has no items yet; call fit with a training split first")
    COUNT.check("top_k", top_k)
    return item_rows(histories, "histories", num_items)


def _num_needed(excluded: Ragged, top_k: int, num_items: int) -> np.ndarray:
    """How many items of a fixed order each row needs, `(num_rows,)`, to have `top_k` left after exclusion."""
    needed: np.ndarray = np.minimum(top_k + excluded.lengths, num_items)
    return needed


def _rank_in_blocks(costs: np.ndarray, top_k: int, rank_block: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
    """Ranks rows in blocks of neighbours, each block with about `BLOCK_ENTRIES` of the rows' `costs` in total."""
    block = np.cumsum(costs) // BLOCK_ENTRIES  # the block of each row
    edges = np.flatnonzero(np.diff(block)) + 1
    parts = [rank_block(rows) for rows in np.split(np.arange(len(costs)), edges) if len(rows)]
    return np.concatenate([np.empty((0, top_k), np.int64), *parts])


def _sum_by_key(keys: np.ndarray, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The distinct keys in ascending order, and the sum of the values of each. `keys` must not be empty."""
    # After sorting, each key is one run of neighbours. A stable sort adds its values in the order given, so that equal
    # input always gives equal sums.
    order = np.argsort(keys, kind="stable")
    keys = keys[order]
    starts = np.flatnonzero(np.concatenate([[True], keys[1:] != keys[:-1]]))
    return keys[starts], np.add.reduceat(values[order], starts)


def _top_of_each_row(rows: np.ndarray, items: np.ndarray, num_rows: int, top_k: int) -> np.ndarray:
    """The first `top_k` items of each row, `(num_rows, top_k)`, -1 where a row has fewer. `rows` must be ascending."""
    rank = within(np.bincount(rows, minlength=num_rows))
    keep = rank < top_k
    ranked = np.full((num_rows, top_k), -1, np.int64)
    ranked[rows[keep], rank[keep]] = items[keep]
    return ranked
