"""Lists of distinct items as tokens: what they are written with, what is legal where, and how probable given lists
are.

A list is its items' paths, one after the other. At each token the items that come before it in the list are no choice
any more, nor are subtrees that hold nothing else: they leave before the softmax, as excluded items do. Items that
share a path are told apart by counting: the path may be written as often as it has items left. All is a function of
the trie and the items, so that sampling, policy, reference and supervised training agree. The EOS that ends a list of
known length is forced, and left out here.

Legend: K items, T tokens (padded), E excluded items, S = E + K, M tokens where the trie branches, C children (padded),
B prompts, G lists a prompt, N rows of logits, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from trl_rec.decoding.excluded import Excluded
from trl_rec.items.trie import TokenTrie
from trl_rec.models.completions import CompletionLogits


class ListTokens(NamedTuple):
    """Lists as tokens, `(..., T)` each, filled up on the right.

    Args:
        token_ids: The tokens; 0 where there is none.
        mask: Which of them count.
        nodes: The node before each token, as in `TokenTrie.walk`; -1 where there is none.
        ranks: The place in the list of the item that each token belongs to.
        branches: Which tokens are chosen among several of the trie; the others are forced.
    """

    token_ids: Tensor
    mask: Tensor
    nodes: Tensor
    ranks: Tensor
    branches: Tensor


def list_tokens(trie: TokenTrie, items: Tensor) -> ListTokens:
    """The tokens of lists `(..., K)` of item indices; -1 fills up lists that are shorter."""
    positions = trie.item_positions
    known = (items >= 0) & (items < len(positions))
    places = torch.where(known, positions[torch.where(known, items, 0)], -1)
    if bool(((places < 0) & (items >= 0)).any()):
        strange = int(items[(places < 0) & (items >= 0)][0])
        raise ValueError(
            f"a list holds item {strange}, which is not in the trie of {trie.num_items} items; give its indices"
        )
    node, tokens, nodes = torch.where(places < 0, 0, trie.leaves[places.clamp(min=0)]), [], []
    lengths = trie.depths(node)
    for _ in range(trie.max_depth):  # from the leaf upwards
        tokens.append(trie.child_tokens[(node - 1).clamp(min=0)].long())
        node = trie.parents[node].long()
        nodes.append(node)
    upwards = torch.arange(trie.max_depth - 1, -1, -1, device=items.device)
    ranks = torch.arange(items.shape[-1], device=items.device).unsqueeze(-1).expand(*items.shape, trie.max_depth)
    mask, token_ids, before, ranks = _packed(
        upwards < lengths.unsqueeze(-1), torch.stack(tokens[::-1], -1), torch.stack(nodes[::-1], -1), ranks
    )
    before = before.masked_fill(~mask, -1)
    branches = mask & (trie.row_offsets[before + 1] - trie.row_offsets[before.clamp(min=0)] > 1)
    return ListTokens(token_ids.masked_fill(~mask, 0), mask, before, ranks, branches)


def _packed(mask: Tensor, *parts: Tensor) -> list[Tensor]:
    """Tokens `(..., K, D)`, each item's on the right, without the gaps between them."""
    mask = mask.flatten(-2)
    width = int(mask.sum(-1).amax()) if mask.numel() else 0
    order = torch.argsort(~mask, dim=-1, stable=True)[..., :width]
    return [part.gather(-1, order) for part in (mask, *(part.flatten(-2) for part in parts))]


