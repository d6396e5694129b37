"""The list that a policy of lists recommends: greedy, or by beam search over whole lists.

The search is `generate`'s: all beams of a prompt advance one token at a time, and the best `num_beams` lists of each
step survive, complete or not. As in sampling, what a list holds already, and what is excluded, leaves before the
softmax, so that a score is the log-probability of a list under the policy. Tokens that the trie forces cost nothing
and are skipped; a beam among them waits, with its place and score, for the others to come as far. Among equal scores
the beam that stood higher before comes first, and of one beam the lower item, so that lists of equal items are in the
order of their items.

Legend: B prompts, N beams, R = B * N, C children (padded), M = min(N, C), K items a list.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from trl_rec.decoding.beam import RankedItems, best_first
from trl_rec.decoding.list_prompts import open_lists
from trl_rec.decoding.list_steps import ListLogits, Lists, ListSteps
from trl_rec.decoding.lists import greedy_list
from trl_rec.items.trie import TokenTrie


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
) -> RankedItems:
    """The first `top_k` items of the list that the model writes for each prompt, as a ranking `(B, top_k)`: with one
    beam that of [`greedy_list`], else that of [`beam_list`]."""
    if top_k > list_length:
        raise ValueError(f"lists of {list_length} items have no first {top_k}; ask for at most list_length of them")
    if num_beams == 1:  # which needs no more than what is asked for
        return greedy_list(model, prompts, trie, list_length=top_k, exclude=exclude)
    ranked = beam_list(model, prompts, trie, list_length=list_length, num_beams=num_beams, exclude=exclude)
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
) -> RankedItems:
    """The best list of distinct items for each prompt that a beam search finds, as a ranking `(B, K)`. The score of a
    rank is the log-probability of the list up to there, so the last one is that of the list, and scores descend.

    Args:
        model, prompts, trie, list_length, exclude: As in [`sample_item_lists`].
        num_beams: Width of the search; 1 gives the list of [`greedy_list`]. As wide as there are lists, each of them
            is scored.
    """
    if num_beams < 1 or list_length < 1:
        raise ValueError(f"num_beams and list_length must be at least 1, not {num_beams} and {list_length}")
    with open_lists(model, prompts, trie, num_lists=num_beams, list_length=list_length, exclude=exclude) as steps:
        beams = _search(steps)
    best = slice(None, None, num_beams)
    if bool(beams.scores[best].isnan().any()):
        raise ValueError("the model's logits contain NaN; its weights are broken or its number format is too small")
    return RankedItems(beams.lists.items[best, :-1], beams.ends[best, :-1])


class _Beams(NamedTuple):
    """Lists by descending score within a prompt, `(R,)` or `(R, K + 1)`.

    Args:
        lists: Where they stand.
        scores: Their log-probability; -inf where there is no list.
        ends: What it was when each item ended; the last column is for what is not kept.
    """

    lists: Lists
    scores: Tensor
    ends: Tensor


def _search(steps: ListSteps) -> _Beams:
    heard: ListLogits | None
    lists, heard = steps.begin()
    scores = lists.nodes.new_full(steps.shape, -torch.inf, dtype=torch.float32)
    scores[:, 0] = 0.0  # one list, as yet
    beams = _Beams(lists, scores.flatten(), torch.full(lists.items.shape, -torch.inf, device=scores.device))
    active = _branching(steps, beams)
    for step in range(1, steps.most + 1):
        beams = _advanced(steps, beams, heard, active)
        active = _branching(steps, beams)
        heard = steps.hear(beams.lists, active, step)
        if heard is None:
            break
    return beams


def _branching(steps: ListSteps, beams: _Beams) -> Tensor:
    """`(R,)`: the beams to choose next: those of the fewest tokens, unless the best list is complete, which none can
    pass."""
    complete = beams.lists.ranks == steps.list_length
    running = (beams.scores > -torch.inf) & ~complete
    running = running.view(steps.shape) & ~complete.view(steps.shape)[:, :1]
    written = beams.lists.written.view(steps.shape).masked_fill(~running, torch.iinfo(torch.int64).max)
    return (running & (written == written.amin(1, keepdim=True))).flatten()


def _advanced(steps: ListSteps, beams: _Beams, heard: ListLogits, active: Tensor) -> _Beams:
    """The best of what the active beams can become in one step and of the others as they are. The cache follows."""
    logps, children = steps.logps(beams.lists, heard)
    grown = beams.scores.unsqueeze(1) + logps.float()
    column = best_first(grown, steps.trie.lowest_items[children].expand_as(grown), steps.shape[1])  # (R, M)
    stays = torch.full_like(column, -torch.inf, dtype=grown.dtype)
    stays[:, 0] = beams.scores
    candidates = torch.where(active.unsqueeze(1), grown.gather(1, column), stays).view(len(steps.excluded), -1)
    scores, chosen = (part[:, : steps.shape[1]] for part in candidates.sort(dim=1, descending=True, stable=True))
    parents, scores = chosen // column.shape[1], scores.flatten()
    rows = (torch.arange(len(parents), device=parents.device).unsqueeze(1) * steps.shape[1] + parents).flatten()
    child = children.expand_as(grown).gather(1, column)[rows, chosen.flatten() % column.shape[1]]
    before = beams.lists.take(rows)
    lists = steps.move(before, child, active[rows] & (scores > -torch.inf))
    ended = torch.where(lists.ranks > before.ranks, scores, -torch.inf)
    ends = beams.ends[rows].scatter(1, before.ranks.unsqueeze(1), ended.unsqueeze(1))
    steps.cache.reorder(parents)
    return _Beams(lists, scores, ends)
