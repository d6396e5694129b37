"""Restricts the rows of a batch to the items of a trie, while an engine (vLLM) writes one token per row and step.

Each row is a request. The engine reports which rows begin, end and move. The node that each row has reached in the
trie is kept between steps. A step therefore reads only the new tokens, and then gathers the children of the nodes from
the trie's arrays. Both are done for all rows at once.

An item is *left* in a row if the row's filter allows it, and if it is neither excluded nor written yet. As elsewhere
in trl-rec, items that are not left are removed *before* the softmax in lists, and *after* it if the model writes
single items (see [`rank_items`]). A *place* is a position in `TokenTrie.items`, which contains the items in the order
of their paths.

Legend: R: rows that [`CatalogRows`] has room for, M: running rows, K: items per row, E: excluded items per row
(padded), S = K + E, C: children (padded), V: vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from trl_rec.decoding.excluded import Excluded
from trl_rec.decoding.item_filter import Mask
from trl_rec.decoding.lists.constraint import emptied_children, taken_places
from trl_rec.items import TokenTrie
from trl_rec.losses.output import at_least_float32
from trl_rec.serving.vllm.filters import FilterTables


@dataclass
class Row:
    """Describes a request: the items that it asks for, and the tokens that have been written so far.

    Args:
        length (`int`): Number of items to write, including the complete items in `prefix`.
        written (`list[int]`): All tokens that the request has written. The engine appends to this list.
        prefix (list of `int`, *optional*): Tokens at the end of the prompt that already belong to the output: complete
            items, and possibly the beginning of one more.
        exclude (list of `int`, *optional*): Indices of items to leave out.
        mask ([`Mask`], *optional*): The allowed items.
    """

    length: int
    written: list[int]
    prefix: Sequence[int] = ()
    exclude: Sequence[int] = ()
    mask: Mask | None = None
    num_read: int = field(default=0, init=False)

    def new_tokens(self) -> Sequence[int]:
        """Returns the tokens that have not been returned before, the prefix first."""
        start = self.num_read
        skipped = len(self.prefix)
        self.num_read = skipped + len(self.written)
        return [*self.prefix, *self.written] if start < skipped else self.written[start - skipped :]


class CatalogRows:
    """The state of all rows of a batch.

    Args:
        trie (`TokenTrie`): The paths of the items. If the model writes lists, the paths as they occur in lists.
        eos_token_id (`int`): The token after the last item.
        are_lists (`bool`): Whether the model writes lists.
        renormalize (`bool`): Whether the softmax is over the legal tokens. If False, it is over the whole vocabulary.
            Lists always use the legal tokens.
    """

    def __init__(self, trie: TokenTrie, eos_token_id: int, *, are_lists: bool, renormalize: bool = True) -> None:
        self.trie = trie
        self.rows: dict[int, Row] = {}
        self._eos = eos_token_id
        self._are_lists = are_lists
        self._renormalize = renormalize or are_lists
        self._filters = FilterTables(trie)

        # One entry per row of the batch. The tables grow when a row needs more room.
        empty = torch.zeros(0, dtype=torch.int64, device=trie.items.device)
        self._nodes = empty  # (R,): the node that each row has reached; -1 after a token or item that was not legal
        self._ranks = empty  # (R,): number of complete items
        self._lengths = empty  # (R,): number of items to write
        self._filter_of = empty  # (R,): index of the row's filter in `FilterTables`
        self._items = empty.view(0, 0)  # (R, K): the items, -1 is padding
        self._excluded = empty.view(0, 0)  # (R, E): places of excluded items that the filter allows, in order

    def add(self, index: int, row: Row) -> None:
        """Begins a row at an index. If the index already has a row, the old row is replaced."""
        trie = self.trie
        self.rows.pop(index, None)
        number = self._filters.number(row.mask, self._used_filters())

        # 1. Find the excluded items that the filter allows. The filter removes the others.
        places = Excluded(trie, [row.exclude], 1).places.long()
        is_allowed = self._filters.is_allowed(places.new_tensor([number]), places)
        places = torch.where(is_allowed, places, trie.num_items).sort(1).values[0]

        # 2. Write the row.
        self._make_room(index + 1, max(row.length, 1), len(places))
        self._nodes[index] = 0
        self._ranks[index] = 0
        self._lengths[index] = row.length
        self._filter_of[index] = number
        self._items[index] = -1
        self._excluded[index] = trie.num_items
        self._excluded[index, : len(places)] = places
        self.rows[index] = row

    def remove(self, index: int) -> None:
        """Ends a row. Nothing happens if there is none."""
        self.rows.pop(index, None)

    def move(self, source: int, target: int, *, swap: bool) -> None:
        """Moves a row to another index, or exchanges the rows at two indices. Either index may have no row."""
        first = self.rows.pop(source, None)
        second = self.rows.pop(target, None)
        if first is not None:
            self.rows[target] = first
        if swap and second is not None:
            self.rows[source] = second
        if first is None and (second is None or not swap):
            return

        self._make_room(max(source, target) + 1, 0, 0)
        for table in (self._nodes, self._ranks, self._lengths, self._filter_of, self._items, self._excluded):
            table[[source, target]] = table[[target, source]]

    def apply(self, logits: Tensor) -> Tensor:
        """Returns the logits `(rows, V)` after the restriction to the catalogue. Changes `logits`.

        In the rows that are restricted, legal tokens get their log-probabilities, and all other tokens get -inf.
        """
        if not self.rows:
            return logits
        self._read()
        index = self._index(sorted(self.rows))
        rows = logits[index]
        tokens, scores, is_left = self._legal_scores(index, rows)

        # Scatter the scores to the vocabulary. All padding points to token 0; taking the maximum keeps the score of
        # token 0 where it is legal.
        masked = torch.full_like(rows, -torch.inf)
        masked.scatter_reduce_(1, tokens, scores.to(masked.dtype), "amax")

        # EOS follows the last item. It also follows if no item is left, so that the request ends.
        ended = ~is_left.any(1)
        masked[ended] = -torch.inf
        masked[ended, self._eos] = 0.0
        logits[index] = masked
        return logits

    def items(self, index: int) -> list[int]:
        """Returns the complete items of a row."""
        self._read()
        found: list[int] = self._items[index, : int(self._ranks[index])].tolist()
        return found

    def _legal_scores(self, index: Tensor, logits: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Returns the children's tokens, their log-probabilities, and whether an item is left below them.

        All three are `(M, C)`. The log-probabilities of padding, and of children below which no item is left, are
        -inf.
        """
        # 1. Find the children, and those below which an item is left.
        trie = self.trie
        is_open = self._ranks[index] < self._lengths[index]
        nodes = torch.where(is_open, self._nodes[index], -1)
        tokens, children, legal = trie.children(nodes)
        is_left = legal & self._has_items_left(index, nodes, children)

        # 2. Take the softmax.
        scores = at_least_float32(logits.gather(1, tokens))
        if self._are_lists:
            legal = is_left
        if self._renormalize:
            normalizer = scores.masked_fill(~legal, -torch.inf).logsumexp(1, keepdim=True)
        else:
            normalizer = at_least_float32(logits).logsumexp(1, keepdim=True)
        return tokens, torch.where(is_left, scores - normalizer, -torch.inf), is_left

    def _has_items_left(self, index: Tensor, nodes: Tensor, children: Tensor) -> Tensor:
        """Returns whether an item is left below each child `(M, C)`."""
        filters = self._filter_of[index]

        def num_allowed(nodes: Tensor) -> Tensor:
            return self._filters.num_allowed(filters, nodes)

        emptied = emptied_children(self.trie, nodes, self._taken(index), children.shape[1], num_allowed)
        return ~emptied & (num_allowed(children) > 0)

    def _taken(self, index: Tensor) -> Tensor:
        """Returns the places of each row's written and excluded items, in order, `(M, S)`."""
        return taken_places(self.trie, self._items[index], self._ranks[index], self._excluded[index])

    def _read(self) -> None:
        """Reads the tokens that were written since the last call, usually one per row."""
        new = {index: tokens for index, row in self.rows.items() if (tokens := row.new_tokens())}
        if not new:
            return
        written = [torch.tensor(tokens) for tokens in new.values()]
        if any(int(tokens.min()) < 0 for tokens in written):
            raise RuntimeError("vLLM has not filled in all tokens of a row; switch asynchronous scheduling off")

        index = self._index(list(new))
        padded = torch.nn.utils.rnn.pad_sequence(written, batch_first=True, padding_value=-1)
        for column in padded.to(index.device).unbind(1):
            is_real = column >= 0
            self._advance(index[is_real], column[is_real])

    def _advance(self, index: Tensor, tokens: Tensor) -> None:
        """Moves the rows `(M,)` along their next tokens `(M,)`.

        A leaf may have several items. A row that reaches a leaf has written the first of these items that is left. If
        none of them is left, the row ends.
        """
        trie = self.trie
        is_open = self._ranks[index] < self._lengths[index]
        nodes = torch.where(is_open, trie.advance(self._nodes[index], tokens), self._nodes[index])
        is_leaf = trie.row_offsets[nodes] == trie.row_offsets[nodes + 1]
        is_end = is_open & (nodes >= 0) & is_leaf
        item = self._first_left(index, nodes.clamp(min=0))
        ended = is_end & (item >= 0)

        # Store the items that are now complete. The other rows keep their entry at this rank.
        rank = self._ranks[index].clamp(max=self._items.shape[1] - 1)
        self._items[index, rank] = torch.where(ended, item, self._items[index, rank])
        self._ranks[index] += ended.long()
        self._nodes[index] = torch.where(ended, 0, torch.where(is_end, -1, nodes))

    def _first_left(self, index: Tensor, leaves: Tensor) -> Tensor:
        """Returns, for each leaf `(M,)`, the first of the leaf's items that is left in the row, or -1 if none is left.

        For nodes that are not leaves, the result is arbitrary.
        """
        trie = self.trie
        starts = trie.item_starts[leaves].long().unsqueeze(1)
        places = starts + torch.arange(trie.max_shared, device=leaves.device)  # (M, maximum number per leaf)
        inside = places < trie.item_ends[leaves].unsqueeze(1)
        places = torch.where(inside, places, trie.num_items)

        taken = self._taken(index)
        found = torch.searchsorted(taken, places).clamp(max=taken.shape[1] - 1)
        is_left = self._filters.is_allowed(self._filter_of[index], places) & (taken.gather(1, found) != places)
        first = is_left.long().argmax(1, keepdim=True)
        item = trie.items[places.gather(1, first).squeeze(1).clamp(max=trie.num_items - 1)].long()
        return torch.where(is_left.any(1), item, -1)

    def _make_room(self, num_rows: int, num_items: int, num_excluded: int) -> None:
        """Makes the tables large enough."""
        if num_rows > len(self._nodes):
            num_rows = max(num_rows, 2 * len(self._nodes))
            for name in ("_nodes", "_ranks", "_lengths", "_filter_of"):
                setattr(self, name, _enlarged(getattr(self, name), (num_rows,), 0))
        self._items = _enlarged(self._items, (len(self._nodes), num_items), -1)
        self._excluded = _enlarged(self._excluded, (len(self._nodes), num_excluded), self.trie.num_items)

    def _used_filters(self) -> list[int]:
        """Returns the numbers of the filters of all running rows."""
        used: list[int] = self._filter_of[self._index(list(self.rows))].tolist()
        return used

    def _index(self, rows: list[int]) -> Tensor:
        return torch.tensor(rows, dtype=torch.int64, device=self.trie.items.device)


def _enlarged(table: Tensor, shape: tuple[int, ...], value: int) -> Tensor:
    """Returns a table of at least this shape, in which new entries have the value."""
    shape = tuple(map(max, table.shape, shape))
    if shape == tuple(table.shape):
        return table
    larger = table.new_full(shape, value)
    larger[tuple(slice(size) for size in table.shape)] = table
    return larger
