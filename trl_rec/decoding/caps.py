"""Limits how many items of a list may share a value of a catalogue column, such as two items per brand.

The list is built greedily from a ranking, best item first. An item is left out if the list already contains the
maximum number of items with one of its values. A ranking of the catalogue is cut off after the best items. If it ends
before the list is full, `requests.py` ranks the catalogue again, without the items that can no longer be chosen. If
the ranking is instead a list that the model has written, or that comes from a file, no other items are added, so the
result may have fewer items than requested.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from trl_rec.items import ItemCatalog
from trl_rec.ragged import Ragged
from trl_rec.ranges import COUNT


class Groups(NamedTuple):
    """The values of a column, numbered from 0. The items with the same value form a group.

    Args:
        of_items (`Ragged`): Row `i` contains the value numbers of item `i`.
        members (`Ragged`): Row `g` contains the items with value number `g`.
    """

    of_items: Ragged
    members: Ragged


class ColumnGroups:
    """Computes the [`Groups`] of a catalogue's columns. Each column is grouped when it is first needed.

    Args:
        catalog (`ItemCatalog`): The items.
    """

    def __init__(self, catalog: ItemCatalog) -> None:
        self._items = catalog.items.slice(0, catalog.num_recommendable)
        self._made: dict[str, Groups] = {}

    def limits(self, max_per: Mapping[str, int] | None) -> list[tuple[Groups, int]]:
        """Returns the groups and the limit of each column in `max_per`.

        Raises `ValueError` if a column or a limit is invalid.
        """
        if max_per is None:
            return []
        if not isinstance(max_per, Mapping):
            raise ValueError(
                f'max_per must map columns to numbers of items, such as {{"brand": 2}}, not {max_per!r:.80}'
            )
        for name, limit in max_per.items():
            if name not in self._items.column_names:
                raise ValueError(
                    f"max_per names the column {name!r}, which the catalogue does not have; choose one of "
                    f"{', '.join(self._items.column_names)}"
                )
            COUNT.check(f"max_per of {name}", limit)
        return [(self._groups(name), limit) for name, limit in max_per.items()]

    def _groups(self, name: str) -> Groups:
        if name not in self._made:
            self._made[name] = make_groups(self._items[name])
        return self._made[name]


def make_groups(column: pa.ChunkedArray) -> Groups:
    """Groups the items by the values of a column, which contains either single values or lists of values. Items
    without a value belong to no group."""
    values = column.combine_chunks()
    is_list = pa.types.is_list(values.type) or pa.types.is_large_list(values.type)
    lists = Ragged.from_arrow(values.fill_null([])) if is_list else None

    # 1. Number the values.
    flat = pa.array(lists.values, values.type.value_type) if lists is not None else values
    codes = flat.dictionary_encode().indices.fill_null(-1).to_numpy(zero_copy_only=False).astype(np.int64)
    lengths = lists.lengths if lists is not None else np.ones(len(values), np.int64)

    # 2. Leave out missing values, and keep a value once if the list of an item repeats it.
    rows = np.repeat(np.arange(len(values)), lengths)
    width = int(codes.max(initial=0)) + 1
    keys = np.unique(rows[codes >= 0] * width + codes[codes >= 0])
    rows, codes = np.divmod(keys, width)
    order = np.argsort(codes, kind="stable")
    return Groups(
        Ragged.from_lengths(codes, np.bincount(rows, minlength=len(values))),
        Ragged.from_lengths(rows[order], np.bincount(codes, minlength=width)),
    )


class CappedList:
    """A list that is filled greedily from rankings.

    Args:
        limits: The groups and the limit of each column.
        k (`int`): Number of items to choose.
        num_items (`int`): Number of items that can be recommended. Rankings contain only item indices below it.

    Attributes:
        items (`list[int]`): The chosen items.
        scores (`list[float]`): Their scores.
    """

    def __init__(self, limits: list[tuple[Groups, int]], k: int, num_items: int) -> None:
        self._limits = limits
        self._counts = [np.zeros(len(groups.members), np.int64) for groups, _ in limits]
        self._k = k
        self._num_items = num_items
        self.items: list[int] = []
        self.scores: list[float] = []

    @cached_property
    def open(self) -> np.ndarray:
        """True for the items that can still be chosen, `(num_items,)`."""
        return np.ones(self._num_items, bool)

    @property
    def is_full(self) -> bool:
        """Whether the list has `k` items."""
        return len(self.items) == self._k

    def add(self, items: list[int], scores: list[float]) -> None:
        """Appends those items of a ranking that can still be chosen, best first. Stops when the list is full."""
        if not self._limits:
            self.items += items[: self._k]
            self.scores += scores[: self._k]
            return
        for item, score in zip(items, scores, strict=True):
            if self.is_full:
                return
            if self.open[item]:
                self._choose(item, score)

    def _choose(self, item: int, score: float) -> None:
        """Appends an item. If a group has then reached its limit, none of its items can be chosen any more."""
        self.items.append(item)
        self.scores.append(score)
        self.open[item] = False
        for (groups, limit), counts in zip(self._limits, self._counts, strict=True):
            for group in groups.of_items[item].tolist():
                counts[group] += 1
                if counts[group] == limit:
                    self.open[groups.members[group]] = False
