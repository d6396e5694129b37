"""The catalogue as a prefix tree over token ids, in a handful of tensors that live where the model lives.

Nodes are numbered level by level, and within a level in the order of their parents and tokens, so the edge with number
`e` leads to node `e + 1`: one array of row offsets and one of tokens are the whole tree (compressed sparse rows).
Items are kept in the order of their token sequences, so those below any node are a slice. torch alone; no Python
object a node, no loop over items.

Legend: N sequences, L longest sequence, T tokens, C widest of the nodes asked for (padded).
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor


if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


LARGEST = torch.iinfo(torch.int32).max


@dataclass(frozen=True, eq=False)
class TokenTrie:
    """The legal continuations of every prefix of every item's path. Build it with `from_sequences` or `from_catalog`.

    Args:
        row_offsets (`torch.Tensor` of shape `(num_nodes + 1,)`): The children of node `n` are the edges
            `row_offsets[n]` up to `row_offsets[n + 1]`; edge `e` leads to node `e + 1`. Node 0 is the root.
        child_tokens (`torch.Tensor` of shape `(num_nodes - 1,)`): Token of each edge, ascending within a node.
        item_starts (`torch.Tensor` of shape `(num_nodes,)`): The items below node `n` are `items[item_starts[n] :
            item_ends[n]]`.
        item_ends (`torch.Tensor` of shape `(num_nodes,)`): See `item_starts`.
        items (`torch.Tensor` of shape `(num_items,)`): Item indices by path; those that share a path in ascending
            order.
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
        cls, sequences: Tensor | Sequence[Sequence[int]] | Any, items: Tensor | Sequence[int] | None = None
    ) -> TokenTrie:
        """The trie of the given paths.

        Args:
            sequences: Lists of token ids, or one 2-D integer array or tensor, padded on the right with -1. No path may
                begin another one: end them with a terminator, or let all have the same length.
            items: The item of each path, distinct; by default its row. Several items may have the same path and share
                a leaf.
        """
        paths = _as_matrix(sequences)
        items = torch.arange(len(paths)) if items is None else torch.as_tensor(items)
        if (
            len(items) != len(paths)
            or items.is_floating_point()
            or not 0 <= int(items.min()) <= int(items.max()) <= LARGEST
        ):
            raise ValueError(f"{len(paths)} sequences need as many item indices, whole numbers from 0 to {LARGEST}")
        order = torch.argsort(items)
        if bool((items[order].diff() == 0).any()):
            twice = items[order][:-1][items[order].diff() == 0][0]
            raise ValueError(f"item {int(twice)} occurs more than once; give each item one sequence")
        order = _lexicographic_order(paths, order)
        return cls(**_levels(paths, order), items=items[order].to(torch.int32))

    @classmethod
    def from_catalog(
        cls, catalog: Any, tokenizer: PreTrainedTokenizerBase, *, duplicates: str = "share", lists: bool = False
    ) -> TokenTrie:
        """The trie of an `ItemCatalog`'s `paths(tokenizer)`, or with `lists` of its `list_paths(tokenizer)`. Items
        whose surfaces are the same share a leaf, with one warning that counts them, or are refused
        (`duplicates="refuse"`)."""
        if duplicates not in ("share", "refuse"):
            raise ValueError(f"duplicates must be 'share' or 'refuse', not {duplicates!r}")
        paths = catalog.list_paths(tokenizer) if lists else catalog.paths(tokenizer)
        try:
            trie = cls.from_sequences(torch.from_numpy(paths.padded()))
        except ValueError as error:
            if not lists or catalog.surface != "title":
                raise
            raise ValueError(
                f"{error}; titles in lists end in a line break, so take line breaks out of them"
            ) from error
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
        """Nodes, the root included."""
        return len(self.item_starts)

    @property
    def num_items(self) -> int:
        """Items, those that share a leaf counted each."""
        return len(self.items)

    @property
    def max_depth(self) -> int:
        """Tokens of the longest path."""
        return len(self.depth_offsets) - 2

    @cached_property
    def num_leaves(self) -> int:
        """Distinct paths."""
        return int((self.row_offsets.diff() == 0).sum())

    @cached_property
    def max_token(self) -> int:
        """The largest token id on any path."""
        return int(self.child_tokens.max())

    @cached_property
    def depth_widths(self) -> list[int]:
        """The most children that a node of each depth has; the last entry is 0."""
        bounds = self.depth_offsets.tolist()
        widths = self.row_offsets.diff()
        return [int(widths[start:stop].max()) for start, stop in zip(bounds[:-1], bounds[1:], strict=True)]

    @cached_property
    def max_shared(self) -> int:
        """The most items that share one leaf."""
        return int(((self.item_ends - self.item_starts) * (self.row_offsets.diff() == 0)).max())

    @cached_property
    def parents(self) -> Tensor:
        """`(num_nodes,)`: each node's parent; the root is its own."""
        nodes = torch.arange(self.num_nodes, dtype=torch.int32, device=self.items.device)
        return torch.cat([nodes[:1], nodes.repeat_interleave(self.row_offsets.diff())])

    @cached_property
    def forced_ends(self) -> Tensor:
        """`(num_nodes,)`: the first node at or below each node that branches or is a leaf: where a chain of forced
        tokens ends."""
        ends = torch.arange(self.num_nodes, dtype=torch.int32, device=self.items.device)
        bounds = self.depth_offsets.tolist()
        for start, stop in reversed(list(zip(bounds[:-1], bounds[1:], strict=True))):
            forced = start + (self.row_offsets[start : stop + 1].diff() == 1).nonzero().squeeze(1)
            ends[forced] = ends[self.row_offsets[forced] + 1]
        return ends

    @cached_property
    def lowest_items(self) -> Tensor:
        """`(num_nodes,)`: the smallest item index below each node, by which ties are broken."""
        lowest = torch.full(
            (self.num_nodes,), torch.iinfo(torch.int32).max, dtype=torch.int32, device=self.items.device
        )
        leaves = (self.row_offsets.diff() == 0).nonzero().squeeze(1)
        lowest[leaves] = self.items[self.item_starts[leaves]]
        bounds = self.depth_offsets.tolist()
        for start, stop in reversed(list(zip(bounds[1:-1], bounds[2:], strict=True))):
            lowest.scatter_reduce_(0, self.parents[start:stop].long(), lowest[start:stop].clone(), "amin")
        return lowest

    @cached_property
    def item_positions(self) -> Tensor:
        """`(largest item index + 1,)`: where each item stands in `items`; -1 for an index that is no item."""
        positions = torch.full((int(self.items.max()) + 1,), -1, dtype=torch.int32, device=self.items.device)
        positions[self.items.long()] = torch.arange(self.num_items, dtype=torch.int32, device=self.items.device)
        return positions

    @cached_property
    def leaves(self) -> Tensor:
        """`(num_items,)`: the leaf of each place in `items`."""
        leaves = (self.row_offsets.diff() == 0).nonzero().squeeze(1)
        leaves = leaves[self.item_starts[leaves].argsort()]
        return leaves.repeat_interleave(self.item_ends[leaves] - self.item_starts[leaves])

    @cached_property
    def level_keys(self) -> Tensor:
        """`(num_nodes,)`: level and then first item of each node in one number, which ascends with the nodes."""
        nodes = torch.arange(self.num_nodes, device=self.items.device)
        return self.depths(nodes) * (self.num_items + 1) + self.item_starts

    def above(self, places: Tensor, depths: Tensor) -> Tensor:
        """The node of each given depth above each place in `items`; another node where the place's path ends
        before."""
        return torch.searchsorted(self.level_keys, depths * (self.num_items + 1) + places, right=True) - 1

    def depths(self, nodes: Tensor) -> Tensor:
        """How many tokens lead to each node."""
        return torch.bucketize(nodes, self.depth_offsets, right=True) - 1

    def children(self, nodes: Tensor, width: int | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """`tokens, next_nodes, legal`, each of shape `(*nodes.shape, C)`.

        Entries that are not legal hold 0. C is the widest of `nodes`; a caller who knows a bound passes it as `width`,
        and nothing is read back from the device. A leaf, or the node -1, has no children.
        """
        starts = _pick(self.row_offsets, nodes.clamp(min=0))
        counts = torch.where(nodes < 0, 0, _pick(self.row_offsets, nodes + 1) - starts)
        width = int(counts.max()) if width is None else width
        column = torch.arange(width, device=nodes.device)
        legal = column < counts.unsqueeze(-1)
        edges = torch.where(legal, starts.unsqueeze(-1) + column, 0)
        return torch.where(legal, _pick(self.child_tokens, edges), 0).long(), torch.where(legal, edges + 1, 0), legal

    def advance(self, nodes: Tensor, tokens: Tensor) -> Tensor:
        """The node that each token leads to, -1 where it is not legal or the node is -1 already."""
        low, high = self.row_offsets[nodes].long(), self.row_offsets[nodes + 1].long()
        ends = torch.where(nodes < 0, low, high)
        last = len(self.child_tokens) - 1
        for _ in range(max(self.depth_widths).bit_length()):  # bisection: the tokens of a node ascend
            middle = (low + high) // 2
            below = (low < high) & (self.child_tokens[middle.clamp(max=last)] < tokens)
            low, high = torch.where(below, middle + 1, low), torch.where(below, high, middle)
        found = (low < ends) & (self.child_tokens[low.clamp(max=last)] == tokens)
        return torch.where(found, low + 1, -1)

    def walk(self, token_ids: Tensor) -> Tensor:
        """The nodes passed from the root: `(..., T)` tokens give `(..., T + 1)` nodes, entry `t` being where token `t`
        is chosen. After the first illegal token all are -1."""
        nodes = [torch.zeros(token_ids.shape[:-1], dtype=torch.int64, device=token_ids.device)]
        for tokens in token_ids.unbind(-1):
            nodes.append(self.advance(nodes[-1], tokens))
        return torch.stack(nodes, -1)

    def items_at(self, node: int | Tensor) -> Tensor:
        """The items whose path ends at this node, in catalogue order; none at an inner node."""
        node = int(node)
        if node < 0 or self.row_offsets[node] != self.row_offsets[node + 1]:
            return self.items[:0].long()
        return self.items[self.item_starts[node] : self.item_ends[node]].long()

    def to(self, device: torch.device | str) -> TokenTrie:
        """The trie with its tensors on `device`; itself where they are there already."""
        if self.items.device == torch.device(device):
            return self
        return TokenTrie(**{name: tensor.to(device) for name, tensor in self._tensors().items()})

    def save(self, path: str | Path) -> None:
        """Writes the tensors as one safetensors file."""
        save_file({name: tensor.contiguous() for name, tensor in self._tensors().items()}, path)

    @classmethod
    def load(cls, path: str | Path) -> TokenTrie:
        """The trie that `save` wrote."""
        return cls(**load_file(path))

    def _tensors(self) -> dict[str, Tensor]:
        return {field.name: getattr(self, field.name) for field in fields(self)}


def _pick(table: Tensor, index: Tensor) -> Tensor:
    """`table[index]`; on a table that no cache holds `index_select` is three times faster than indexing."""
    return table.index_select(0, index.flatten()).view(index.shape)


def _as_matrix(sequences: Any) -> Tensor:
    """`(N, L)`, padded with -1."""
    if isinstance(sequences, Tensor) or hasattr(sequences, "shape"):
        paths = torch.as_tensor(sequences)
        if paths.ndim != 2 or paths.is_floating_point():
            raise ValueError(
                f"sequences must be a 2-D array of token ids, not {paths.dtype} of shape {tuple(paths.shape)}"
            )
        if paths.dtype not in (torch.int32, torch.int64):
            paths = paths.long()
    else:
        rows = [torch.as_tensor(row, dtype=torch.int64) for row in sequences]
        paths = (
            torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=-1) if rows else torch.empty(0, 0)
        )
    if not paths.numel():
        raise ValueError("there is no sequence to build a trie from")
    if bool((paths[:, 0] < 0).any()):
        raise ValueError(f"sequence {int((paths[:, 0] < 0).nonzero()[0])} is empty")
    if int(paths.max()) > LARGEST:
        raise ValueError(f"token id {int(paths.max())} is too large; a trie holds ids up to {LARGEST}")
    gaps = ((paths[:, :-1] < 0) & (paths[:, 1:] >= 0)).any(1)
    if bool(gaps.any()):
        raise ValueError(
            f"sequence {int(gaps.nonzero()[0])} holds a negative id before its end; pad with -1 on the right"
        )
    return paths


