"""The loop that draws lists: one choice a list and round, until every list is complete.

Tokens that the trie forces are skipped: they wait, with the token last chosen, until the model reads them on the way to the
next choice, across the end of an item too. A round then reads four integers back from the device to size its forward pass.
Where all paths are equally long and branch at every depth, as those of item tokens and most semantic IDs, nothing is skipped
and nothing read back. Lists that end early wait for the others.

Legend: B prompts, G lists a prompt, R = B * G, K items a list, D tokens of the longest path, S taken items, C children
(padded), W tokens to read (right-aligned), V vocabulary.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from trl_rec.decoding.beam import _best
from trl_rec.decoding.list_constraint import legal_children
from trl_rec.decoding.prompt_cache import Pending, SeparateRows, SharedPrompt
from trl_rec.items.trie import TokenTrie


NOISE_BITS = 31  # noise times the sum of all probabilities, in as many bits each, fits an integer


class _Lists(NamedTuple):
    """Where the lists stand, `(R,)` each but for the last.

    Args:
        nodes: The node at which a list chooses next.
        ranks: How many items it holds; K where it is complete.
        written: Its tokens, those down to `nodes` included.
        taken: `(R, S)`: the places in `trie.items` that it cannot choose, ascending; `num_items` fills up.
    """

    nodes: Tensor
    ranks: Tensor
    written: Tensor
    taken: Tensor


class ListSampler:
    """Draws the lists of a batch of prompts.

    Args:
        cache (`SharedPrompt` or `SeparateRows`): The prompts, read.
        trie (`TokenTrie`): The catalogue's list paths.
        excluded (`torch.Tensor` of shape `(B, E)`): `Excluded.places`.
        list_length (`int`): K. Every prompt has as many items left.
        temperature (`float`): Divides the logits.
        noise (`torch.Tensor` of shape `(B, G, K * D)`): Integers of `NOISE_BITS` bits, one for each depth of each item.
        greedy (`bool`): Takes the likeliest token, whatever the noise.
    """

    def __init__(
        self,
        cache: SharedPrompt | SeparateRows,
        trie: TokenTrie,
        excluded: Tensor,
        *,
        list_length: int,
        temperature: float,
        noise: Tensor,
        greedy: bool,
    ) -> None:
        self.cache, self.trie, self.temperature, self.greedy = cache, trie, temperature, greedy
        self.shape, self.list_length = noise.shape[:2], list_length
        self.noise, self.excluded = noise.flatten(0, 1), excluded
        even = trie.num_leaves == int(trie.depth_offsets.diff()[-1])  # all leaves are equally deep
        start = int(trie.forced_ends[0])
        branches = int(trie.row_offsets[start + 1] - trie.row_offsets[start]) > 0
        self.skips = cache.shared and branches and not (even and 1 not in trie.depth_widths)
        self.fixed = even and not self.skips  # each round's depth is known
        self.start = start if self.skips else 0  # where every item's first choice is
        first = excluded.new_full((1,), self.start)
        self.opening = _upwards(trie, first, int(trie.depths(first))).flip(1)  # (1, its length): what begins every item

    def draw(self) -> tuple[Tensor, Tensor]:
        """The items `(B, G, K)`, and `(B, G, K * D)`: the log-probability of the choice at each depth of each item, else 0."""
        steps = self.list_length * self.trie.max_depth
        logits, lists = self._begin()
        source = torch.zeros_like(lists.nodes)
        items = lists.nodes.new_full((len(source), self.list_length + 1), -1)  # the last column is for what is not kept
        logps = logits.new_zeros(len(source), steps + 1, dtype=torch.promote_types(logits.dtype, torch.float32))
        width = self.trie.depth_widths[0] if self.fixed else None
        for step in range(1, steps + 1):
            place = lists.ranks * self.trie.max_depth + self.trie.depths(lists.nodes)
            together = self.fixed and step % self.trie.max_depth == 1 % self.trie.max_depth  # all at the root
            chosen, logp = self._choose(lists, logits, source, place, width, together)
            active = lists.ranks < self.list_length
            logps.scatter_(1, torch.where(active, place, steps).unsqueeze(1), logp.unsqueeze(1))
            reached = self.trie.forced_ends[chosen].long() if self.skips else chosen
            ended = active & (self.trie.row_offsets[reached] == self.trie.row_offsets[reached + 1])
            free = _first_free(self.trie, reached, lists.taken)
            items.scatter_(
                1, lists.ranks.unsqueeze(1), self.trie.items[free].long().unsqueeze(1)
            )  # the last to be written stays
            before, lists = lists, self._moved(lists, reached, torch.where(ended, free, -1))
            if step == steps:
                break
            pending, width = self._pending(before, lists, reached, step)
            if not pending.num_active:
                break
            logits, source = self._read(pending)
        return items[:, :-1].view(*self.shape, -1), logps[:, :-1].view(*self.shape, -1)

    def _begin(self) -> tuple[Tensor, _Lists]:
        """The logits where all lists begin, `(B, 1, V)`, and the lists; the cache then holds each of them."""
        logits, (num_prompts, num_lists) = self.cache.logits, self.shape
        length = self.opening.shape[1]
        if length:
            lengths = torch.full((num_prompts, 1), length, device=logits.device)
            tokens = self.opening.expand(num_prompts, 1, -1)
            logits = self.cache.extend(Pending(tokens, lengths, lengths, lengths > 0, 1, length - 1))[0]
        self.cache.reorder(torch.zeros(self.shape, dtype=torch.int64, device=logits.device))
        room = self.excluded.new_full((num_prompts, self.list_length), self.trie.num_items)
        taken = torch.cat([self.excluded, room], 1).repeat_interleave(num_lists, 0)
        nodes = taken.new_full((len(taken),), self.start)
        return logits, _Lists(nodes, torch.zeros_like(nodes), torch.full_like(nodes, length), taken)

    def _choose(
        self, lists: _Lists, logits: Tensor, source: Tensor, place: Tensor, width: int | None, together: bool
    ) -> tuple[Tensor, Tensor]:
        """The child that each list goes to, and its log-probability, `(R,)` each; list `r` reads row `source[r]` of its
        prompt's logits `(B, A, V)`."""
        num_prompts, num_read, vocab_size = logits.shape
        row = torch.arange(num_prompts, device=logits.device).repeat_interleave(self.shape[1]) * num_read + source
        tokens, children, legal = legal_children(self.trie, lists.nodes[: 1 if together else None], lists.taken, width)
        if together:  # one node: whole rows are cheaper than single numbers
            scores = logits.flatten(0, 1).index_select(1, tokens[0])[row]
        else:
            scores = logits.flatten().gather(0, (row.unsqueeze(1) * vocab_size + tokens).flatten()).view(tokens.shape)
        scores = scores.to(torch.promote_types(scores.dtype, torch.float32)) / self.temperature
        logps = torch.where(legal, scores, -torch.inf).log_softmax(-1)
        if self.greedy:
            column = _best(logps.float(), self.trie.lowest_items[children].expand_as(logps), 1)
        else:
            column = _drawn(logps, self.noise.gather(1, place.clamp(max=self.noise.shape[1] - 1).unsqueeze(1)))
        chosen = children.expand_as(logps).gather(1, column).squeeze(1)
        first = self.trie.row_offsets[lists.nodes] + 1  # where a NaN, which is reported at the end, has chosen nothing
        return torch.where(chosen > 0, chosen, first), logps.gather(1, column).squeeze(1)

    def _moved(self, lists: _Lists, reached: Tensor, taken: Tensor) -> _Lists:
        """The lists at the nodes `reached`, or back at the start with one more place `taken` (-1: none)."""
        active, ended = lists.ranks < self.list_length, taken >= 0
        ranks = lists.ranks + ended
        goes_on = active & (ranks < self.list_length)
        written = lists.written + torch.where(active, self.trie.depths(reached) - self.trie.depths(lists.nodes), 0)
        written = written + torch.where(ended & goes_on, self.opening.shape[1], 0)
        last = torch.where(ended, taken, lists.taken[:, -1])  # until the list is complete the last place is free
        places = torch.cat([lists.taken[:, :-1], last.unsqueeze(1)], 1).sort(1).values
        return _Lists(torch.where(goes_on & ~ended, reached, self.start), ranks, written, places)

    def _pending(self, before: _Lists, lists: _Lists, reached: Tensor, step: int) -> tuple[Pending, int | None]:
        """What the model reads next, and the most children of the nodes it will be asked about."""
        active = lists.ranks < self.list_length
        lengths = torch.where(active, lists.written - before.written, 0)
        if self.fixed:
            sizes = [self.shape[1], 0, 1, self.trie.depth_widths[step % self.trie.max_depth]]
        else:  # the one read from the device in a round
            widths = self.trie.row_offsets[lists.nodes + 1] - self.trie.row_offsets[lists.nodes]
            counts, inner = (part.view(self.shape).sum(1).amax() for part in (active, (lengths - 1).clamp(min=0)))
            sizes = torch.stack([counts, inner, lengths.amax(), torch.where(active, widths, 0).amax()]).tolist()
        num_active, num_inner, longest, width = sizes
        tokens = self._tokens(reached, lists.ranks > before.ranks, longest).view(*self.shape, -1)
        lengths, depths, active = (part.view(self.shape) for part in (lengths, lists.written, active))
        return Pending(tokens, lengths, depths, active, num_active, num_inner), width

    def _tokens(self, reached: Tensor, ended: Tensor, width: int) -> Tensor:
        """`(R, W)`: the last tokens of each list: those that lead to `reached`, and where an item has `ended` the opening of
        the next."""
        path, opening = _upwards(self.trie, reached, width), self.opening.flip(1)
        if not opening.shape[1]:
            return path.flip(1)
        opening = torch.nn.functional.pad(opening, (0, max(0, width - opening.shape[1])))[:, :width]
        behind = torch.arange(width, device=path.device) - torch.where(ended, self.opening.shape[1], 0).unsqueeze(1)
        return torch.where(behind < 0, opening, path.gather(1, behind.clamp(min=0))).flip(1)

    def _read(self, pending: Pending) -> tuple[Tensor, Tensor]:
        """Logits `(B, A, V)`, and which row of its prompt's each list reads, `(R,)`; lists not read get any."""
        logits, slots, _ = self.cache.extend(pending)
        order = torch.arange(slots.shape[1], device=slots.device).expand_as(slots)
        return logits, torch.zeros(self.shape, dtype=torch.int64, device=slots.device).scatter_(1, slots, order).flatten()


