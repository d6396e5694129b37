"""Lets a model write the list that it recommends, greedily or by beam search over whole lists.

The beams of a prompt advance one token per step, and each step keeps the best `num_beams` lists, complete or not. This
is the search of `generate`, except that complete lists are not set aside, so they leave fewer slots for incomplete
lists. As in `sampling.py`, excluded items and items already in the list are removed before the softmax. If no item
weights are given, a score is therefore the log-probability of a list under the policy. Tokens that the trie forces
have log-probability 0 and are skipped: as in `beam.py`, they need no step of their own. A beam at the end of a chain
of forced tokens therefore has more tokens than the other beams. Until the other beams have as many tokens, such a beam
is not extended, but competes for a slot with its unchanged score. If continuations of different beams have equal
scores, they keep the order of their beams. If continuations of the same beam have equal scores, the one whose subtree
contains the lowest item index comes first.

Legend: B: prompts, N: beams per prompt, R = B * N, C: children (padded), M = min(N, C), K: items per list.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from trl_rec.decoding.beam import RankedItems, best_first
from trl_rec.decoding.checks import check_no_nan
from trl_rec.decoding.lists.decoder import ListDecoder, ListLogits, Lists
from trl_rec.decoding.lists.prompts import open_lists
from trl_rec.decoding.lists.sampling import greedy_list
from trl_rec.decoding.weights import ItemWeights
from trl_rec.items.trie import TokenTrie
from trl_rec.ranges import COUNT


if TYPE_CHECKING:
    from transformers import PreTrainedModel


def rank_list(
    model: PreTrainedModel,
    prompts: Mapping[str, Tensor],
    trie: TokenTrie,
    *,
    list_length: int,
    top_k: int,
    num_beams: int = 1,
    exclude: Tensor | Sequence[Sequence[int]] | None = None,
    weights: ItemWeights | None = None,
) -> RankedItems:
    """Returns the first `top_k` items of the list that the model writes for each prompt.

    Args:
        model, prompts, trie, list_length, exclude: As in [`sample_item_lists`].
        top_k (`int`): Number of ranks to return, at most `list_length`.
        num_beams (`int`, *optional*, defaults to `1`): Width of the search. With 1, lists are written by
            [`greedy_list`], otherwise by [`beam_list`].
        weights ([`ItemWeights`], *optional*): Weights of the items, as in [`greedy_list`].

    Returns:
        [`RankedItems`]: `(B, top_k)`.
    """
    COUNT.check("top_k", top_k)
    if top_k > list_length:
        raise ValueError(f"top_k {top_k} exceeds the list length {list_length}; choose top_k <= list_length")
    if num_beams == 1:
        # In greedy decoding, later items do not change earlier ones, so only `top_k` items are written.
        return greedy_list(model, prompts, trie, list_length=top_k, exclude=exclude, weights=weights)
    ranked = beam_list(
        model, prompts, trie, list_length=list_length, num_beams=num_beams, exclude=exclude, weights=weights
    )
    return RankedItems(*(part[:, :top_k] for part in ranked))


@torch.no_grad()
def beam_list(
    model: PreTrainedModel,
    prompts: Mapping[str, Tensor],
    trie: TokenTrie,
    *,
    list_length: int,
    num_beams: int,
    exclude: Tensor | Sequence[Sequence[int]] | None = None,
    weights: ItemWeights | None = None,
) -> RankedItems:
    """Returns the best list of distinct items that a beam search finds for each prompt, as a ranking.

    Args:
        model, prompts, trie, list_length, exclude: As in [`sample_item_lists`].
        num_beams (`int`): Width of the search. With 1, the result is the list of [`greedy_list`]. If `num_beams` is at
            least the number of possible lists, the result is the best of all possible lists.
        weights ([`ItemWeights`], *optional*): Weights of the items, as in [`greedy_list`].

    Returns:
        [`RankedItems`]: `(B, K)`. The score at each rank is the joint log-probability of the items up to that rank.
        If `weights` are given, `weights.strength * log(w / W)` is added for each of these items, where `w` is the
        weight of the item and `W` the sum of the weights of all items. The log-probability and this term are at most 0
        for every item, so the scores descend. The last score is that of the whole list.
    """
    COUNT.check("num_beams", num_beams)
    COUNT.check("list_length", list_length)
    with open_lists(
        model, prompts, trie, num_lists=num_beams, list_length=list_length, exclude=exclude, weights=weights
    ) as decoder:
        beams = _search(decoder)

    # Choose among the complete lists only. The bonus of a node is what item weights add to the score of a beam at this
    # node, and is at most 0 (see `trie_weights.py`). `beams.scores` omits the bonus of the node that an unfinished
    # item has reached. So with item weights, an incomplete list may score higher than the best complete list.
    complete = beams.lists.ranks == list_length
    scores = torch.where(complete | beams.scores.isnan(), beams.scores, -torch.inf)
    best = _best_slots(scores.view(decoder.shape))
    check_no_nan(beams.scores[best])
    return RankedItems(beams.lists.items[best, :-1], decoder.normalized(beams.ends[best, :-1]))


class _Beams(NamedTuple):
    """The lists of each prompt. Without item weights, they are in descending order of their scores.

    Args:
        lists: The state of each list, `(R,)`.
        scores: The score of each list, `(R,)`: its log-probability plus the bonus of its complete items. -inf marks an
            empty slot.
        ends: The score of each list up to the end of each item, `(R, K + 1)`. The last column is scratch space.
    """

    lists: Lists
    scores: Tensor
    ends: Tensor


def _search(decoder: ListDecoder) -> _Beams:
    # 1. Start with one empty list per prompt, in the first slot.
    output: ListLogits | None
    lists, output = decoder.begin()
    scores = lists.nodes.new_full(decoder.shape, -torch.inf, dtype=torch.float32)  # (B, N)
    scores[:, 0] = 0.0
    beams = _Beams(lists, scores.flatten(), torch.full(lists.items.shape, -torch.inf, device=scores.device))
    active = _next_to_branch(decoder, beams)

    for step in range(1, decoder.max_steps + 1):
        # 2. Replace the active beams by their continuations, and keep the best `num_beams` beams per prompt.
        beams = _advanced(decoder, beams, output, active)

        # 3. Let the model read the beams that branch next.
        active = _next_to_branch(decoder, beams)
        output = decoder.read(beams.lists, active, step)
        if output is None:
            break
    return beams


def _best_slots(scores: Tensor) -> Tensor:
    """Returns the best beam of each prompt as an index into all R beams, `(B,)`, given the scores `(B, N)`. Of beams
    with equal scores, the first is chosen. NaN counts as the best score, so that it is reported."""
    best = scores.isnan() | (scores == scores.nan_to_num(nan=torch.inf).amax(1, keepdim=True))
    first = best.long().argmax(1)
    return first + torch.arange(len(scores), device=scores.device) * scores.shape[1]


def _next_to_branch(decoder: ListDecoder, beams: _Beams) -> Tensor:
    """Returns a mask `(R,)`: True for those of a prompt's incomplete beams that have the fewest tokens.

    If the best beam of a prompt is complete, the mask is False for all beams of the prompt. Scores only fall, so no
    other beam can overtake the best one.
    """
    complete = beams.lists.ranks == decoder.list_length
    running = (beams.scores > -torch.inf) & ~complete
    guided = decoder.guided(beams.scores.unsqueeze(1), beams.lists.nodes.unsqueeze(1))
    is_done = complete[_best_slots(guided.view(decoder.shape))].unsqueeze(1)  # (B, 1)
    running = running.view(decoder.shape) & ~is_done
    num_written = beams.lists.num_written.view(decoder.shape).masked_fill(~running, torch.iinfo(torch.int64).max)
    return (running & (num_written == num_written.amin(1, keepdim=True))).flatten()


def _advanced(decoder: ListDecoder, beams: _Beams, output: ListLogits, active: Tensor) -> _Beams:
    """Replaces the `active` beams by their continuations, and keeps the others as they are. Returns the best
    `num_beams` of all these beams per prompt, and reorders the cache accordingly."""
    num_prompts, num_beams = decoder.shape

    # 1. Find the best M children of each beam. The only continuation of a beam that is not active is the beam itself.
    logps, children = decoder.logps(beams.lists, output)
    grown = beams.scores.unsqueeze(1) + logps.float()  # (R, C)
    guided = decoder.guided(grown, children)
    column = best_first(guided, decoder.trie.lowest_items[children].expand_as(grown), num_beams)  # (R, M)
    unchanged = torch.full_like(column, -torch.inf, dtype=grown.dtype)
    unchanged[:, 0] = beams.scores
    continuations = torch.where(active.unsqueeze(1), grown.gather(1, column), unchanged).view(num_prompts, -1)
    unchanged[:, :1] = decoder.guided(beams.scores.unsqueeze(1), beams.lists.nodes.unsqueeze(1))
    guided = torch.where(active.unsqueeze(1), guided.gather(1, column), unchanged).view(num_prompts, -1)

    # 2. Choose the best continuations of each prompt. The sort is stable, so that equal scores keep the order of the
    # beams.
    chosen = guided.sort(dim=1, descending=True, stable=True).indices[:, :num_beams]
    scores = continuations.gather(1, chosen).flatten()
    parents = chosen // column.shape[1]  # (B, N)
    rows = (torch.arange(num_prompts, device=parents.device).unsqueeze(1) * num_beams + parents).flatten()
    child = children.expand_as(grown).gather(1, column)[rows, chosen.flatten() % column.shape[1]]

    # 3. Move the chosen beams to their children. Record the score of each beam that has completed an item.
    before = beams.lists.take(rows)
    lists = decoder.move(before, child, active[rows] & (scores > -torch.inf))
    is_new = lists.ranks > before.ranks
    newest = lists.items.gather(1, before.ranks.unsqueeze(1))
    scores = torch.where(is_new, scores + decoder.item_bonus(newest).squeeze(1), scores)
    ended = torch.where(is_new, scores, -torch.inf)
    ends = beams.ends[rows].scatter(1, before.ranks.unsqueeze(1), ended.unsqueeze(1))
    decoder.cache.reorder(parents)
    return _Beams(lists, scores, ends)
