"""Recommenders without parameters that any model should be shown beside: random, popular, and item-to-item
transitions.

All three learn from the training split alone, refuse any other, and rank the whole catalogue with sparse arrays:
memory and time grow with what the histories lead to, not with users x items.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from datasets import Dataset

from trl_rec.evaluation.inputs import Rows, item_rows
from trl_rec.evaluation.random_order import permuted
from trl_rec.evaluation.training_log import TrainingLog
from trl_rec.ragged import Ragged, within


BLOCK_ENTRIES = 1 << 21  # (row, item) candidates that are ranked at a time, about 200 MB with what sorting them takes
SCORE_DECIMALS = 12  # scores that differ by less differ by the order of float additions alone, and tie


class RandomBaseline:
    """A random order of the catalogue for each user, the same for equal (seed, row): what luck reaches.

    Args:
        seed (`int`, *optional*, defaults to `0`): Chooses the orders.
    """

    def __init__(self, seed: int = 0) -> None:
        self.seed = seed
        self.num_items = 0

    def fit(self, train: Dataset, num_items: int | None = None) -> RandomBaseline:
        """Learns the number of items: 1 + the largest index in `train` unless given."""
        self.num_items = TrainingLog.read(train, num_items).num_items
        return self

    def rank(self, histories: Rows, top_k: int, exclude_history: bool) -> np.ndarray:
        """Item indices `(num_users, top_k)`, best first, -1 where the catalogue is exhausted."""
        return _rank_prefixes(histories, top_k, exclude_history, self.num_items, self._item_at)

    def _item_at(self, rows: np.ndarray, positions: np.ndarray) -> np.ndarray:
        return permuted(positions, rows, self.seed, self.num_items)


class PopularityBaseline:
    """The items chosen most often in training, the same for everybody; ties go to the lower index.

    After `fit`: `popularity` `(num_items,)`, how often each item was chosen, and `by_popularity`, the items in that
    order.
    """

    def __init__(self) -> None:
        self.num_items = 0

    def fit(self, train: Dataset, num_items: int | None = None) -> PopularityBaseline:
        """Counts the training interactions, each once; the number of items is 1 + the largest index in `train` unless
        given."""
        log = TrainingLog.read(train, num_items)
        self.num_items, self.popularity, self.by_popularity = log.num_items, log.popularity, log.by_popularity
        return self

    def rank(self, histories: Rows, top_k: int, exclude_history: bool) -> np.ndarray:
        """Item indices `(num_users, top_k)`, best first, -1 where the catalogue is exhausted."""
        return _rank_prefixes(
            histories, top_k, exclude_history, self.num_items, lambda _, places: self.by_popularity[places]
        )


class TransitionBaseline:
    """What followed the user's last items in other users' training histories: a counter, no parameters, no training.

    T[i, j] is the sum of 1/d over training pairs of i and, d <= `window` places later, j; each row is then divided by
    its sum. The score of j is the sum of T[i, j] / (1 + w) over the last `max_history` items i of a history, w = 0 for
    the newest. Ties go to the more popular item, then to the lower index; items with score 0 follow in the same order.

    It is a hard baseline. Leave-one-out, with history excluded, it reaches Recall@10 .079 and NDCG@10 .050 on Amazon
    Beauty, above the figures printed for SASRec, HSTU and TIGER there, as it is above much other published neural
    work. On MovieLens-100k it reaches .184 and .106.

    Args:
        window (`int`, *optional*, defaults to `3`): Largest distance of a pair.
        max_history (`int`, *optional*, defaults to `10`): Items of the history that count.
    """

    def __init__(self, window: int = 3, max_history: int = 10) -> None:
        if window < 1 or max_history < 1:
            raise ValueError(f"window={window}, max_history={max_history}: both must be at least 1")
        self.window = window
        self.max_history = max_history
        self.num_items = 0

    def fit(self, train: Dataset, num_items: int | None = None) -> TransitionBaseline:
        """Counts the training transitions, each once; the number of items is 1 + the largest index in `train` unless
        given."""
        log = TrainingLog.read(train, num_items)
        self.num_items, self.by_popularity = log.num_items, log.by_popularity
        # From here on an item is its place in the order of popularity, so that a stable sort breaks ties as it should.
        self._place = np.argsort(self.by_popularity)
        first, second, distance = log.pairs(self.window)
        keys, inverse = np.unique(self._place[first] * self.num_items + self._place[second], return_inverse=True)
        weights = np.bincount(inverse, 1 / distance, len(keys))
        source, target = np.divmod(keys, max(self.num_items, 1))
        totals = np.bincount(source, weights, self.num_items)
        lengths = np.bincount(source, minlength=self.num_items)
        self._targets = Ragged.from_lengths(target, lengths)
        self._weights = Ragged.from_lengths(weights / totals[source], lengths)
        return self

    def rank(self, histories: Rows, top_k: int, exclude_history: bool) -> np.ndarray:
        """Item indices `(num_users, top_k)`, best first, -1 where the catalogue is exhausted."""
        histories = _checked(histories, top_k, self.num_items)
        places = Ragged(self._place[histories.values], histories.offsets)
        recent = places.tail(self.max_history)
        reached = Ragged(self._targets.lengths[recent.values], recent.offsets)
        costs = np.bincount(reached.row_ids, reached.values, len(places)).astype(np.int64) + 2 * places.lengths + top_k
        ranked = _by_blocks(costs, top_k, lambda rows: self._rank_block(places.take(rows), top_k, exclude_history))
        return np.where(ranked >= 0, self.by_popularity[ranked], -1)

    def _rank_block(self, history: Ragged, top_k: int, exclude_history: bool) -> np.ndarray:
        recent = history.tail(self.max_history)
        age = np.repeat(recent.lengths, recent.lengths) - 1 - within(recent.lengths)
        targets = self._targets.take(recent.values)
        scores = self._weights.take(recent.values).values / (1 + age)[targets.row_ids]
        # Enough of the most popular items, at score 0, to fill a list even if the whole history is among them.
        popular = _prefix_lengths(history, top_k, exclude_history, self.num_items)
        rows = [recent.row_ids[targets.row_ids], np.repeat(np.arange(len(history)), popular)]
        items, parts = [targets.values, within(popular)], [scores, np.zeros(popular.sum())]
        if exclude_history:
            rows, items = [*rows, history.row_ids], [*items, history.values]
            parts = [*parts, np.full(len(history.values), -np.inf)]
        keys, totals = _summed(np.concatenate(rows) * self.num_items + np.concatenate(items), np.concatenate(parts))
        found = totals > -np.inf
        row, item = np.divmod(keys[found], self.num_items)
        order = np.lexsort((-totals[found].round(SCORE_DECIMALS), row))
        return _first_of_each(row[order], item[order], len(history), top_k)


def _rank_prefixes(
    histories: Rows,
    top_k: int,
    exclude_history: bool,
    num_items: int,
    item_at: Callable[[np.ndarray, np.ndarray], np.ndarray],
) -> np.ndarray:
    """Ranks by an order known beforehand: `item_at(rows, positions)` gives the item at a position of a row's order."""
    histories = _checked(histories, top_k, num_items)
    lengths = _prefix_lengths(histories, top_k, exclude_history, num_items)

    def _rank_block(block: np.ndarray) -> np.ndarray:
        rows = np.repeat(np.arange(len(block)), lengths[block])
        items = item_at(block[rows], within(lengths[block]))
        if exclude_history:
            history = histories.take(block)
            keep = ~np.isin(rows * num_items + items, history.row_ids * num_items + history.values)
            rows, items = rows[keep], items[keep]
        return _first_of_each(rows, items, len(block), top_k)

    return _by_blocks(lengths + histories.lengths, top_k, _rank_block)


