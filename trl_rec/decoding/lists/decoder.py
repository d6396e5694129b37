"""Tracks lists while a model writes them: the trie node each list has reached, its legal tokens, and their logits.

Sampling and beam search both call a `ListDecoder` in a loop. Each round scores the children of each list's node
(`logps`), chooses one of them, moves the list there (`move`), and lets the model read the new tokens (`read`).

Tokens that the trie forces need no choice and are skipped: no forward pass is spent on them alone. The model reads
them together with the last chosen token, just before the next choice. This also holds for forced tokens at the end of
an item and at the beginning of the next item. Because the number of tokens to read varies, each round copies four
integers from the device to the host, to choose the size of its forward pass. If all paths have the same length and
every depth has a node that branches, as with item tokens and most semantic IDs, skipping forced tokens would save no
round. In this case, all lists advance by one token per round, whether this token is forced or chosen, and nothing is
copied to the host. Forced tokens are also not skipped if the cache has one row per list (see `prompt_cache.py`).

Legend: B: prompts, G: lists per prompt, R = B * G, A: lists per prompt that are read in this round (padded), K: items
per list, S: taken items (already in the list or excluded; padded), C: children (padded), W: tokens to read
(right-aligned), U: distinct tokens of the trie.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from trl_rec.decoding.beam import best_first
from trl_rec.decoding.lists.constraint import legal_children
from trl_rec.decoding.prompt_cache import Pending, SeparateRows, SharedPrompt
from trl_rec.decoding.trie_weights import TrieWeights, Unweighted
from trl_rec.items.trie import TokenTrie
from trl_rec.losses.output import at_least_float32


class Lists(NamedTuple):
    """The state of each list while it is written. Tensors have the shape `(R,)` unless stated otherwise.

    Args:
        nodes (`torch.Tensor`): The node at which each list makes its next choice, among the node's children.
        reached (`torch.Tensor`): The node that the last choice of each list led to. It equals `nodes`, unless that
            choice led to a leaf and so ended an item. Then `nodes` is already the node of the next item's first
            choice.
        ranks (`torch.Tensor`): Number of items in each list; K if the list is complete.
        num_written (`torch.Tensor`): Number of tokens in each list, up to `nodes`.
        num_read (`torch.Tensor`): Number of these tokens that the model has read.
        items (`torch.Tensor` of shape `(R, K + 1)`): The items of each list, padded with -1. The last column is
            scratch space.
        taken (`torch.Tensor` of shape `(R, S)`): The items that can no longer be added to each list, as indices into
            `trie.items` in ascending order; `num_items` is padding.
    """

    nodes: Tensor
    reached: Tensor
    ranks: Tensor
    num_written: Tensor
    num_read: Tensor
    items: Tensor
    taken: Tensor

    def take(self, rows: Tensor) -> Lists:
        """Returns the lists at the indices `rows`."""
        return Lists(*(part[rows] for part in self))


class ListLogits(NamedTuple):
    """The model's logits for the next choice of each list.

    Args:
        logits (`torch.Tensor` of shape `(B, A, U)`): The logits of `trie.tokens`.
        rows (`torch.Tensor` of shape `(R,)`): For each list, the index of its logits among the A rows of its prompt.
            Arbitrary if the list was not read in this round.
        max_children (`int`): C. No node of a next choice has more than C children.
        at_root (`bool`): Whether the next choice of every list is known to be at the root.
    """

    logits: Tensor
    rows: Tensor
    max_children: int
    at_root: bool


class ListDecoder:
    """Writes the lists of a batch of prompts. Each round makes one choice per list.

    Args:
        cache (`SharedPrompt` or `SeparateRows`): The key-value cache. It must already contain the prompts and give
            the logits of `trie.tokens`.
        trie (`TokenTrie`): The items' paths as they are written in lists.
        excluded (`torch.Tensor` of shape `(B, E)`): The excluded items, and the items of weight 0 (see
            `weighted`), as distinct indices into `trie.items` in ascending order; `num_items` is padding.
        weighted (`TrieWeights` or `Unweighted`): The weights of the items. Of the items that share a leaf, a list gets
            the one with the largest weight.
        list_length (`int`): K. Every prompt must have at least K items that are not excluded.
        num_lists (`int`): G.

    Attributes:
        shape (`tuple[int, int]`): `(B, G)`.
        max_steps (`int`): Maximum number of choices per list.
    """

    def __init__(
        self,
        cache: SharedPrompt | SeparateRows,
        trie: TokenTrie,
        excluded: Tensor,
        weighted: TrieWeights | Unweighted,
        *,
        list_length: int,
        num_lists: int,
    ) -> None:
        self.cache = cache
        self.trie = trie
        self.excluded = excluded
        self.weighted = weighted
        self.list_length = list_length
        self.shape = (len(excluded), num_lists)
        self.max_steps = list_length * trie.max_depth

        # Skip forced tokens, except in three cases:
        # - The cache reads one token of every list per step.
        # - The whole catalogue is a single forced path.
        # - Skipping would save no round, because all leaves have the same depth and every depth above them has a node
        #   that branches.
        # Without skipping, each round goes one token deeper. If all leaves have the same depth, the depth of each
        # round is then known in advance.
        self.skips = (
            cache.shared and trie.first_width > 0 and not (trie.has_equal_depths and 1 not in trie.depth_widths)
        )
        self.depth_is_known = trie.has_equal_depths and not self.skips

        # The first choice of every item is at the node `start`. All items begin with the same tokens up to that node;
        # these tokens are the opening.
        self.start = trie.first_choice if self.skips else 0
        self.opening = trie.opening if self.skips else trie.opening[:, :0]  # (1, its length)

    def begin(self) -> tuple[Lists, ListLogits]:
        """Returns empty lists and the logits for their first choice. Afterwards, the cache has one beam per list."""
        logits = self.cache.logits  # (B, 1, U)
        num_prompts, num_lists = self.shape

        # 1. Let the model read the opening once per prompt, then share the result among the prompt's lists.
        length = self.opening.shape[1]
        if length:
            lengths = torch.full((num_prompts, 1), length, device=logits.device)
            tokens = self.opening.expand(num_prompts, 1, -1)
            logits = self.cache.extend(Pending(tokens, lengths, lengths, lengths > 0, 1, length - 1))[0]
        self.cache.reorder(torch.zeros(self.shape, dtype=torch.int64, device=logits.device))

        # 2. Make empty lists. `taken` has K free columns besides the excluded items.
        room = self.excluded.new_full((num_prompts, self.list_length), self.trie.num_items)
        taken = torch.cat([self.excluded, room], 1).repeat_interleave(num_lists, 0)  # (R, S)
        nodes = taken.new_full((len(taken),), self.start)
        zeros = torch.zeros_like(nodes)
        num_tokens = torch.full_like(nodes, length)
        lists = Lists(
            nodes=nodes,
            reached=nodes,
            ranks=zeros,
            num_written=num_tokens,
            num_read=num_tokens,
            items=taken.new_full((len(taken), self.list_length + 1), -1),
            taken=taken,
        )
        max_children = self.trie.first_width if self.skips else self.trie.depth_widths[0]
        return lists, ListLogits(logits, zeros, max_children, at_root=self.depth_is_known)

    def logps(self, lists: Lists, output: ListLogits, temperature: float = 1.0) -> tuple[Tensor, Tensor]:
        """Returns the log-probabilities of the children of each list's node, `(R, C)`. They are normalised over the
        legal children, and -inf for all other children. Also returns the child nodes, `(R, C)` or `(1, C)`."""
        # 1. Find the children of each list's node, and the row of `output.logits` that belongs to each list.
        nodes = lists.nodes[:1] if output.at_root else lists.nodes
        tokens, children, legal = legal_children(self.trie, nodes, lists.taken, output.max_children)
        num_rows = output.logits.shape[1]
        prompt = torch.arange(self.shape[0], device=output.rows.device).repeat_interleave(self.shape[1])
        row = prompt * num_rows + output.rows  # (R,)

        # 2. Gather the children's logits. If all lists are at the same node, selecting columns and then whole rows is
        # cheaper than gathering single elements.
        columns = self.trie.columns(tokens)
        if output.at_root:
            scores = output.logits.flatten(0, 1).index_select(1, columns[0])[row]
        else:
            index = row.unsqueeze(1) * output.logits.shape[-1] + columns
            scores = output.logits.flatten().gather(0, index.flatten()).view(columns.shape)
        scores = at_least_float32(scores) / temperature
        return torch.where(legal, scores, -torch.inf).log_softmax(-1), children

    def guided(self, scores: Tensor, nodes: Tensor) -> Tensor:
        """Returns the scores `(R, C)`, plus the bonus that the weights give to the node of each score (see
        `trie_weights.py`). The nodes have the shape `(R, C)` or `(1, C)`."""
        rows = (self.shape[0], -1)
        return self.weighted.guided(scores.view(rows), nodes.expand_as(scores).reshape(rows)).view_as(scores)

    def item_bonus(self, items: Tensor) -> Tensor:
        """Returns the bonus that the weights give to each of the items `(R, N)`. Padding (item -1) gets 0."""
        places = self.trie.item_positions[items.clamp(min=0)].view(self.shape[0], -1)
        bonus = self.weighted.item_bonus(places).view_as(items)
        return torch.where(items >= 0, bonus, 0.0)

    def normalized(self, scores: Tensor) -> Tensor:
        """Adds the constant of the weights (see `TrieWeights.constant`) to the scores `(B, K)` of one list per prompt.

        Column `r` is the score of the list's first `r + 1` items and gets the constant `r + 1` times, so that each
        item contributes `strength * log(w / W)`. Here, w is the weight of the item, and W the sum of all weights (see
        `weights.py`). The constant is added only after the search. Since it is usually negative, adding it during the
        search would favour beams that have completed fewer items.
        """
        num_items = torch.arange(1, scores.shape[1] + 1, device=scores.device)
        return scores + num_items * self.weighted.constant

    def move(self, lists: Lists, chosen: Tensor, moves: Tensor) -> Lists:
        """Moves each list for which `moves` `(R,)` is True to its child `chosen` `(R,)`, and returns the new state."""
        # 1. Follow the chain of forced tokens below the child. A leaf ends the item. Of the items that share the leaf,
        # the list gets the one that `_free_place` chooses.
        trie = self.trie
        reached = trie.forced_ends[chosen].long() if self.skips else chosen
        ended = moves & (trie.row_offsets[reached] == trie.row_offsets[reached + 1])
        place = self._free_place(reached, lists.taken)
        item = torch.where(ended, trie.items[place].long(), -1)
        ranks = lists.ranks + ended

        # 2. Count the new tokens. These are the tokens down to the reached node and, if the item ended there and
        # another one follows, the opening.
        num_written = lists.num_written + torch.where(moves, trie.depths(reached) - trie.depths(lists.nodes), 0)
        num_written = num_written + torch.where(ended & (ranks < self.list_length), self.opening.shape[1], 0)

        # 3. Insert the item into the sorted row of taken items. The last column of the row is free for it: the list
        # was incomplete until now, so the row still ends with padding. If no item has ended, the row stays unchanged.
        inserted = torch.where(ended, place, lists.taken[:, -1]).unsqueeze(1)
        shifted = F.pad(lists.taken[:, :-1], (1, 0), value=-1)
        return Lists(
            nodes=torch.where(moves, torch.where(ended, self.start, reached), lists.nodes),
            reached=torch.where(moves, reached, lists.reached),
            ranks=ranks,
            num_written=num_written,
            # Before this choice, the model had read all tokens that had been written by then.
            num_read=torch.where(moves, lists.num_written, lists.num_read),
            items=lists.items.scatter(1, lists.ranks.unsqueeze(1), item.unsqueeze(1)),
            taken=torch.maximum(shifted, torch.minimum(lists.taken, inserted)),
        )

    def _free_place(self, leaves: Tensor, taken: Tensor) -> Tensor:
        """Returns the item that each list gets at its leaf, as a place in `trie.items`, `(R,)`.

        This is the item with the largest weight among the leaf's items that are not taken. If several items have this
        weight, it is the first of them.
        """
        first = _first_free(self.trie, leaves, taken)
        if not self.weighted.removes_items or self.trie.max_shared == 1:
            return first

        # Lay out the items of each leaf side by side, and look up their weights, one row per prompt.
        starts = self.trie.item_starts[leaves].long().unsqueeze(1)
        ends = self.trie.item_ends[leaves].unsqueeze(1)
        places = starts + torch.arange(self.trie.max_shared, device=leaves.device)  # (R, maximum number per leaf)
        found = torch.searchsorted(taken, places).clamp(max=taken.shape[1] - 1)
        free = (places < ends) & (taken.gather(1, found) != places)
        known = places.clamp(max=self.trie.num_items - 1)
        bonus = self.weighted.item_bonus(known.view(self.shape[0], -1)).view_as(known)
        bonus = bonus.masked_fill(~free, -torch.inf)
        best = best_first(bonus, known, 1)
        return torch.where(bonus.gather(1, best) > -torch.inf, known.gather(1, best), first.unsqueeze(1)).squeeze(1)

    def read(self, lists: Lists, active: Tensor, step: int) -> ListLogits | None:
        """Lets the model read the pending tokens (those that it has not read yet) of the `active` lists `(R,)`, after
        `step` choices. Returns the logits after these tokens, or None if no further choice is needed."""
        if step == self.max_steps:
            return None
        pending, max_children = self._pending(lists, active, step)
        if not pending.num_active:
            return None

        logits, slots, _ = self.cache.extend(pending)
        order = torch.arange(slots.shape[1], device=slots.device).expand_as(slots)
        rows = torch.zeros(self.shape, dtype=torch.int64, device=slots.device).scatter_(1, slots, order).flatten()
        at_root = self.depth_is_known and step % self.trie.max_depth == 0
        return ListLogits(logits, rows, max_children, at_root)

    def _pending(self, lists: Lists, active: Tensor, step: int) -> tuple[Pending, int]:
        """Returns the tokens that the model reads next, and C. No node that they lead to has more than C children."""
        lengths = torch.where(active, lists.num_written - lists.num_read, 0)
        if self.depth_is_known:
            num_active = self.shape[1]
            num_inner = 0
            longest = 1
            max_children = self.trie.depth_widths[step % self.trie.max_depth]
        else:
            num_active, num_inner, longest, max_children = self._round_sizes(lists.nodes, lengths, active)

        tokens = self._tokens(lists, longest).view(*self.shape, -1)
        lengths, depths, active = (part.view(self.shape) for part in (lengths, lists.num_written, active))
        return Pending(tokens, lengths, depths, active, num_active, num_inner), max_children

    def _round_sizes(self, nodes: Tensor, lengths: Tensor, active: Tensor) -> list[int]:
        """Returns four maxima: active lists per prompt, inner tokens per prompt (see [`Pending`]), pending tokens per
        list, and children per node.

        Inactive lists are ignored. This is the only transfer from the device in a round.
        """
        num_children = self.trie.row_offsets[nodes + 1] - self.trie.row_offsets[nodes]
        inner = (lengths - 1).clamp(min=0)
        sizes = [
            active.view(self.shape).sum(1).amax(),
            inner.view(self.shape).sum(1).amax(),
            lengths.amax(),
            torch.where(active, num_children, 0).amax(),
        ]
        return torch.stack(sizes).tolist()

    def _tokens(self, lists: Lists, width: int) -> Tensor:
        """Returns the last W = `width` tokens of each list, `(R, W)`. They are the end of the path to the reached node
        and, if this node ended an item, the opening of the next item."""
        path = self.trie.last_tokens(lists.reached, width)
        length = self.opening.shape[1]
        if not length:
            return path

        # Where an item ended, shift its path to the left to make room for the opening on the right.
        ended = lists.reached != lists.nodes
        source = torch.arange(width, device=path.device) + torch.where(ended, length, 0).unsqueeze(1)  # (R, W)
        opening = F.pad(self.opening, (width - length, 0))  # (1, W); a negative pad crops
        return torch.where(source < width, path.gather(1, source.clamp(max=width - 1)), opening)


def _first_free(trie: TokenTrie, leaves: Tensor, taken: Tensor) -> Tensor:
    """Returns, for each leaf, the index into `trie.items` of its first item that is not taken, `(R,)`."""
    # The items of a leaf have the indices `starts, ..., ends - 1`. Count how many of them are taken without a gap,
    # beginning with `starts`; the first free index follows this run. Since `taken` is sorted and has no repeats, the
    # run begins at the first entry that is not below `starts`, and entry `d` of the run (from 0) is `starts + d`.
    starts = trie.item_starts[leaves].long().unsqueeze(1)
    ends = trie.item_ends[leaves].unsqueeze(1)
    distance = torch.arange(taken.shape[1], device=taken.device) - torch.searchsorted(taken, starts)
    in_run = (taken - starts == distance) & (taken >= starts) & (taken < ends)
    return (starts.squeeze(1) + in_run.sum(1)).clamp(max=trie.num_items - 1)
