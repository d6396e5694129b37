"""What a model writes whole lists with: where each list stands, what may follow, and what the model says there.

Tokens that the trie forces are skipped: they wait, with the token last chosen, until the model reads them on the way
to the next choice, across the end of an item too. A round then reads four integers back from the device to size its
forward pass. Where all paths are equally long and branch at every depth, as those of item tokens and most semantic
IDs, nothing is skipped and nothing read back.

Legend: B prompts, G lists a prompt, R = B * G, A lists read now, K items a list, S taken items, C children (padded), W
tokens to read (right-aligned), V vocabulary.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from trl_rec.decoding.list_constraint import legal_children
from trl_rec.decoding.prompt_cache import Pending, SeparateRows, SharedPrompt
from trl_rec.items.trie import TokenTrie


class Lists(NamedTuple):
    """Where the lists stand, `(R,)` each but for the last two.

    Args:
        nodes: The node at which a list chooses next.
        reached: The node that its last choice has led to, a leaf where that ended an item.
        ranks: How many items it holds; K where it is complete.
        written: Its tokens, those down to `nodes` included.
        read: Those of them that the model has read.
        items: `(R, K + 1)`: its items, -1 where there is none yet; the last column is for what is not kept.
        taken: `(R, S)`: the places in `trie.items` that it cannot choose, ascending; `num_items` fills up.
    """

    nodes: Tensor
    reached: Tensor
    ranks: Tensor
    written: Tensor
    read: Tensor
    items: Tensor
    taken: Tensor

    def take(self, rows: Tensor) -> Lists:
        """The lists numbered `rows`."""
        return Lists(*(part[rows] for part in self))


class ListLogits(NamedTuple):
    """What the model says where the lists choose.

    Args:
        logits: `(B, A, V)`.
        rows: `(R,)`: which of its prompt's A rows each list goes by; any for a list that has not been read.
        width: The most children of the nodes that have been read for; None where that is not known.
        together: Whether all lists are at the root.
    """

    logits: Tensor
    rows: Tensor
    width: int | None
    together: bool


class ListSteps:
    """The steps in which the lists of a batch of prompts are written.

    Args:
        cache (`SharedPrompt` or `SeparateRows`): The prompts, read.
        trie (`TokenTrie`): The catalogue's list paths.
        excluded (`torch.Tensor` of shape `(B, E)`): `Excluded.places`.
        list_length (`int`): K. Every prompt has as many items left.
        num_lists (`int`): G.
    """

    def __init__(
        self,
        cache: SharedPrompt | SeparateRows,
        trie: TokenTrie,
        excluded: Tensor,
        *,
        list_length: int,
        num_lists: int,
    ) -> None:
        self.cache, self.trie, self.excluded, self.list_length = cache, trie, excluded, list_length
        self.shape, self.most = (len(excluded), num_lists), list_length * trie.max_depth  # no list takes more steps
        even = trie.num_leaves == int(trie.depth_offsets.diff()[-1])  # all leaves are equally deep
        start = int(trie.forced_ends[0])
        branches = int(trie.row_offsets[start + 1] - trie.row_offsets[start]) > 0
        self.skips = cache.shared and branches and not (even and 1 not in trie.depth_widths)
        self.fixed = even and not self.skips  # each round's depth is known
        self.start = start if self.skips else 0  # where every item's first choice is
        first = excluded.new_full((1,), self.start)
        self.opening = _upwards(trie, first, int(trie.depths(first))).flip(
            1
        )  # (1, its length): what begins every item

    def begin(self) -> tuple[Lists, ListLogits]:
        """The lists, empty but for an opening, and what the model says there. The cache then holds each of them."""
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
        zeros, written = torch.zeros_like(nodes), torch.full_like(nodes, length)
        items = taken.new_full((len(taken), self.list_length + 1), -1)
        heard = ListLogits(logits, zeros, self.trie.depth_widths[0] if self.fixed else None, self.fixed)
        return Lists(nodes, nodes, zeros, written, written, items, taken), heard

    def logps(self, lists: Lists, heard: ListLogits, temperature: float = 1.0) -> tuple[Tensor, Tensor]:
        """The log-probability `(R, C)` of each child among the legal ones, -inf where not legal, and the child nodes,
        alike or `(1, C)`."""
        vocab_size, num_read = heard.logits.shape[-1], heard.logits.shape[1]
        prompt = torch.arange(self.shape[0], device=heard.rows.device).repeat_interleave(self.shape[1])
        row, nodes = prompt * num_read + heard.rows, lists.nodes[: 1 if heard.together else None]
        tokens, children, legal = legal_children(self.trie, nodes, lists.taken, heard.width)
        if heard.together:  # one node: whole rows are cheaper than single numbers
            scores = heard.logits.flatten(0, 1).index_select(1, tokens[0])[row]
        else:
            scores = (
                heard.logits.flatten().gather(0, (row.unsqueeze(1) * vocab_size + tokens).flatten()).view(tokens.shape)
            )
        scores = scores.to(torch.promote_types(scores.dtype, torch.float32)) / temperature
        return torch.where(legal, scores, -torch.inf).log_softmax(-1), children

    def move(self, lists: Lists, chosen: Tensor, moved: Tensor) -> Lists:
        """The lists after those `moved` `(R,)` have gone to the child `chosen` `(R,)`."""
        trie = self.trie
        reached = trie.forced_ends[chosen].long() if self.skips else chosen
        ended = moved & (trie.row_offsets[reached] == trie.row_offsets[reached + 1])
        free, ranks = _first_free(trie, reached, lists.taken), lists.ranks + ended
        written = lists.written + torch.where(moved, trie.depths(reached) - trie.depths(lists.nodes), 0)
        written = written + torch.where(ended & (ranks < self.list_length), self.opening.shape[1], 0)
        item = torch.where(ended, trie.items[free].long(), -1)
        last = torch.where(ended, free, lists.taken[:, -1])  # until the list is complete the last place is free
        return Lists(
            nodes=torch.where(moved, torch.where(ended, self.start, reached), lists.nodes),
            reached=torch.where(moved, reached, lists.reached),
            ranks=ranks,
            written=written,
            read=torch.where(moved, lists.written, lists.read),  # or it could not have chosen
            items=lists.items.scatter(1, lists.ranks.unsqueeze(1), item.unsqueeze(1)),
            taken=torch.cat([lists.taken[:, :-1], last.unsqueeze(1)], 1).sort(1).values,
        )

    def hear(self, lists: Lists, active: Tensor, step: int) -> ListLogits | None:
        """What the model says once it has read all of the `active` lists `(R,)`, after so many steps; None at the
        end."""
        if step == self.most:
            return None
        pending, width = self._pending(lists, active, step)
        if not pending.num_active:
            return None
        logits, slots, _ = self.cache.extend(pending)
        order = torch.arange(slots.shape[1], device=slots.device).expand_as(slots)
        rows = torch.zeros(self.shape, dtype=torch.int64, device=slots.device).scatter_(1, slots, order).flatten()
        return ListLogits(logits, rows, width, self.fixed and step % self.trie.max_depth == 0)

    def _pending(self, lists: Lists, active: Tensor, step: int) -> tuple[Pending, int | None]:
        """What the model reads next, and the most children of the nodes it will be asked about."""
        lengths = torch.where(active, lists.written - lists.read, 0)
        if self.fixed:
            sizes = [self.shape[1], 0, 1, self.trie.depth_widths[step % self.trie.max_depth]]
        else:  # the one read from the device in a round
            widths = self.trie.row_offsets[lists.nodes + 1] - self.trie.row_offsets[lists.nodes]
            counts, inner = (part.view(self.shape).sum(1).amax() for part in (active, (lengths - 1).clamp(min=0)))
            sizes = torch.stack([counts, inner, lengths.amax(), torch.where(active, widths, 0).amax()]).tolist()
        num_active, num_inner, longest, width = sizes
        tokens = self._tokens(lists, longest).view(*self.shape, -1)
        lengths, depths, active = (part.view(self.shape) for part in (lengths, lists.written, active))
        return Pending(tokens, lengths, depths, active, num_active, num_inner), width

    def _tokens(self, lists: Lists, width: int) -> Tensor:
        """`(R, W)`: the last tokens of each list: those that lead to the node reached, and where that ended an item
        the opening of the next."""
        path, opening = _upwards(self.trie, lists.reached, width), self.opening.flip(1)
        if not opening.shape[1]:
            return path.flip(1)
        ended = lists.reached != lists.nodes
        opening = torch.nn.functional.pad(opening, (0, max(0, width - opening.shape[1])))[:, :width]
        behind = torch.arange(width, device=path.device) - torch.where(ended, self.opening.shape[1], 0).unsqueeze(1)
        return torch.where(behind < 0, opening, path.gather(1, behind.clamp(min=0))).flip(1)


def _upwards(trie: TokenTrie, nodes: Tensor, count: int) -> Tensor:
    """`(R, count)`: the tokens that lead to the nodes, the last one first; anything beyond the root."""
    tokens = [nodes.new_empty(len(nodes), 0)]
    for _ in range(count):
        tokens.append(trie.child_tokens[(nodes - 1).clamp(min=0)].long().unsqueeze(1))
        nodes = trie.parents[nodes].long()
    return torch.cat(tokens, 1)


def _first_free(trie: TokenTrie, leaves: Tensor, taken: Tensor) -> Tensor:
    """`(R,)`: the first place of each leaf that is not taken. Sorted and distinct, the leaf's taken places from its
    first on without a gap are those whose order and place advance alike."""
    starts, ends = trie.item_starts[leaves].long().unsqueeze(1), trie.item_ends[leaves].unsqueeze(1)
    order = torch.arange(taken.shape[1], device=taken.device) - torch.searchsorted(taken, starts)
    run = (taken - starts == order) & (taken >= starts) & (taken < ends)
    return (starts.squeeze(1) + run.sum(1)).clamp(max=trie.num_items - 1)