def _checked(histories: Rows, top_k: int, num_items: int) -> Ragged:
    if num_items == 0:
        raise ValueError("the baseline knows no items; call fit with a training split first")
    if top_k < 1:
        raise ValueError(f"top_k={top_k}: rank at least one item")
    return item_rows(histories, "histories", num_items)


def _prefix_lengths(histories: Ragged, top_k: int, exclude_history: bool, num_items: int) -> np.ndarray:
    spare = histories.lengths if exclude_history else np.zeros(len(histories), np.int64)
    return np.minimum(top_k + spare, num_items)


def _by_blocks(costs: np.ndarray, top_k: int, rank_block: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
    """Ranks consecutive rows together as long as their candidates, `costs`, stay near `BLOCK_ENTRIES`."""
    block = np.cumsum(costs) // BLOCK_ENTRIES
    edges = np.flatnonzero(np.diff(block)) + 1
    parts = [rank_block(rows) for rows in np.split(np.arange(len(costs)), edges) if len(rows)]
    return np.concatenate([np.empty((0, top_k), np.int64), *parts])


def _summed(keys: np.ndarray, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The distinct keys, ascending, and the sum of each one's values; there is a key at least."""
    order = np.argsort(keys, kind="stable")
    keys = keys[order]
    starts = np.flatnonzero(np.concatenate([[True], keys[1:] != keys[:-1]]))
    return keys[starts], np.add.reduceat(values[order], starts)


def _first_of_each(rows: np.ndarray, items: np.ndarray, num_rows: int, top_k: int) -> np.ndarray:
    """The first `top_k` items of each row, `(num_rows, top_k)`; `rows` is ascending, -1 fills up."""
    position = within(np.bincount(rows, minlength=num_rows))
    keep = position < top_k
    ranked = np.full((num_rows, top_k), -1, np.int64)
    ranked[rows[keep], position[keep]] = items[keep]
    return ranked