def legal_children(
    trie: TokenTrie, nodes: Tensor, taken: Tensor, width: int | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """`tokens, next_nodes, legal` of shape `(M, C)`, as `TokenTrie.children` gives them, where a child all of whose
    items are taken is not legal.

    Args:
        trie: The trie.
        nodes: `(M,)`; or `(1,)` for one that all are at, and then so are `tokens` and `next_nodes`.
        taken: `(M, S)`: places in `trie.items`, distinct and ascending; `num_items` fills up. See `taken_places`.
        width (*optional*): A bound of C; with it nothing is read back from the device.
    """
    tokens, children, legal = trie.children(nodes, width)
    above, emptied = _emptied(trie, nodes, taken)
    column = torch.where(emptied, above - 1 - trie.row_offsets[nodes].unsqueeze(1), legal.shape[1]).clamp(
        max=legal.shape[1]
    )
    gone = torch.zeros(len(taken), legal.shape[1] + 1, dtype=torch.bool, device=legal.device).scatter_(1, column, True)
    return tokens, children, legal & ~gone[:, :-1]


def num_legal(trie: TokenTrie, nodes: Tensor, taken: Tensor) -> Tensor:
    """`(M,)`: how many children of the nodes `(M,)` are legal, as `legal_children` has it, without a look at each of
    them."""
    above, emptied = _emptied(trie, nodes, taken)
    emptied[:, 1:] &= above[:, 1:] != above[:, :-1]  # ascending, as the places are
    return trie.row_offsets[nodes + 1] - trie.row_offsets[nodes] - emptied.sum(1)


def _emptied(trie: TokenTrie, nodes: Tensor, taken: Tensor) -> tuple[Tensor, Tensor]:
    """`(M, S)`: the child above each taken place, and whether it has no other items left. Only such children can be
    empty, which are far fewer than all."""
    above = trie.above(taken, (trie.depths(nodes) + 1).unsqueeze(1))
    starts, ends = (bound[above].to(taken.dtype) for bound in (trie.item_starts, trie.item_ends))
    below = torch.searchsorted(taken, ends) - torch.searchsorted(taken, starts)
    return above, (trie.parents[above] == nodes.unsqueeze(1)) & (below == ends - starts)


def taken_places(trie: TokenTrie, items: Tensor, ranks: Tensor, excluded: Tensor | None = None) -> Tensor:
    """`(M, S)`, as `legal_children` takes it: the places of the first `ranks` `(M,)` items of the lists `(M, K)`, and
    those of excluded items `(M, E)`, which `Excluded.places` holds for each prompt."""
    before = (torch.arange(items.shape[1], device=items.device) < ranks.unsqueeze(1)) & (items >= 0)
    places = torch.where(before, trie.item_positions[torch.where(before, items, 0)], trie.num_items).long()
    return (places if excluded is None else torch.cat([places, excluded], 1)).sort(1).values


def list_logps(
    read: CompletionLogits,
    items: Tensor,
    trie: TokenTrie,
    *,
    exclude: Tensor | Sequence[Sequence[int]] | None = None,
    temperature: float = 1.0,
) -> Tensor:
    """`(B, G, T)`: the log-probability of each token of the given lists among the legal ones, at least float32, 0
    where a token is the only legal one or masked. It has a gradient; a token that is not legal has minus infinity and
    none.

    Only tokens at which the trie branches are looked at, `(M, C)` numbers at a time: a caller bounds M by giving fewer
    prompts.

    Args:
        read: What [`read_completions`] read for `list_tokens(trie, items)`: its `token_ids` and `mask`, and
            `scored=branches`.
        items: `(B, G, K)` item indices; -1 fills up lists that are shorter.
        trie: The catalogue's list paths, on the same device.
        exclude (*optional*): Items that no list may hold, one list a prompt, or `(B, E)` padded with -1.
        temperature: Divides the logits first.
    """
    lists = list_tokens(trie, items)
    branches = lists.branches
    owner = branches.flatten(0, 1).nonzero()[:, 0]  # (M,), the list
    excluded = Excluded(trie, exclude, len(items)).places[owner // max(1, items.shape[1])]
    taken = taken_places(trie, items.flatten(0, 1)[owner], lists.ranks[branches], excluded)
    tokens, _, legal = legal_children(trie, lists.nodes[branches], taken, width=None if len(owner) else 1)
    starts = read.rows.unsqueeze(1) * read.logits.shape[1]  # so that (M, V) is never made
    scores = read.logits.flatten().gather(0, (starts + tokens).flatten()).view(tokens.shape)
    scores = scores.to(torch.promote_types(scores.dtype, torch.float32)) / temperature
    log_probs = torch.where(legal, scores, -torch.inf).log_softmax(-1)
    hit = legal & (tokens == lists.token_ids[branches].unsqueeze(1))
    chosen = torch.where(hit.any(1), torch.where(hit, log_probs, 0.0).sum(1), -torch.inf)
    return chosen.new_zeros(branches.shape).masked_scatter(branches, chosen)
