"""Computes the log-probability of each candidate at each answer position, in one table per prompt.

A list of candidates has one or more prompts, which show the candidates in different orders. An answer consists of
names, sometimes followed by EOS. The name of a candidate is the single token that identifies the candidate in one of
these prompts.

Legend: B lists, S prompts per list, m candidates of the longest list, C tokens of the longest list with its answer
(without the history), M answer tokens in the batch; k is an answer position.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from trl_rec.models.completions import CompletionLogits, completion_logps


class AnswerTable(NamedTuple):
    """The tables and the supervised losses of a batch: one table and one loss per prompt.

    Args:
        logps (`torch.Tensor` of shape `(B, S, m, m)`): Row k contains the log-probability of each candidate's name at
            answer position k, normalised over the names of the list. Column j is the same candidate in every
            prompt of a list. Rows beyond the number of candidates are meaningless.
        sft (`torch.Tensor` of shape `(B, S)`): The supervised loss, averaged over the tokens of the answer that have a
            loss.
        aux_loss (`torch.Tensor` of shape `()`, *optional*): Same as in [`CompletionLogits`].
    """

    logps: Tensor
    sft: Tensor
    aux_loss: Tensor | None = None


def answer_table(read: CompletionLogits, inputs: dict[str, Tensor], *, vocabulary: bool) -> AnswerTable:
    """Computes the tables and the supervised losses of a batch, in at least float32.

    Args:
        read: The output of [`read_completions`] with `scored=answer_mask`.
        inputs: A batch of [`RatedListCollator`].
        vocabulary: Whether the softmax of the supervised loss covers the vocabulary. If so, the loss includes EOS.
            Otherwise, the softmax covers the names that are not yet in the answer, so the last name is the only choice
            and has no loss.
    """
    answer = inputs["answer_mask"]  # (B, S, C)
    candidates = inputs["candidate_mask"]  # (B, m)
    scores = _scores(read, inputs["names"], answer)  # (B, S, m, m)
    mask = candidates[:, None, None]
    logps = scores.masked_fill(~mask, -torch.inf).log_softmax(-1)
    if vocabulary:
        token_logps = completion_logps(read, inputs["completion_ids"], answer)
        return AnswerTable(logps, -token_logps.sum(-1) / answer.sum(-1), read.aux_loss)
    return AnswerTable(logps, _remaining_loss(scores, inputs["gold_rank"], candidates), read.aux_loss)


def _scores(read: CompletionLogits, names: Tensor, answer: Tensor) -> Tensor:
    """Returns the logit of each candidate's name at each answer position, `(B, S, m, m)`. Logits beyond the end of an
    answer are 0."""
    # 1. Find the list, prompt and position of each of the M answer tokens.
    places = read.places_in(answer)
    row = places // answer.shape[2]  # among all B * S prompts
    list_ = row // answer.shape[1]
    order = row % answer.shape[1]
    position = (answer.cumsum(-1) - 1).flatten()[places]

    # 2. Gather the logits of the m names at each token.
    scores = read.at(names[list_, order])  # (M, m)

    # 3. Scatter these logits into tables. The EOS after the longest answer has position m, so the tables need a row m,
    # which is dropped afterwards.
    num_candidates = names.shape[2]
    table = scores.new_zeros(*names.shape[:2], num_candidates + 1, num_candidates)
    return table.index_put((list_, order, position), scores)[:, :, :-1]


def _remaining_loss(scores: Tensor, gold_rank: Tensor, mask: Tensor) -> Tensor:
    """Returns the cross-entropy of each answer, `(B, S)`. At each position, the softmax covers the names that are not
    yet in the answer. The loss is averaged over the positions at which at least two names remain."""
    # At position k, the names with a gold rank of at least k remain. The name with rank k is the target.
    position = torch.arange(mask.shape[1], device=mask.device)
    count = mask.sum(-1, keepdim=True)
    left = (gold_rank.unsqueeze(1) >= position.unsqueeze(1)) & mask.unsqueeze(1)  # (B, m, m)
    chosen = (gold_rank.unsqueeze(1) == position.unsqueeze(1)) & mask.unsqueeze(1)

    # At positions that are not averaged, treat all names as remaining, so that no softmax is empty.
    free = (position < count - 1).unsqueeze(1)  # (B, 1, m)
    left = left | ~free.transpose(1, 2)
    total = scores.masked_fill(~left.unsqueeze(1), -torch.inf).logsumexp(-1)
    loss = total - torch.where(chosen.unsqueeze(1), scores, 0).sum(-1)
    return torch.where(free, loss, 0).sum(-1) / (count - 1).clamp(min=1)
