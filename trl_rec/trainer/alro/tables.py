"""What a model says where it writes an answer, as a table for each order that a list was shown in.

Legend: B lists, S orders of the same candidates, m candidates of the longest list, M answer tokens in all, V
vocabulary; k an answer position.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from trl_rec.models.completions import CompletionLogits, completion_logps


class AnswerTable(NamedTuple):
    """Columns are candidates, not slots, so that the orders of a list can be compared.

    Args:
        logps (`torch.Tensor` of shape `(B, S, m, m)`): Row k: the log-probability of each candidate's name there, over
            the names of the list. Rows beyond a list's candidates are without meaning.
        sft (`torch.Tensor` of shape `(B, S)`): The supervised loss, a mean over the answer's tokens.
    """

    logps: Tensor
    sft: Tensor


def answer_table(read: CompletionLogits, inputs: dict[str, Tensor], *, vocabulary: bool) -> AnswerTable:
    """The table of a batch of [`RatedListCollator`], at least float32.

    Args:
        read: What [`read_completions`] returned for `scored=answer_mask`.
        inputs: The batch.
        vocabulary: Whether the supervised loss is over the vocabulary, and of EOS too. Otherwise it is over the names
            left, and the last of them, which is forced, does not count.
    """
    scores = _scores(read, inputs["names"], inputs["answer_mask"])
    mask = inputs["candidate_mask"][:, None, None]
    logps = scores.masked_fill(~mask, -torch.inf).log_softmax(-1)
    if vocabulary:
        answer = inputs["answer_mask"]
        logp = completion_logps(read, inputs["completion_ids"], answer)
        return AnswerTable(logps, -logp.sum(-1) / answer.sum(-1))
    return AnswerTable(logps, _left_loss(scores, inputs["gold_rank"], inputs["candidate_mask"]))


def _scores(read: CompletionLogits, names: Tensor, answer: Tensor) -> Tensor:
    """`(B, S, m, m)`: the logit of each candidate's name at each answer position; 0 where a list has no such
    position."""
    list_, order, _ = answer.nonzero().unbind(1)
    position = (answer.cumsum(-1) - 1)[answer]
    starts = read.rows.unsqueeze(1) * read.logits.shape[1]  # so that no (M, V) is made, nor its gradient
    tokens = names[list_, order]
    scores = read.logits.flatten().gather(0, (starts + tokens).flatten()).view(tokens.shape)
    scores = scores.to(torch.promote_types(scores.dtype, torch.float32))
    table = scores.new_zeros(
        *names.shape[:2], names.shape[2] + 1, names.shape[2]
    )  # the last position may be that of EOS
    return table.index_put((list_, order, position), scores)[:, :, :-1]


def _left_loss(scores: Tensor, gold_rank: Tensor, mask: Tensor) -> Tensor:
    """`(B, S)`: cross-entropy over the names left, a mean over the positions where two or more are left."""
    position = torch.arange(mask.shape[1], device=mask.device)
    count = mask.sum(-1, keepdim=True)
    left = (gold_rank.unsqueeze(1) >= position.unsqueeze(1)) & mask.unsqueeze(1)  # (B, m, m)
    chosen = (gold_rank.unsqueeze(1) == position.unsqueeze(1)) & mask.unsqueeze(1)
    free = (position < count - 1).unsqueeze(1)  # (B, 1, m)
    left = left | ~free.transpose(1, 2)  # no softmax is empty; these rows do not count
    total = scores.masked_fill(~left.unsqueeze(1), -torch.inf).logsumexp(-1)
    loss = total - torch.where(chosen.unsqueeze(1), scores, 0).sum(-1)
    return torch.where(free, loss, 0).sum(-1) / (count - 1).clamp(min=1)