def _lexicographic_order(paths: Tensor, order: Tensor) -> Tensor:
    """Rows by path, equal ones in the given order: stable sorts from the last columns to the first, as many columns at
    a time as fit into 62 bits, which for semantic IDs is one sort in all."""
    lows = paths.amin(0).tolist()
    bits = [(high - low).bit_length() for high, low in zip(paths.amax(0).tolist(), lows, strict=True)]
    column = len(bits)
    while column:
        key, used = torch.zeros(len(paths), dtype=torch.int64), 0
        while column and used + bits[column - 1] <= 62:
            column -= 1
            key |= (paths[:, column] - lows[column]).long() << used
            used += bits[column]
        order = order[torch.sort(key[order], stable=True).indices]
    return order


def _levels(paths: Tensor, order: Tensor) -> dict[str, Tensor]:
    """Nodes level by level: in sorted order a new node begins where a row's prefix first differs from the row
    before."""
    num_rows, depth = paths.shape
    differs = torch.zeros(num_rows, dtype=torch.bool)
    differs[0] = True
    node_of_row, num_nodes = torch.zeros(num_rows, dtype=torch.int32), 1
    tokens, widths, depth_offsets = [], [], [0, 1]
    starts, ends = [torch.zeros(1, dtype=torch.int32)], [torch.full((1,), num_rows, dtype=torch.int32)]
    for column in range(depth):
        token = paths[order, column]
        differs[1:] |= token[1:] != token[:-1]
        start = differs.nonzero().squeeze(1)
        end = torch.cat([start[1:], torch.tensor([num_rows])])
        alive = token >= 0
        start, end = start[alive[start]], end[alive[start]]
        level = depth_offsets[-2]
        widths.append(torch.bincount(node_of_row[start] - level, minlength=num_nodes - level).to(torch.int32))
        _check_prefixes(alive, node_of_row, widths[-1], level, order)
        node_of_row = torch.where(alive, num_nodes - 1 + (differs & alive).cumsum(0), -1).to(torch.int32)
        tokens.append(token[start].to(torch.int32))
        starts.append(start.to(torch.int32))
        ends.append(end.to(torch.int32))
        num_nodes += len(start)
        depth_offsets.append(num_nodes)
    widths.append(torch.zeros(num_nodes - depth_offsets[-2], dtype=torch.int32))
    return {
        "row_offsets": torch.cat([torch.zeros(1, dtype=torch.int32), torch.cat(widths).cumsum(0, dtype=torch.int32)]),
        "child_tokens": torch.cat(tokens),
        "item_starts": torch.cat(starts),
        "item_ends": torch.cat(ends),
        "depth_offsets": torch.tensor(depth_offsets),
    }


def _check_prefixes(alive: Tensor, node_of_row: Tensor, widths: Tensor, level: int, order: Tensor) -> None:
    """A row that ends where others go on could never be told from their beginning."""
    ended = (~alive & (node_of_row >= 0)).nonzero().squeeze(1)
    if len(ended) and bool((clash := widths[node_of_row[ended] - level] > 0).any()):
        row = int(order[ended[clash][0]])
        raise ValueError(
            f"sequence {row} is the beginning of another one; end every sequence with a terminator such as EOS"
        )
