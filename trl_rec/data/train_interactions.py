"""Collects the interactions of a training split. Each interaction is counted once, even if several rows contain it.

If the source consists of windows (each a history and one target), a user has many overlapping rows: the history of a
row contains the targets of the user's earlier rows. In the first row of each user, both the history and the targets
are new interactions. In later rows, only the targets are new.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np
from datasets import Dataset

from trl_rec.data.dataset import check_is_train, split_rows, split_users
from trl_rec.data.item_rows import item_rows
from trl_rec.ragged import Ragged, join, row_blocks, stable_order, within


PAIRS = 1 << 24  # approximate number of pairs that are sorted together


class Pairs(NamedTuple):
    """Pairs of items of the same row, sorted by first item, second item and kind.

    The kind of a pair is the position of the second item relative to the first. The first items of all pairs are in
    one range of item indices.

    Args:
        keys (`np.ndarray` of shape `(P,)`): `first * num_items + second` for each pair, where `first` is counted from
            the start of the range.
        kinds (`np.ndarray` of shape `(P,)`): The kind of each pair, as an index into the argument `kinds` of
            [`TrainInteractions.pair_blocks`].
    """

    keys: np.ndarray
    kinds: np.ndarray


@dataclass(frozen=True, eq=False)
class TrainInteractions:
    """The interactions of a training split, from which baselines are fitted.

    Args:
        sequences (`Ragged`): The history followed by the targets, for each row of the split.
        is_new (`np.ndarray` of shape `(len(sequences.values),)`): True where an interaction occurs for the first time.
        num_items (`int`): Size of the catalogue.
    """

    sequences: Ragged
    is_new: np.ndarray
    num_items: int

    @classmethod
    def from_split(cls, train: Dataset, num_items: int | None = None) -> TrainInteractions:
        """Returns the interactions of a training split. Raises `ValueError` for a validation or test split.

        Args:
            train (`Dataset`): The training split. The rows of each user must be in chronological order.
            num_items (`int`, *optional*, defaults to the largest index in `train` plus 1): Size of the catalogue.
        """
        check_is_train(train, "baselines")
        history = split_rows(train, "history")
        targets = split_rows(train, "targets")
        sequences = item_rows(join(history, targets), "train", num_items)

        # Find the first row of each user. In these rows, the history is new as well.
        users = split_users(train)
        is_first_row = np.zeros(len(sequences), bool)
        is_first_row[np.unique(users, return_index=True)[1]] = True

        # The histories of the other rows repeat interactions of earlier rows.
        others = np.flatnonzero(~is_first_row)
        lengths = history.lengths[others]
        is_new = np.ones(len(sequences.values), bool)
        is_new[np.repeat(sequences.offsets[others], lengths) + within(lengths)] = False
        if num_items is None:
            num_items = 1 + int(sequences.values.max(initial=-1))
        return cls(sequences, is_new, num_items)

    @cached_property
    def popularity(self) -> np.ndarray:
        """The number of interactions with each item in the training split, `(num_items,)`."""
        return np.bincount(self.sequences.values[self.is_new], minlength=self.num_items)

    @property
    def by_popularity(self) -> np.ndarray:
        """The items sorted by descending [`popularity`] and then by ascending index, `(num_items,)`."""
        return np.argsort(-self.popularity, kind="stable")

    def pair_blocks(self, kinds: np.ndarray) -> Iterator[tuple[slice, Pairs]]:
        """Yields the pairs of items of the same row whose relative position is one of `kinds`.

        Only pairs whose later interaction is new are yielded (see `is_new`). The items are divided into ranges, so
        that only the pairs of one range are in memory.

        Args:
            kinds (`np.ndarray` of shape `(num_kinds,)`): Positions of the second item of a pair relative to the first:
                1 is the item directly after the first, and -1 the item directly before it.

        Yields:
            A range of items, and the sorted pairs whose first item is in this range.
        """
        # 1. Sort the positions of all interactions by item.
        values = self.sequences.values
        total = len(values)
        row = np.repeat(np.arange(len(self.sequences), dtype=np.int32), self.sequences.lengths)  # (total,)
        by_item = stable_order(values)
        counts = np.bincount(values, minlength=self.num_items)
        offsets = np.concatenate([[0], np.cumsum(counts)])

        # 2. Find the pairs of each range of items. Encode a pair and its kind as one number, because `sort` is much
        # faster than `argsort` or `lexsort`.
        bits = int(len(kinds) - 1).bit_length()
        for items in row_blocks(offsets, max(PAIRS // len(kinds), 1)):
            place = by_item[offsets[items.start] : offsets[items.stop]]
            source = np.repeat(np.arange(items.stop - items.start), counts[items])
            keys = []
            for number, kind in enumerate(kinds.tolist()):
                other = place + kind
                exists = (other >= 0) & (other < total)
                other[~exists] = 0  # any valid index will do, because `found` excludes these entries
                found = exists & (row[other] == row[place]) & self.is_new[np.maximum(place, other)]
                pair = source[found] * self.num_items + values[other[found]]
                keys.append(pair << bits | number)
            joined = np.concatenate(keys)
            del keys
            joined.sort()
            yield items, Pairs(joined >> bits, joined & ((1 << bits) - 1))
