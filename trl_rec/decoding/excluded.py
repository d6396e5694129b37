"""Stores the excluded items of each prompt, and finds the subtrees of the trie in which every item is excluded.

Legend: B: prompts, E: excluded items per prompt (padded), N: nodes.
"""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy

import torch
from torch import Tensor

from trl_rec.items.trie import TokenTrie


class Excluded:
    """The excluded items of each prompt, stored as sorted indices into `trie.items`.

    The items below a node are a slice of `trie.items`, so two binary searches count how many of them are excluded.

    Args:
        trie (`TokenTrie`): The trie.
        items (`torch.Tensor` or lists of `int`, *optional*): The item indices to exclude: one list per prompt, or a
            tensor of shape `(B, E)` padded with -1. Items that are not in the trie are ignored, and repeated items
            count once.
        num_prompts (`int`): B, the number of prompts.

    Attributes:
        places (`torch.Tensor` of shape `(B, E)`): The excluded items as distinct indices into `trie.items`, in
            ascending order; `trie.num_items` is padding.
    """

    def __init__(self, trie: TokenTrie, items: Tensor | Sequence[Sequence[int]] | None, num_prompts: int) -> None:
        self.trie = trie
        rows = items if isinstance(items, Tensor) else _padded(items, num_prompts)  # (B, E)
        if len(rows) != num_prompts:
            raise ValueError(f"exclude has {len(rows)} lists for {num_prompts} prompts; give one list per prompt")

        # 1. Look up each item's index in `trie.items`; unknown items and padding become `num_items`.
        rows = rows.to(trie.items.device, torch.int64)
        known = (rows >= 0) & (rows < len(trie.item_positions))
        places = torch.where(known, trie.item_positions[torch.where(known, rows, 0)], -1)
        places = torch.where(places < 0, trie.num_items, places).sort(1).values

        # 2. Turn repeated places into padding, so that `count` does not count an item twice.
        repeated = torch.zeros_like(known)
        repeated[:, 1:] = places[:, 1:] == places[:, :-1]
        self.places = places.masked_fill(repeated, trie.num_items).sort(1).values

    def among(self, kept: Tensor) -> Excluded:
        """Returns the excluded items for which `kept` `(B, E)` is True."""
        some = copy(self)
        some.places = torch.where(kept, self.places, self.trie.num_items).sort(1).values
        return some

    def count(self, starts: Tensor, ends: Tensor) -> Tensor:
        """Returns how many of `trie.items[start:end]` are excluded. `starts`, `ends` and the result are `(B, N)`."""
        before_start = torch.searchsorted(self.places, starts.to(self.places.dtype).contiguous())
        before_end = torch.searchsorted(self.places, ends.to(self.places.dtype).contiguous())
        return before_end - before_start

    def emptied(self, nodes: Tensor) -> Tensor:
        """Returns, for each of the nodes `(B, N)`, whether all items below it are excluded."""
        starts = self.trie.item_starts[nodes]
        ends = self.trie.item_ends[nodes]
        return self.count(starts, ends) == ends - starts


def _padded(items: Sequence[Sequence[int]] | None, num_prompts: int) -> Tensor:
    """Returns the lists as a tensor `(B, E)`, padded on the right with -1."""
    if items is None:
        return torch.empty(num_prompts, 0, dtype=torch.int64)
    rows = [torch.as_tensor(row, dtype=torch.int64) for row in items] or [torch.empty(0, dtype=torch.int64)]
    return torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=-1)
