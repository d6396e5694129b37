"""Stores the filters of running requests as tables, so that no decoding step has to read every item below a node.

A *place* is a position in `TokenTrie.items`, which contains the items in the order of their paths.

Legend: F: filters, I: items, M: running requests, N: nodes or places.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from trl_rec.decoding.item_filter import Mask
from trl_rec.items import TokenTrie


MOST_UNUSED = 64  # maximum number of filters that are kept although no request uses them


class FilterTables:
    """Stores which items each filter allows, and how many of these items are below each node of the trie.

    Filter 0 allows all items. Every other filter gets the first free number, and equal filters share a number.

    Args:
        trie (`TokenTrie`): The trie.
    """

    def __init__(self, trie: TokenTrie) -> None:
        self._trie = trie
        allowed = torch.ones(1, trie.num_items + 1, dtype=torch.bool, device=trie.items.device)
        allowed[:, -1] = False  # the last place is padding
        self._allowed = allowed  # (F, I + 1): whether the item at each place is allowed
        self._counts = self._counted(allowed)  # (F, num_nodes): how many allowed items are below each node
        self._numbers: dict[bytes, int] = {}

    def number(self, mask: Mask | None, used: Sequence[int]) -> int:
        """Returns the number of a filter, and stores the filter if it is new.

        `used` contains the numbers of the filters that running requests use. If too many filters are stored, all other
        filters are dropped.
        """
        if mask is None:
            return 0
        if mask.key not in self._numbers:
            if len(self._numbers) >= MOST_UNUSED + len(set(used)):
                unused = set(self._numbers.values()) - set(used)
                self._numbers = {key: row for key, row in self._numbers.items() if row not in unused}
            self._store(mask)
        return self._numbers[mask.key]

    def is_allowed(self, filters: Tensor, places: Tensor) -> Tensor:
        """Returns whether the filters `(M,)` allow the items at the places `(M, N)`; False for padding."""
        return self._allowed[filters.unsqueeze(1), places]

    def num_allowed(self, filters: Tensor, nodes: Tensor) -> Tensor:
        """Returns how many items the filters `(M,)` allow below the nodes `(M, N)`."""
        return self._counts[filters.unsqueeze(1), nodes]

    def _store(self, mask: Mask) -> None:
        """Writes a filter into a free row of the tables."""
        # 1. Find the row. The tables double when they are full.
        taken = {0, *self._numbers.values()}
        row = next(number for number in range(len(taken) + 1) if number not in taken)
        if row == len(self._allowed):
            self._allowed = torch.cat([self._allowed, torch.zeros_like(self._allowed)])
            self._counts = torch.cat([self._counts, torch.zeros_like(self._counts)])

        # 2. Write the filter into this row.
        items = mask.on(self._trie.items.device)[self._trie.items.long()]
        self._allowed[row, :-1] = items
        self._counts[row] = self._counted(self._allowed[row : row + 1])[0]
        self._numbers[mask.key] = row

    def _counted(self, allowed: Tensor) -> Tensor:
        """Returns how many allowed items are below each node, `(1, num_nodes)`."""
        # The items below a node are a slice of `trie.items`, so the number of allowed items among them is a difference
        # of two running counts.
        before = torch.nn.functional.pad(allowed[:, :-1].int().cumsum(1, dtype=torch.int32), (1, 0))
        return before[:, self._trie.item_ends.long()] - before[:, self._trie.item_starts.long()]
