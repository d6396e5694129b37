"""Converts lists of distinct items to tokens, finds the legal tokens at each position, and scores given lists.

A list is written as the paths (token sequences) of its items, one after the other. All paths form a prefix tree, the
trie. An item that is already in the list is no longer legal, and neither is a subtree in which every item is in the
list or excluded. Illegal tokens are removed before the softmax. If several items share a path, the path stays legal as
long as at least one of these items is left. The legal tokens depend only on the trie, the list and the excluded items,
so sampling, the policy, the reference model and supervised training all use the same legal tokens. Lists have a known
length, so the EOS at their end is forced and is left out here.

Legend: K: items per list, T: tokens per list (padded), D: tokens of the longest path, E: excluded items per prompt,
S = E + K, M: rows (one per list, or one per token at which the trie branches), C: children (padded), B: prompts,
G: lists per prompt.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from trl_rec.decoding.excluded import Excluded
from trl_rec.items.trie import TokenTrie
from trl_rec.models.completions import CompletionLogits, chosen_legal_logps, unpacked
from trl_rec.ranges import POSITIVE


class ListTokens(NamedTuple):
    """The tokens of lists. Each tensor has the shape `(..., T)` and is padded on the right.

    Args:
        token_ids (`torch.Tensor`): The tokens; 0 is padding.
        mask (`torch.Tensor`): True for real tokens.
        nodes (`torch.Tensor`): The node before each token, as in `TokenTrie.walk`; -1 is padding.
        ranks (`torch.Tensor`): For each token, the rank of its item in the list.
        branches (`torch.Tensor`): True for tokens at which the trie branches: the node before them has several
            children. All other real tokens are forced.
    """

    token_ids: Tensor
    mask: Tensor
    nodes: Tensor
    ranks: Tensor
    branches: Tensor


def list_tokens(trie: TokenTrie, items: Tensor) -> ListTokens:
    """Returns the tokens of lists.

    Args:
        trie (`TokenTrie`): The items' paths as they are written in lists.
        items (`torch.Tensor` of shape `(..., K)`): Item indices; -1 pads shorter lists.

    Returns:
        [`ListTokens`]: `(..., T)`.
    """
    # 1. Find the leaf of each item.
    positions = trie.item_positions
    known = (items >= 0) & (items < len(positions))
    places = torch.where(known, positions[torch.where(known, items, 0)], -1)
    unknown = (places < 0) & (items >= 0)
    node = torch.where(places < 0, 0, trie.leaves[places.clamp(min=0)])
    lengths = trie.depths(node)

    # 2. Walk from the leaves up to the root, collecting each token and the node before it.
    tokens = []
    nodes = []
    for _ in range(trie.max_depth):
        tokens.append(trie.child_tokens[(node - 1).clamp(min=0)].long())  # edge `n - 1` leads to node `n`
        node = trie.parents[node].long()
        nodes.append(node)
    real = torch.arange(trie.max_depth - 1, -1, -1, device=items.device) < lengths.unsqueeze(-1)  # (..., K, D)

    # 3. Copy two values to the host in one transfer: the number of columns, and whether an item is unknown.
    has_unknown, width = 0, 0
    if items.numel():
        has_unknown, width = torch.stack([unknown.any().long(), lengths.sum(-1).amax()]).tolist()
    if has_unknown:
        raise ValueError(
            f"a list contains item {int(items[unknown][0])}, which is not one of the {trie.num_items} items of the "
            "trie; pass item indices of the catalogue from which the trie was built"
        )

    # 4. Remove the padding between the paths.
    ranks = torch.arange(items.shape[-1], device=items.device).unsqueeze(-1).expand_as(real)
    parts = (torch.stack(tokens[::-1], -1), torch.stack(nodes[::-1], -1), ranks)
    mask, token_ids, before, ranks = _packed(width, real, *parts)
    before = before.masked_fill(~mask, -1)
    branches = mask & (trie.row_offsets[before + 1] - trie.row_offsets[before.clamp(min=0)] > 1)
    return ListTokens(token_ids.masked_fill(~mask, 0), mask, before, ranks, branches)


def _packed(width: int, mask: Tensor, *parts: Tensor) -> list[Tensor]:
    """Packs the mask and the parts from `(..., K, D)`, where each item's tokens are right-aligned, to `(..., T)`.

    `width` is T.
    """
    mask = mask.flatten(-2)
    order = torch.argsort(~mask, dim=-1, stable=True)[..., :width]
    return [part.gather(-1, order) for part in (mask, *(part.flatten(-2) for part in parts))]


def legal_children(
    trie: TokenTrie, nodes: Tensor, taken: Tensor, width: int | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """Returns the children of the nodes, like `TokenTrie.children`, except that a child is not legal if all items
    below it are taken (in the list or excluded).

    Args:
        trie (`TokenTrie`): The trie.
        nodes (`torch.Tensor` of shape `(M,)` or `(1,)`): One node per row of `taken`, or one node for all rows.
        taken (`torch.Tensor` of shape `(M, S)`): The taken items, as distinct indices into `trie.items` in ascending
            order; `num_items` is padding. See `taken_places`.
        width (`int`, *optional*): As in `TokenTrie.children`: C, at least the number of children of each node.

    Returns:
        `tokens, next_nodes, legal` of shape `(M, C)`. With a single node, `tokens` and `next_nodes` have the shape
        `(1, C)`.
    """
    tokens, children, legal = trie.children(nodes, width)
    return tokens, children, legal & ~emptied_children(trie, nodes, taken, legal.shape[1])


def emptied_children(
    trie: TokenTrie,
    nodes: Tensor,
    taken: Tensor,
    num_columns: int,
    num_allowed: Callable[[Tensor], Tensor] | None = None,
) -> Tensor:
    """Returns which children of the nodes have only taken items below them.

    Args:
        trie, nodes, taken: As in [`legal_children`].
        num_columns (`int`): C.
        num_allowed (*optional*): A function that maps nodes `(M, S)` to the number of items below each node, counting
            only the items that a filter allows. If the function is given, `taken` must contain only allowed items. By
            default, all items are allowed.

    Returns:
        `torch.Tensor` of shape `(M, C)`: True for children below which all allowed items are taken. However, if a
        filter allows no item below a child, the value for this child may be False.
    """
    above, emptied = _emptied(trie, nodes, taken, num_allowed)

    # Mark each child below which all items are taken. Taken items that are not below such a child mark an additional
    # column, which is dropped.
    column = torch.where(emptied, above - 1 - trie.row_offsets[nodes].unsqueeze(1), num_columns)
    is_empty = torch.zeros(len(taken), num_columns + 1, dtype=torch.bool, device=taken.device)
    return is_empty.scatter_(1, column.clamp(max=num_columns), True)[:, :-1]


def num_legal(trie: TokenTrie, nodes: Tensor, taken: Tensor) -> Tensor:
    """Returns how many legal children each node has, `(M,)`, without listing the children."""
    above, emptied = _emptied(trie, nodes, taken)
    # Several taken items can be below the same child. Count each emptied child once: its repeats are adjacent, because
    # `taken` is sorted.
    emptied[:, 1:] &= above[:, 1:] != above[:, :-1]
    return trie.row_offsets[nodes + 1] - trie.row_offsets[nodes] - emptied.sum(1)


def _emptied(
    trie: TokenTrie, nodes: Tensor, taken: Tensor, num_allowed: Callable[[Tensor], Tensor] | None = None
) -> tuple[Tensor, Tensor]:
    """Finds, for the node of each row, the children below which all allowed items are taken.

    Every such child has a taken item below it. There are usually far fewer taken items than children, so this function
    checks one node per taken item: the node on the item's path at the depth of the children.

    Returns:
        `above, emptied` of shape `(M, S)`: the node that is checked for each taken item, and whether it is such a
        child.
    """
    if trie.max_depth == 1 and trie.max_shared == 1:  # item tokens: `trie.items[p]` is at node `p + 1`
        return taken + 1, (taken < trie.num_items) & (nodes == 0).unsqueeze(1)

    above = trie.above(taken, (trie.depths(nodes) + 1).unsqueeze(1))
    starts = trie.item_starts[above].to(taken.dtype)
    ends = trie.item_ends[above].to(taken.dtype)
    num_taken = torch.searchsorted(taken, ends) - torch.searchsorted(taken, starts)
    total = ends - starts if num_allowed is None else num_allowed(above)
    return above, (trie.parents[above] == nodes.unsqueeze(1)) & (num_taken == total)


def taken_places(trie: TokenTrie, items: Tensor, ranks: Tensor, excluded: Tensor | None = None) -> Tensor:
    """Returns the taken items of each list, in the form that `legal_children` expects: the first `ranks` items of the
    list, and the excluded items.

    Args:
        trie (`TokenTrie`): The trie.
        items (`torch.Tensor` of shape `(M, K)`): The lists; -1 is padding.
        ranks (`torch.Tensor` of shape `(M,)`): Number of items at the beginning of each list that are taken.
        excluded (`torch.Tensor` of shape `(M, E)`, *optional*): Excluded items, as `Excluded.places` stores them.

    Returns:
        `torch.Tensor` of shape `(M, S)`: Indices into `trie.items` in ascending order; `num_items` is padding.
    """
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
    """Returns the log-probability of each token of the given lists, normalised over the legal tokens.

    The softmax is computed only at the M tokens at which the trie branches, from scores of shape `(M, C)`. Pass fewer
    prompts to reduce memory.

    Args:
        read (`CompletionLogits`): The result of [`read_completions`] for `token_ids` and `mask` of
            `list_tokens(trie, items)`, with `scored=branches`. Only the logits of the trie's tokens are used, so pass
            `tokens=trie.tokens` to save memory.
        items (`torch.Tensor` of shape `(B, G, K)`): Item indices; -1 pads shorter lists.
        trie (`TokenTrie`): The items' paths as they are written in lists, on the same device as `items`.
        exclude (`torch.Tensor` or lists of `int`, *optional*): Indices of items that no list of a prompt may contain:
            one Python list of integers per prompt, or a tensor of shape `(B, E)` padded with -1.
        temperature (`float`, *optional*, defaults to `1.0`): Divides the logits before the softmax.

    Returns:
        `torch.Tensor` of shape `(B, G, T)`: At least float32; 0 for tokens that are forced or masked. Illegal tokens
        have the log-probability -inf and no gradient.
    """
    lists = list_tokens(trie, items)
    choices = find_choices(trie, items, lists, read.places_in(lists.branches), exclude)
    return choice_logps(read, choices, temperature=temperature)


class ListChoices(NamedTuple):
    """The M branching tokens of lists (those that are not forced), and the tokens that were legal at their positions.

    Args:
        shape (`torch.Size`): `(B, G, T)`.
        places (`torch.Tensor` of shape `(M,)`): The indices of the branching tokens among all B * G * T tokens.
        targets (`torch.Tensor` of shape `(M,)`): The branching tokens.
        tokens (`torch.Tensor` of shape `(M, C)` or `(1, C)`): The tokens that lead from the node before each branching
            token to the children of this node.
        legal (`torch.Tensor` of shape `(M, C)`): True for each of `tokens` that is legal at the position of the
            branching token.
    """

    shape: torch.Size
    places: Tensor
    targets: Tensor
    tokens: Tensor
    legal: Tensor


def find_choices(
    trie: TokenTrie,
    items: Tensor,
    lists: ListTokens,
    places: Tensor,
    exclude: Tensor | Sequence[Sequence[int]] | None = None,
) -> ListChoices:
    """Finds the legal tokens at the position of each branching token of the given lists. They depend on the items that
    come before this token in its list.

    Args:
        trie, items, exclude: As in [`list_logps`].
        lists (`ListTokens`): The tokens of the lists.
        places (`torch.Tensor` of shape `(M,)`): The indices of the branching tokens in the flattened `lists.branches`.
    """
    owner = places // max(1, lists.branches.shape[2])  # (M,): the list that each branching token belongs to
    excluded = Excluded(trie, exclude, len(items)).places[owner // max(1, items.shape[1])]
    taken = taken_places(trie, items.flatten(0, 1)[owner], lists.ranks.flatten()[places], excluded)

    # Pad to the number of children of the trie's widest node, which the host knows. The largest number of children
    # among `nodes` would have to be copied from the device, and is rarely smaller: the widest node is nearly always
    # the root, and every list begins at the root.
    nodes = lists.nodes.flatten()[places]
    if trie.only_choice is not None:
        nodes = nodes.new_full((1,), trie.only_choice)
    tokens, _, legal = legal_children(trie, nodes, taken, trie.max_width)
    return ListChoices(lists.branches.shape, places, lists.token_ids.flatten()[places], tokens, legal)


def choice_logps(read: CompletionLogits, choices: ListChoices, *, temperature: float = 1.0) -> Tensor:
    """Returns the log-probability of each token of lists, `(B, G, T)`, as described in [`list_logps`].

    Args:
        read (`CompletionLogits`): As in [`list_logps`].
        choices (`ListChoices`): The result of [`find_choices`] for these lists.
        temperature (`float`, *optional*, defaults to `1.0`): Divides the logits before the softmax.
    """
    POSITIVE.check("temperature", temperature)
    chosen = chosen_legal_logps(read, choices.targets, choices.tokens, choices.legal, temperature)
    return unpacked(chosen, choices.places, choices.shape)
