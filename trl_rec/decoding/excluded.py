"""Which subtrees of the trie a prompt's excluded items leave empty.

Legend: B prompts, E excluded items, N nodes asked about.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from trl_rec.items.trie import TokenTrie


class Excluded:
    """Items left out, as sorted places in `trie.items`: whether a subtree is emptied by them is two bisections.

    Args:
        trie: The trie.
        items: One list a prompt, a tensor `(B, E)` padded with -1, or None.
        num_prompts: B.
    """

    def __init__(self, trie: TokenTrie, items: Tensor | Sequence[Sequence[int]] | None, num_prompts: int) -> None:
        self.trie, device = trie, trie.items.device
        rows = items if isinstance(items, Tensor) else _padded(items, num_prompts)
        if len(rows) != num_prompts:
            raise ValueError(f"exclude holds {len(rows)} lists for {num_prompts} prompts; give one a prompt")
        rows = rows.to(device, torch.int64)
        known = (rows >= 0) & (rows < len(trie.item_positions))
        places = torch.where(known, trie.item_positions[torch.where(known, rows, 0)], -1)
        places = torch.where(places < 0, trie.num_items, places).sort(1).values
        again = torch.zeros_like(known)
        again[:, 1:] = places[:, 1:] == places[:, :-1]
        self.places = (
            places.masked_fill(again, trie.num_items).sort(1).values
        )  # (B, E), ascending; num_items marks padding

    def count(self, starts: Tensor, ends: Tensor) -> Tensor:
        """How many of the places `[start, end)` are excluded; all `(B, N)`."""
        below = [torch.searchsorted(self.places, bound.to(self.places.dtype).contiguous()) for bound in (starts, ends)]
        return below[1] - below[0]

    def emptied(self, nodes: Tensor) -> Tensor:
        """`(B, N)`: whether every item below the node is excluded."""
        starts, ends = self.trie.item_starts[nodes], self.trie.item_ends[nodes]
        return self.count(starts, ends) == ends - starts


def _padded(items: Sequence[Sequence[int]] | None, num_prompts: int) -> Tensor:
    if items is None:
        return torch.empty(num_prompts, 0, dtype=torch.int64)
    rows = [torch.as_tensor(row, dtype=torch.int64) for row in items] or [torch.empty(0, dtype=torch.int64)]
    return torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=-1)
