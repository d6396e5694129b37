"""A model puts a list of candidates in order: it writes their names, the best first, and can only write those that are
left.

So the answer is a permutation, whatever the model says. The prompt is read once; each name but the last two costs one
forward pass of one token more, and the last is forced.

Legend: B lists, m candidates of the longest list, P prompt tokens, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from trl_rec.decoding.beam import evaluating
from trl_rec.decoding.prompt_cache import Pending, SeparateRows, SharedPrompt, open_cache


if TYPE_CHECKING:
    from transformers import PreTrainedModel


class RankedCandidates(NamedTuple):
    """Candidates by descending preference, `(B, m)` each. After the last of a list stand -1 and -inf.

    Args:
        order (`torch.Tensor`): The candidate at each rank.
        scores (`torch.Tensor`): The log-probability of the answer up to that rank among the names left; or, in a
            single pass, that of the candidate's name among all of the list.
    """

    order: Tensor
    scores: Tensor


@torch.no_grad()
def rank_candidates(
    model: PreTrainedModel, prompts: Mapping[str, Tensor], names: Tensor, mask: Tensor, *, single_pass: bool = False
) -> RankedCandidates:
    """The order that a model gives each list, by greedy decoding. The model's own `generation_config` plays no part.

    Args:
        model: A decoder-only causal language model with a key-value cache. It is put into evaluation mode and back.
        prompts: `input_ids` and `attention_mask` of shape `(B, P)`, padded on the left: history and candidates.
        names: `(B, m)`, the token that names each candidate, different ones within a list.
        mask: `(B, m)`, True where there is a candidate; every list has one at least.
        single_pass: Sorts by the names' scores in the first place of the answer: one forward pass instead of m - 1,
            for a model that was not trained for it.
    """
    _check(prompts, names, mask)
    input_ids, attention_mask = prompts["input_ids"].to(model.device), prompts["attention_mask"].to(model.device)
    names, mask = names.to(model.device), mask.to(model.device)
    with evaluating(model):
        cache = open_cache(model, input_ids, attention_mask, names.shape[1])
        ranked = _sort(cache, names, mask) if single_pass else _write(cache, names, mask)
    if bool(ranked.scores.isnan().any()):
        raise ValueError("the model's logits contain NaN; its weights are broken or its number format is too small")
    return ranked


def _sort(cache: SharedPrompt | SeparateRows, names: Tensor, mask: Tensor) -> RankedCandidates:
    logps = _logps(cache.logits, names, mask)
    scores, order = logps.sort(dim=-1, descending=True, stable=True)
    return RankedCandidates(order.masked_fill(scores == -torch.inf, -1), scores)


def _write(cache: SharedPrompt | SeparateRows, names: Tensor, mask: Tensor) -> RankedCandidates:
    left, total = mask.clone(), torch.zeros(len(names), device=names.device)
    order, scores, logits = [], [], cache.logits
    cache.reorder(torch.zeros(len(names), 1, dtype=torch.int64, device=names.device))
    for step in range(names.shape[1]):
        forced = step > 0 and step == names.shape[1] - 1  # of every list, one is left or none
        logps = torch.where(left, 0.0, -torch.inf) if forced else _logps(logits, names, left)
        logp, chosen = logps.max(-1)
        total = total + logp
        order.append(torch.where(left.any(-1), chosen, -1))
        scores.append(total)
        left = left.scatter(1, chosen.unsqueeze(1), False)
        if step < names.shape[1] - 2:
            logits = cache.extend(_pending(names.gather(1, chosen.unsqueeze(1)), step + 1))[0]
    return RankedCandidates(torch.stack(order, 1), torch.stack(scores, 1))


def _logps(logits: Tensor, names: Tensor, left: Tensor) -> Tensor:
    """`(B, m)`: log-probabilities of the names left, from logits `(B, 1, V)`; -inf where nothing is left."""
    scores = logits.squeeze(1).gather(1, names)
    scores = scores.to(torch.promote_types(scores.dtype, torch.float32)).masked_fill(~left, -torch.inf)
    return torch.where(left, scores.log_softmax(-1), -torch.inf)


def _pending(tokens: Tensor, depth: int) -> Pending:
    lengths = torch.ones_like(tokens)
    return Pending(tokens.unsqueeze(-1), lengths, lengths * depth, lengths > 0, 1, 0)


def _check(prompts: Mapping[str, Tensor], names: Tensor, mask: Tensor) -> None:
    if names.shape != mask.shape or len(names) != len(prompts["input_ids"]):
        raise ValueError(
            f"names {tuple(names.shape)}, mask {tuple(mask.shape)} and {len(prompts['input_ids'])} prompts do not belong "
            "together; give one row of names and of mask a prompt"
        )
    if not bool(mask.any(1).all()):
        raise ValueError(f"list {int((~mask.any(1)).nonzero()[0])} has no candidate; leave it out")
    if not bool(prompts["attention_mask"][:, -1].all()):
        raise ValueError("prompts must be padded on the left; set the tokenizer's padding_side to left")
