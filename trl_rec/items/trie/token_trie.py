"""The catalogue as a prefix tree over token ids, stored in a few tensors on the model's device.

Nodes are numbered level by level, and within a level by parent and then by token, so edge `e` leads to node `e + 1`.
One array of row offsets and one of tokens therefore describe the whole tree (compressed sparse rows). Items are sorted
by their token sequences, so the items below any node are a slice. There is no Python object per node and no loop over
items, and the module needs torch alone.

Legend: C largest number of children of the given nodes (padded), T tokens.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from trl_rec.files import atomic_file
from trl_rec.items.trie.building import LARGEST, as_matrix, lexicographic_order, number_nodes


if TYPE_CHECKING:
    import numpy as np
    from transformers import PreTrainedTokenizerBase

    from trl_rec.ragged import Ragged


class _HasPaths(Protocol):
    """The part of `ItemCatalog` that `from_catalog` uses; the catalogue itself belongs to a higher layer."""

    @property
    def surface(self) -> str:
        """How items are written."""

    def paths(self, tokenizer: PreTrainedTokenizerBase) -> Ragged:
        """Row `i`: the path of item `i`."""

    def list_paths(self, tokenizer: PreTrainedTokenizerBase) -> Ragged:
        """Row `i`: the path of item `i` in a list."""


@dataclass(frozen=True, eq=False)
class TokenTrie:
    """The legal continuations of every prefix of every item's path. Make it with `from_sequences` or `from_catalog`.

    Args:
        row_offsets (`torch.Tensor` of shape `(num_nodes + 1,)`): The children of node `n` are reached by the edges
            `row_offsets[n]` up to `row_offsets[n + 1]`; edge `e` leads to node `e + 1`. Node 0 is the root.
        child_tokens (`torch.Tensor` of shape `(num_nodes - 1,)`): Token of each edge, ascending within a node.
        item_starts (`torch.Tensor` of shape `(num_nodes,)`): The items below node `n` are
            `items[item_starts[n] : item_ends[n]]`.
        item_ends (`torch.Tensor` of shape `(num_nodes,)`): See `item_starts`.
        items (`torch.Tensor` of shape `(num_items,)`): Item indices in the order of their paths; items that share a
            path are in ascending order. A place is an index into this tensor.
        depth_offsets (`torch.Tensor` of shape `(max_depth + 2,)`): First node of each depth, and the number of nodes.
    """

    row_offsets: Tensor
    child_tokens: Tensor
    item_starts: Tensor
    item_ends: Tensor
    items: Tensor
    depth_offsets: Tensor

    @classmethod
    def from_sequences(
        cls, sequences: Tensor | np.ndarray | Sequence[Sequence[int]], items: Tensor | Sequence[int] | None = None
    ) -> TokenTrie:
        """The trie of the given paths.

        Args:
            sequences (lists of `int`, or a 2-D integer array or tensor): The paths; an array is padded on the right
                with -1. No path may be the beginning of another one: end them with a terminator, or give all of them
                the same length.
            items (`torch.Tensor` or list of `int`, *optional*): The item of each path, all distinct; by default the
                path's row. Several items may have the same path; they share a leaf.
        """
        # 1. Check the items, and sort the paths by item.
        paths = as_matrix(sequences)
        items = torch.arange(len(paths)) if items is None else torch.as_tensor(items)
        one_per_path = len(items) == len(paths) and not items.is_floating_point()
        if not one_per_path or not 0 <= int(items.min()) <= int(items.max()) <= LARGEST:
            raise ValueError(f"{len(paths)} sequences need as many item indices, whole numbers from 0 to {LARGEST}")
        order = torch.argsort(items)
        repeated = items[order].diff() == 0
        if bool(repeated.any()):
            item = int(items[order][:-1][repeated][0])
            raise ValueError(f"item {item} occurs more than once; give each item one sequence")

        # 2. Sort them by path; the sort is stable, so items that share a path stay in order.
        order = lexicographic_order(paths, order)
        return cls(**number_nodes(paths, order), items=items[order].to(torch.int32))

    @classmethod
    def from_catalog(
        cls,
        catalog: _HasPaths,
        tokenizer: PreTrainedTokenizerBase,
        *,
        duplicates: str = "share",
        lists: bool = False,
    ) -> TokenTrie:
        """The trie of a catalogue's paths.

        Args:
            catalog (`ItemCatalog`): The items.
            tokenizer (`PreTrainedTokenizerBase`): The model's tokenizer.
            duplicates (`str`, *optional*, defaults to `"share"`): What to do with items whose surfaces are the same.
                `"share"` gives them one leaf and warns once with their number; `"refuse"` raises.
            lists (`bool`, *optional*, defaults to `False`): Whether the items are written in lists, where paths end
                differently (`ItemCatalog.list_paths` instead of `ItemCatalog.paths`).
        """
        if duplicates not in ("share", "refuse"):
            raise ValueError(f"duplicates must be 'share' or 'refuse', not {duplicates!r}")

        # 1. Build it.
        paths = catalog.list_paths(tokenizer) if lists else catalog.paths(tokenizer)
        try:
            trie = cls.from_sequences(torch.from_numpy(paths.padded()))
        except ValueError as error:
            if not lists or catalog.surface != "title":
                raise
            raise ValueError(
                f"{error}; titles in lists end in a line break, so take line breaks out of them"
            ) from error

        # 2. Report items with equal paths.
        shared = trie.num_items - trie.num_leaves
        if shared and duplicates == "refuse":
            raise ValueError(
                f"{shared} items are written exactly like another one; tell them apart, or pass duplicates='share'"
            )
        if shared:
            warnings.warn(
                f"{shared} of {trie.num_items} items are written exactly like another one and share its rank",
                stacklevel=2,
            )
        return trie

    @property
    def num_nodes(self) -> int:
        """Number of nodes, including the root."""
        return len(self.item_starts)

    @property
    def num_items(self) -> int:
        """Number of items, whether or not they share a leaf."""
        return len(self.items)

    @property
    def max_depth(self) -> int:
        """Number of tokens of the longest path."""
        return len(self.depth_offsets) - 2

    @cached_property
    def num_leaves(self) -> int:
        """Number of distinct paths."""
        return int((self.row_offsets.diff() == 0).sum())

    @cached_property
    def max_token(self) -> int:
        """The largest token id on any path."""
        return int(self.child_tokens.max())

    @cached_property
    def depth_widths(self) -> list[int]:
        """The largest number of children of a node at each depth; the last entry is 0."""
        bounds = self.depth_offsets.tolist()
        widths = self.row_offsets.diff()
        return [int(widths[start:stop].max()) for start, stop in zip(bounds[:-1], bounds[1:], strict=True)]

    @cached_property
    def max_shared(self) -> int:
        """The largest number of items that share one leaf."""
        return int(((self.item_ends - self.item_starts) * (self.row_offsets.diff() == 0)).max())

    @cached_property
    def parents(self) -> Tensor:
        """`(num_nodes,)`: the parent of each node; the root is its own parent."""
        # Edges are numbered by parent, and edge `e` leads to node `e + 1`, so each node is repeated once per child.
        nodes = torch.arange(self.num_nodes, dtype=torch.int32, device=self.items.device)
        return torch.cat([nodes[:1], nodes.repeat_interleave(self.row_offsets.diff())])

    @cached_property
    def forced_ends(self) -> Tensor:
        """`(num_nodes,)`: where the chain of forced tokens at each node ends: the first node at or below it that
        branches or is a leaf."""
        ends = torch.arange(self.num_nodes, dtype=torch.int32, device=self.items.device)
        # From the deepest level upwards, so that a child's end is known before its parent needs it.
        bounds = self.depth_offsets.tolist()
        for start, stop in reversed(list(zip(bounds[:-1], bounds[1:], strict=True))):
            forced = start + (self.row_offsets[start : stop + 1].diff() == 1).nonzero().squeeze(1)
            ends[forced] = ends[self.row_offsets[forced] + 1]
        return ends

    @cached_property
    def lowest_items(self) -> Tensor:
        """`(num_nodes,)`: the smallest item index below each node, which breaks ties."""
        lowest = torch.full((self.num_nodes,), LARGEST, dtype=torch.int32, device=self.items.device)
        leaves = self._leaf_nodes()
        lowest[leaves] = self.items[self.item_starts[leaves]]  # the items of a leaf ascend

        # From the deepest level upwards, each node passes its minimum on to its parent.
        bounds = self.depth_offsets.tolist()
        for start, stop in reversed(list(zip(bounds[1:-1], bounds[2:], strict=True))):
            lowest.scatter_reduce_(0, self.parents[start:stop].long(), lowest[start:stop].clone(), "amin")
        return lowest

    @cached_property
    def item_positions(self) -> Tensor:
        """`(largest item index + 1,)`: the place of each item in `items`; -1 for an index that is no item."""
        positions = torch.full((int(self.items.max()) + 1,), -1, dtype=torch.int32, device=self.items.device)
        positions[self.items.long()] = torch.arange(self.num_items, dtype=torch.int32, device=self.items.device)
        return positions

    @cached_property
    def leaves(self) -> Tensor:
        """`(num_items,)`: the leaf of each place in `items`."""
        leaves = self._leaf_nodes()
        leaves = leaves[self.item_starts[leaves].argsort()]
        return leaves.repeat_interleave(self.item_ends[leaves] - self.item_starts[leaves])

    @cached_property
    def level_keys(self) -> Tensor:
        """`(num_nodes,)`: depth and first place of each node in one number, which ascends with the nodes."""
        nodes = torch.arange(self.num_nodes, device=self.items.device)
        return self.depths(nodes) * (self.num_items + 1) + self.item_starts

    def above(self, places: Tensor, depths: Tensor) -> Tensor:
        """The node at the given depth on the path of each place in `items`; an arbitrary node if the path is
        shorter."""
        # Among the nodes at a depth, this is the last node whose first place is not after the given place.
        return torch.searchsorted(self.level_keys, depths * (self.num_items + 1) + places, right=True) - 1

    def depths(self, nodes: Tensor) -> Tensor:
        """Number of tokens that lead to each node."""
        return torch.bucketize(nodes, self.depth_offsets, right=True) - 1

    def children(self, nodes: Tensor, width: int | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """The children of the nodes. A leaf, or the node -1, has none.

        Args:
            nodes (`torch.Tensor`): Nodes, in any shape.
            width (`int`, *optional*): C, if the caller knows an upper bound. By default it is the largest number of
                children, which has to be copied from the device.

        Returns:
            `tokens, next_nodes, legal`, each of shape `(*nodes.shape, C)`; tokens and nodes are 0 where not legal.
        """
        # -1 is read as node 0, whose children are then hidden.
        starts = _pick(self.row_offsets, nodes.clamp(min=0))
        counts = torch.where(nodes < 0, 0, _pick(self.row_offsets, nodes + 1) - starts)
        width = int(counts.max()) if width is None else width

        column = torch.arange(width, device=nodes.device)
        legal = column < counts.unsqueeze(-1)
        edges = torch.where(legal, starts.unsqueeze(-1) + column, 0)
        return torch.where(legal, _pick(self.child_tokens, edges), 0).long(), torch.where(legal, edges + 1, 0), legal

    def advance(self, nodes: Tensor, tokens: Tensor) -> Tensor:
        """The node that each token leads to; -1 where the token is not legal or the node is -1 already."""
        low = self.row_offsets[nodes].long()
        high = self.row_offsets[nodes + 1].long()
        ends = torch.where(nodes < 0, low, high)

        # Binary search for the edge, since the tokens of a node ascend. All nodes take the steps of the widest node.
        last = len(self.child_tokens) - 1
        for _ in range(max(self.depth_widths).bit_length()):
            middle = (low + high) // 2
            below = (low < high) & (self.child_tokens[middle.clamp(max=last)] < tokens)
            low = torch.where(below, middle + 1, low)
            high = torch.where(below, high, middle)

        found = (low < ends) & (self.child_tokens[low.clamp(max=last)] == tokens)
        return torch.where(found, low + 1, -1)

    def walk(self, token_ids: Tensor) -> Tensor:
        """The nodes on the way from the root along `(..., T)` tokens, `(..., T + 1)`: node `t` is the one at which
        token `t` is chosen. All nodes after the first illegal token are -1."""
        nodes = [torch.zeros(token_ids.shape[:-1], dtype=torch.int64, device=token_ids.device)]
        for tokens in token_ids.unbind(-1):
            nodes.append(self.advance(nodes[-1], tokens))
        return torch.stack(nodes, -1)

    def last_tokens(self, nodes: Tensor, count: int) -> Tensor:
        """The last `count` tokens on the way from the root to each node, `(*nodes.shape, count)`; where there are
        fewer, the first entries are arbitrary."""
        tokens = []
        for _ in range(count):
            tokens.append(self.child_tokens[(nodes - 1).clamp(min=0)].long())  # edge `n - 1` leads to node `n`
            nodes = self.parents[nodes].long()
        return torch.stack(tokens[::-1], -1) if tokens else nodes.new_empty(*nodes.shape, 0)

    def items_at(self, node: int | Tensor) -> Tensor:
        """The items whose path ends at this node, in catalogue order; none at an inner node."""
        node = int(node)
        if node < 0 or self.row_offsets[node] != self.row_offsets[node + 1]:
            return self.items[:0].long()
        return self.items[self.item_starts[node] : self.item_ends[node]].long()

    def to(self, device: torch.device | str) -> TokenTrie:
        """The trie with its tensors on `device`; the same object if they are there already."""
        if self.items.device == torch.device(device):
            return self
        return TokenTrie(**{name: tensor.to(device) for name, tensor in self._tensors().items()})

    def save(self, path: str | Path) -> None:
        """Writes the tensors to one safetensors file."""
        with atomic_file(path) as temporary:
            save_file({name: tensor.contiguous() for name, tensor in self._tensors().items()}, temporary)

    @classmethod
    def load(cls, path: str | Path) -> TokenTrie:
        """Reads the trie that `save` wrote."""
        return cls(**load_file(path))

    def _leaf_nodes(self) -> Tensor:
        """`(num_leaves,)`: the nodes without children, ascending."""
        return (self.row_offsets.diff() == 0).nonzero().squeeze(1)

    def _tensors(self) -> dict[str, Tensor]:
        return {field.name: getattr(self, field.name) for field in fields(self)}


def _pick(table: Tensor, index: Tensor) -> Tensor:
    """`table[index]`; on a table too large for the CPU's caches, `index_select` is three times faster."""
    return table.index_select(0, index.flatten()).view(index.shape)
