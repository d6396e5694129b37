"""Orders a list of candidates with a model that writes the candidates' names, best first.

Each name is one token. Only names that have not been written yet are legal, so the answer is always a permutation.
The prompt is read once. After a name is written, one forward pass reads this name to predict the next one. The last
two names are never read, because no prediction is needed after them: after the second to last name, only one name is
left.

Legend: B: lists, m: candidates of the longest list, P: prompt tokens, U: distinct names in the batch.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from trl_rec.decoding.checks import check_no_nan, evaluating
from trl_rec.decoding.prompt_cache import Pending, SeparateRows, SharedPrompt, open_cache
from trl_rec.losses.output import at_least_float32


if TYPE_CHECKING:
    from transformers import PreTrainedModel


class RankedCandidates(NamedTuple):
    """The candidates of each list, most preferred first. Both tensors have the shape `(B, m)`; shorter lists are
    padded.

    Args:
        order (`torch.Tensor`): The index of the candidate at each rank. Padding is -1.
        scores (`torch.Tensor`): The log-probability of the answer up to each rank. The probability of each name in the
            answer is normalised over the names not yet written. With `single_pass`, a score is instead the
            log-probability of the candidate's name, normalised over all names of the list. Padding is -inf.
    """

    order: Tensor
    scores: Tensor


@torch.no_grad()
def rank_candidates(
    model: PreTrainedModel, prompts: Mapping[str, Tensor], names: Tensor, mask: Tensor, *, single_pass: bool = False
) -> RankedCandidates:
    """Orders each list by greedy decoding. The model's `generation_config` is ignored.

    Args:
        model (`PreTrainedModel`): A decoder-only causal language model with a key-value cache. It is switched to
            evaluation mode and back.
        prompts (`Mapping[str, torch.Tensor]`): `input_ids` and `attention_mask` of shape `(B, P)`, padded on the left.
            The prompts contain history and candidates.
        names (`torch.Tensor` of shape `(B, m)`): The token that names each candidate, distinct within a list.
        mask (`torch.Tensor` of shape `(B, m)`): True where there is a candidate; every list has at least one.
        single_pass (`bool`, *optional*, defaults to `False`): Whether to sort the candidates by the scores that their
            names have at the first position of the answer. This takes one forward pass instead of m - 1, but the model
            was not trained for it.

    Returns:
        [`RankedCandidates`]: Candidates and scores, `(B, m)` each.
    """
    _check(prompts, names, mask)
    input_ids = prompts["input_ids"].to(model.device)
    attention_mask = prompts["attention_mask"].to(model.device)
    names = names.to(model.device)
    mask = mask.to(model.device)
    tokens, columns = names.unique(return_inverse=True)  # (U,), (B, m)

    with evaluating(model):
        cache = open_cache(model, input_ids, attention_mask, names.shape[1], tokens)
        ranked = _sort(cache, columns, mask) if single_pass else _write(cache, names, columns, mask)
    check_no_nan(ranked.scores)
    return ranked


def _sort(cache: SharedPrompt | SeparateRows, columns: Tensor, mask: Tensor) -> RankedCandidates:
    """Sorts the names by their log-probabilities after the prompt."""
    logps = _logps(cache.logits, columns, mask)
    scores, order = logps.sort(dim=-1, descending=True, stable=True)
    return RankedCandidates(order.masked_fill(scores == -torch.inf, -1), scores)


def _write(cache: SharedPrompt | SeparateRows, names: Tensor, columns: Tensor, mask: Tensor) -> RankedCandidates:
    """Writes one name after the other, always the most likely of the names not yet written."""
    num_lists, num_names = names.shape
    left = mask.clone()  # (B, m)
    total = torch.zeros(num_lists, device=names.device)
    logits = cache.logits  # (B, 1, U)
    order = []
    scores = []
    cache.reorder(torch.zeros(num_lists, 1, dtype=torch.int64, device=names.device))  # one beam per list

    for step in range(num_names):
        # 1. Choose the most likely name. In the last step each list has at most one name left, which is forced.
        forced = step > 0 and step == num_names - 1
        logps = torch.where(left, 0.0, -torch.inf) if forced else _logps(logits, columns, left)
        logp, chosen = logps.max(-1)
        total = total + logp
        order.append(torch.where(left.any(-1), chosen, -1))
        scores.append(total)
        left = left.scatter(1, chosen.unsqueeze(1), False)

        # 2. Let the model read the chosen name, if there is another choice to make.
        if step < num_names - 2:
            logits = cache.extend(_pending(names.gather(1, chosen.unsqueeze(1)), step + 1))[0]
    return RankedCandidates(torch.stack(order, 1), torch.stack(scores, 1))


def _logps(logits: Tensor, columns: Tensor, left: Tensor) -> Tensor:
    """Returns the log-probabilities of the names that are left, `(B, m)`, from logits `(B, 1, U)`; -inf for the other
    names."""
    scores = at_least_float32(logits.squeeze(1).gather(1, columns)).masked_fill(~left, -torch.inf)
    # The outer mask also covers lists with no name left, whose softmax is NaN.
    return torch.where(left, scores.log_softmax(-1), -torch.inf)


def _pending(tokens: Tensor, depth: int) -> Pending:
    """Returns `tokens` `(B, 1)` as pending tokens, which the model reads next: one beam per list, with one token. Each
    token is the `depth`-th after the prompt."""
    lengths = torch.ones_like(tokens)
    return Pending(tokens.unsqueeze(-1), lengths, lengths * depth, lengths > 0, 1, 0)


def _check(prompts: Mapping[str, Tensor], names: Tensor, mask: Tensor) -> None:
    if names.shape != mask.shape or len(names) != len(prompts["input_ids"]):
        raise ValueError(
            f"names has the shape {tuple(names.shape)} and mask {tuple(mask.shape)}, but there are "
            f"{len(prompts['input_ids'])} prompts; give one row of names and one row of mask per prompt"
        )
    if not bool(mask.any(1).all()):
        raise ValueError(f"list {int((~mask.any(1)).nonzero()[0])} has no candidates; leave it out")
    if not bool(prompts["attention_mask"][:, -1].all()):
        raise ValueError("prompts must be padded on the left; set tokenizer.padding_side = 'left'")
