"""Counts how often one item follows another in a training split, and scores the items that may follow a history.

All counts and scores are sparse. Memory and time grow with the number of counted pairs and with the number of items
that are scored per history, not with the square of the number of items.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from trl_rec.data.train_interactions import TrainInteractions
from trl_rec.ragged import Ragged, within
from trl_rec.ranges import COUNT, NOT_NEGATIVE


@dataclass(frozen=True, eq=False)
class TransitionCounts:
    """For each item, the items that follow it in the training split, and the share of each of these followers.

    S[i, j] is the sum of the weights of all pairs in which item j follows item i. `from_interactions` counts the pairs
    of items that are at most `window` positions apart, and gives a pair that is d positions apart the weight 1/d. The
    share T[i, j] is S[i, j] divided by the sum of row i of S. The score of item j after a history is the sum of
    T[i, j] / (1 + w) ** decay over the last `max_history` items i of the history, where w is 0 for the newest item, 1
    for the item before it, and so on.

    Args:
        targets (`Ragged`): Row `i` contains the items that followed item `i`, in ascending order.
        shares (`np.ndarray` of shape `(len(targets.values),)`): The share T[i, j] of each of these items.
        max_history (`int`): Maximum number of history items to use. Older items are ignored.
        decay (`float`, *optional*, defaults to `1.0`): How fast the weight of history items falls with their age w;
            0 gives all of them the same weight.
    """

    targets: Ragged
    shares: np.ndarray
    max_history: int
    decay: float = 1.0

    @classmethod
    def from_interactions(
        cls, interactions: TrainInteractions, *, window: int = 3, max_history: int = 10
    ) -> TransitionCounts:
        """Counts the pairs of interactions that are at most `window` positions apart in a row of the training split.

        If the same two interactions are in several rows of the split, they are counted once.

        Args:
            interactions (`TrainInteractions`): The interactions of a training split.
            window (`int`, *optional*, defaults to `3`): Maximum distance between the two items of a pair.
            max_history (`int`, *optional*, defaults to `10`): Maximum number of history items to use.
        """
        COUNT.check("window", window)
        COUNT.check("max_history", max_history)
        targets, shares = count_pairs(interactions, [PairRule(farthest=window)])[0]
        return cls(targets, shares, max_history)

    @classmethod
    def from_pairs(
        cls,
        first: np.ndarray,
        second: np.ndarray,
        weights: np.ndarray,
        num_items: int,
        *,
        max_history: int,
        decay: float = 1.0,
    ) -> TransitionCounts:
        """Sums the weights of equal pairs, and divides each sum by the total over all pairs with the same first item.

        Args:
            first, second, weights (`np.ndarray` of shape `(P,)`): The two items of each pair, and its weight.
            num_items (`int`): Size of the catalogue.
            max_history, decay: Same as the arguments of the class.
        """
        # Number the distinct pairs. They are the entries of the sparse matrix S, in the order of its rows.
        keys, inverse = np.unique(first * num_items + second, return_inverse=True)
        source, target = np.divmod(keys, max(num_items, 1))
        targets, shares = _shares(source, target, np.bincount(inverse, weights, len(keys)), num_items, None)
        return cls(targets, shares, max_history, decay)

    def check(self, num_items: int) -> None:
        """Raises `ValueError` if the counts are not valid for this number of items."""
        COUNT.check("max_history", self.max_history)
        NOT_NEGATIVE.check("decay", self.decay)
        offsets = self.targets.offsets
        if len(offsets) != num_items + 1:
            raise ValueError(f"the transition counts are for {len(offsets) - 1} items, not {num_items}")
        is_divided = (
            offsets[0] == 0 and offsets[-1] == len(self.targets.values) and bool((np.diff(offsets) >= 0).all())
        )
        if not is_divided or len(self.shares) != len(self.targets.values):
            raise ValueError("the transition counts do not have one row per item")
        if not bool(((self.targets.values >= 0) & (self.targets.values < num_items)).all()):
            raise ValueError(f"the transition counts contain an item outside the range 0 to {num_items - 1}")
        if not bool((np.isfinite(self.shares) & (self.shares >= 0) & (self.shares <= 1)).all()):
            raise ValueError("the transition counts contain a share outside the range 0 to 1")

    def followers(self, histories: Ragged) -> tuple[Ragged, np.ndarray]:
        """For each history, returns the items that followed its last `max_history` items, and their partial scores.

        An item that followed several of these history items occurs once for each of them, with a partial score. The
        sum of its partial scores is its score after the history. The partial scores have the shape
        `(len(followers.values),)`.
        """
        recent = histories.tail(self.max_history)
        age = np.repeat(recent.lengths, recent.lengths) - 1 - within(recent.lengths)  # 0 for the newest item
        followers = self.targets.take(recent.values)
        shares = Ragged(self.shares, self.targets.offsets).take(recent.values).values
        ages = (1 + age) ** self.decay
        return Ragged(followers.values, followers.offsets[recent.offsets]), shares / ages[followers.row_ids]

    def num_followers(self, histories: Ragged) -> np.ndarray:
        """Returns how many values [`followers`] returns for each history, `(len(histories),)`."""
        recent = histories.tail(self.max_history)
        num_targets = np.bincount(recent.row_ids, self.targets.lengths[recent.values], len(recent))
        return num_targets.astype(np.int64)


class PairRule(NamedTuple):
    """Determines which pairs of training interactions are counted, and with which weight.

    A pair consists of two interactions of the same row. The later interaction must be new, that is, no earlier row of
    the user contains it (see [`TrainInteractions`]).

    Args:
        nearest (`int`, *optional*, defaults to `1`): Smallest distance between the two items of a pair.
        farthest (`int`, *optional*, defaults to `3`): Largest distance between the two items of a pair.
        forward (`bool`, *optional*, defaults to `True`): Whether the later item of a pair is predicted from the
            earlier one.
        backward (`bool`, *optional*, defaults to `False`): Whether the earlier item of a pair is predicted from the
            later one.
        far (`float`, *optional*, defaults to `1.0`): The weight of a pair at the distance d contains the factor
            1 / d ** far.
        rare (`float`, *optional*, defaults to `0.0`): The weight of a pair contains the factor 1 / (n + 1) ** rare,
            where n is the number of interactions with the predicted item in the training split.
    """

    nearest: int = 1
    farthest: int = 3
    forward: bool = True
    backward: bool = False
    far: float = 1.0
    rare: float = 0.0

    def weights(self, offsets: np.ndarray) -> np.ndarray:
        """Returns the weight of a pair for each value in `offsets`.

        An offset is the position of the predicted item minus that of the other item of the pair. The returned weights
        do not contain the factor for rare items. Pairs that are not counted have the weight 0.
        """
        distance = np.abs(offsets)
        is_counted = (distance >= self.nearest) & (distance <= self.farthest)
        is_counted &= np.where(offsets > 0, self.forward, self.backward)
        return np.where(is_counted, 1 / distance**self.far, 0.0)


def count_pairs(
    interactions: TrainInteractions, rules: Sequence[PairRule], *, most: int | None = None
) -> list[tuple[Ragged, np.ndarray]]:
    """Counts the pairs of each rule. All rules are counted in one pass over the pairs.

    The pairs of a large log do not fit in memory, so they are sorted and added up for one range of items at a time.
    The sizes of these ranges do not affect the result, because the pairs from one item to another are always added in
    the same order.

    Args:
        interactions: The interactions of a training split.
        rules: Which pairs are counted.
        most (*optional*): Maximum number of followers to keep per item. The followers with the largest shares are
            kept.

    Returns:
        For each rule, the `targets` and the `shares` of [`TransitionCounts`]. If only the largest shares of a row are
        kept, they are not rescaled, so the sum of a row may be below 1.
    """
    # 1. Find the weight of each kind of pair under each rule. A kind is the position of the predicted item relative to
    # the other item: +1, +2, ..., -1, -2, ...
    window = max(rule.farthest for rule in rules)
    kinds = np.concatenate([np.arange(1, window + 1), -np.arange(1, window + 1)])
    weights = [rule.weights(kinds) for rule in rules]  # (num_kinds,) each
    used = np.any(weights, axis=0)
    kinds = kinds[used]
    weights = [weight[used] for weight in weights]

    # 2. Count the pairs, one range of items at a time.
    parts: list[list[tuple[Ragged, np.ndarray]]] = [[] for _ in rules]
    for items, pairs in interactions.pair_blocks(kinds):
        first_of_pair = np.concatenate([[True], pairs.keys[1:] != pairs.keys[:-1]])[: len(pairs.keys)]
        number = np.cumsum(first_of_pair) - 1  # index of each pair among the distinct pairs
        source, target = np.divmod(pairs.keys[first_of_pair], max(interactions.num_items, 1))
        for rule, weight, found in zip(rules, weights, parts, strict=True):
            of_pairs = weight[pairs.kinds]
            if rule.rare:
                of_pairs = of_pairs / ((interactions.popularity[target] + 1) ** rule.rare)[number]
            sums = np.bincount(number, of_pairs, len(source))
            found.append(_shares(source, target, sums, items.stop - items.start, most))

    # 3. Join the ranges of each rule. `pop` releases the parts of a rule before the next rule needs memory.
    return [_joined(parts.pop(0)) for _ in rules]


def _shares(
    source: np.ndarray, target: np.ndarray, sums: np.ndarray, num_sources: int, most: int | None
) -> tuple[Ragged, np.ndarray]:
    """Divides the sum of each pair by the total over all pairs with the same `source`. Pairs with the sum 0 are left
    out."""
    counted = sums > 0
    source = source[counted]
    sums = sums[counted]
    totals = np.bincount(source, sums, num_sources)
    targets = Ragged.from_lengths(target[counted].astype(np.int32), np.bincount(source, minlength=num_sources))
    shares = sums / totals[source]
    return (targets, shares) if most is None else _largest(targets, shares, most)


def _largest(targets: Ragged, shares: np.ndarray, most: int) -> tuple[Ragged, np.ndarray]:
    """Keeps the `most` largest shares of each row. Of equal shares, those with the lowest item indices are kept."""
    lengths = targets.lengths
    is_long = lengths > most
    place = np.flatnonzero(np.repeat(is_long, lengths))  # indices of the values in long rows
    row = np.repeat(np.arange(len(lengths))[is_long], lengths[is_long])
    order = place[np.lexsort((-shares[place], row))]
    kept = np.ones(len(shares), bool)
    kept[order[within(lengths[is_long]) >= most]] = False
    return Ragged.from_lengths(targets.values[kept], np.minimum(lengths, most)), shares[kept]


def _joined(parts: list[tuple[Ragged, np.ndarray]]) -> tuple[Ragged, np.ndarray]:
    """Joins the rows of several ranges of items."""
    lengths = np.concatenate([np.empty(0, np.int64), *(targets.lengths for targets, _ in parts)])
    values = np.concatenate([np.empty(0, np.int32), *(targets.values for targets, _ in parts)])
    shares = np.concatenate([np.empty(0), *(shares for _, shares in parts)])
    return Ragged.from_lengths(values, lengths), shares


def sum_by_key(keys: np.ndarray, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns the distinct keys in ascending order, and the sum of the values per key. Keys are at least 0."""
    if not len(keys):
        return keys, values

    # If the keys are dense, a table with one entry per possible key is faster than sorting the keys.
    num_keys = int(keys.max()) + 1
    if num_keys <= 2 * len(keys):
        occurs = np.zeros(num_keys, bool)
        occurs[keys] = True
        found = np.flatnonzero(occurs)
        return found, np.bincount(keys, values, num_keys)[found]

    # After sorting, equal keys are next to each other. The sort is stable, so that the values of a key are always
    # added in the same order.
    order = np.argsort(keys, kind="stable")
    keys = keys[order]
    starts = np.flatnonzero(np.concatenate([[True], keys[1:] != keys[:-1]]))
    return keys[starts], np.add.reduceat(values[order], starts)