def _upwards(trie: TokenTrie, nodes: Tensor, count: int) -> Tensor:
    """`(R, count)`: the tokens that lead to the nodes, the last one first; anything beyond the root."""
    tokens = [nodes.new_empty(len(nodes), 0)]
    for _ in range(count):
        tokens.append(trie.child_tokens[(nodes - 1).clamp(min=0)].long().unsqueeze(1))
        nodes = trie.parents[nodes].long()
    return torch.cat(tokens, 1)


def _drawn(logps: Tensor, noise: Tensor) -> Tensor:
    """`(R, 1)`: the column that each row's noise falls on. In whole numbers, so that the sums are exact and a column without
    probability is never drawn, whatever the device."""
    mass = logps.exp().mul_(2**NOISE_BITS).long().cumsum(1)
    column = torch.searchsorted(mass, (noise * mass[:, -1:]) >> NOISE_BITS, right=True)
    return column.clamp(max=logps.shape[1] - 1)  # only a NaN leads beyond


def _first_free(trie: TokenTrie, leaves: Tensor, taken: Tensor) -> Tensor:
    """`(R,)`: the first place of each leaf that is not taken. Sorted and distinct, the leaf's taken places from its first on
    without a gap are those whose order and place advance alike."""
    starts, ends = trie.item_starts[leaves].long().unsqueeze(1), trie.item_ends[leaves].unsqueeze(1)
    order = torch.arange(taken.shape[1], device=taken.device) - torch.searchsorted(taken, starts)
    run = (taken - starts == order) & (taken >= starts) & (taken < ends)
    return (starts.squeeze(1) + run.sum(1)).clamp(max=trie.num_items - 1)
