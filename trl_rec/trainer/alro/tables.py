"""Log-probabilities of the candidates at each position of an answer, as one table per order of a list.

Legend: B lists, S orders of the same candidates, m candidates of the longest list, M answer tokens in all, V
vocabulary size; k an answer position.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from trl_rec.models.completions import CompletionLogits, completion_logps


class AnswerTable(NamedTuple):
    """A table per order of each list. Its columns are candidates, not slots, so that orders can be compared.

    Args:
        logps (`torch.Tensor` of shape `(B, S, m, m)`): Row k: the log-probability of each candidate's name at
            answer position k, over the names of the list. Rows beyond a list's candidates have no meaning.
        sft (`torch.Tensor` of shape `(B, S)`): The supervised loss, a mean over the answer's tokens.
        aux_loss (`torch.Tensor` of shape `()`, *optional*): As in [`CompletionLogits`].
    """

    logps: Tensor
    sft: Tensor
    aux_loss: Tensor | None = None


def answer_table(read: CompletionLogits, inputs: dict[str, Tensor], *, vocabulary: bool) -> AnswerTable:
    """The table of a batch of [`RatedListCollator`], at least float32.

    Args:
        read: The output of [`read_completions`] with `scored=answer_mask`.
        inputs: The batch.
        vocabulary: Whether the supervised loss is over the vocabulary and includes EOS. Otherwise it is over the names
            that are left, and the last of them, which is forced, does not count.
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
    """`(B, S, m, m)`: the logit of each candidate's name at each answer position; 0 where a list has no such
    position."""
    # 1. The list, order and position of each of the M answer tokens.
    list_, order, _ = answer.nonzero().unbind(1)
    position = (answer.cumsum(-1) - 1)[answer]

    # 2. The logits of the m names there. Indexing the flat logits makes neither (M, V) nor a gradient of that size.
    starts = read.rows.unsqueeze(1) * read.logits.shape[1]
    tokens = names[list_, order]  # (M, m)
    scores = read.logits.flatten().gather(0, (starts + tokens).flatten()).view(tokens.shape)
    scores = scores.to(torch.promote_types(scores.dtype, torch.float32))

    # 3. One row more than there are candidates, as the last position may be that of EOS.
    num_candidates = names.shape[2]
    table = scores.new_zeros(*names.shape[:2], num_candidates + 1, num_candidates)
    return table.index_put((list_, order, position), scores)[:, :, :-1]


def _remaining_loss(scores: Tensor, gold_rank: Tensor, mask: Tensor) -> Tensor:
    """`(B, S)`: cross-entropy over the names that are left, a mean over the positions where two or more are left."""
    # At position k, the names whose gold rank is at least k are left, and the name of rank k is right.
    position = torch.arange(mask.shape[1], device=mask.device)
    count = mask.sum(-1, keepdim=True)
    left = (gold_rank.unsqueeze(1) >= position.unsqueeze(1)) & mask.unsqueeze(1)  # (B, m, m)
    chosen = (gold_rank.unsqueeze(1) == position.unsqueeze(1)) & mask.unsqueeze(1)

    # Positions that do not count get the whole list, as no softmax may be empty.
    free = (position < count - 1).unsqueeze(1)  # (B, 1, m)
    left = left | ~free.transpose(1, 2)
    total = scores.masked_fill(~left.unsqueeze(1), -torch.inf).logsumexp(-1)
    loss = total - torch.where(chosen.unsqueeze(1), scores, 0).sum(-1)
    return torch.where(free, loss, 0).sum(-1) / (count - 1).clamp(min=1)
