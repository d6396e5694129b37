"""K completions of one prompt scored in one row, the prompt read once.

A shared row is a prompt, then the tokens of all its completions packed without gaps. Position ids restart after the
prompt for each completion, and a completion sees the prompt and itself: exactly what it would see in a row of its own,
so nothing differs but rounding. Where a model cannot take such a mask every completion gets a row of its own, told
before the forward pass. Rows are always packed from the left, whatever the padding of what comes in; only the scored
positions reach the output embedding.

Legend: B prompts, P prompt tokens (padded), K completions a prompt, C tokens a completion (padded), W columns of the
packed rows, M completion tokens in all, N positions that predict them, V vocabulary.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from trl_rec.models.attention import check_suitable, mask_for, say_once, takes_positions, why_separate
from trl_rec.models.selection import logits_at


if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from trl_rec.items.trie import TokenTrie


class CompletionLogits(NamedTuple):
    """What a model says where it predicts completion tokens.

    Args:
        logits (`torch.Tensor` of shape `(N, V)`): One row for each position that predicts. In shared rows a prompt's
            last position appears once, however many completions follow it; in separate rows once for each of them.
        rows (`torch.Tensor` of shape `(M,)`): The row of `logits` that predicts each token asked for, tokens in the
            order of `scored.nonzero()`.
    """

    logits: Tensor
    rows: Tensor


def read_completions(
    model: PreTrainedModel,
    prompt_ids: Tensor,
    prompt_mask: Tensor,
    completion_ids: Tensor,
    completion_mask: Tensor,
    *,
    scored: Tensor | None = None,
    wrapped: Any = None,
) -> CompletionLogits:
    """One forward pass over prompts and their completions. What padding holds plays no part, if it is in the
    vocabulary.

    Args:
        model (`PreTrainedModel` or `PeftModel`): The model itself, not the wrapper of a distributed engine.
        prompt_ids (`torch.Tensor` of shape `(B, P)`): Prompts, each with at least one token.
        prompt_mask (`torch.Tensor` of shape `(B, P)`): Boolean, or 0 and 1.
        completion_ids (`torch.Tensor` of shape `(B, K, C)`): Completions; they may differ in number and length.
        completion_mask (`torch.Tensor` of shape `(B, K, C)`): Boolean. A completion without any True is absent;
            without any completion there are no logits, and they still have a gradient.
        scored (`torch.Tensor` of shape `(B, K, C)`, *optional*): The completion tokens whose logits are wanted, where
            not all: the output embedding is spared the others, such as those that a trie forces.
        wrapped (*optional*): What is called, if not `model`: a DDP module, a DeepSpeed engine.
    """
    check_suitable(model)
    reason = why_separate(model, prompt_ids.shape[1] + completion_ids.shape[2])
    if reason is not None:
        say_once(reason, "every completion gets a row of its own, which is slower")
    mask = completion_mask.bool()
    texts = (prompt_ids, prompt_mask.bool(), completion_ids, mask, mask if scored is None else mask & scored)
    return _read(model, model if wrapped is None else wrapped, *texts, shared=reason is None)


def completion_logps(
    read: CompletionLogits, completion_ids: Tensor, completion_mask: Tensor, *, temperature: float = 1.0
) -> Tensor:
    """`(B, K, C)`: the log-probability of each completion token over the vocabulary, at least float32, 0 where
    masked."""
    mask = completion_mask.bool()
    log_probs = (_upcast(read.logits) / temperature).log_softmax(-1)
    return _placed(log_probs[read.rows, completion_ids[mask]], mask)


def legal_completion_logps(
    read: CompletionLogits,
    completion_ids: Tensor,
    completion_mask: Tensor,
    trie: TokenTrie,
    nodes: Tensor,
    *,
    temperature: float = 1.0,
) -> Tensor:
    """`(B, K, C)`: the log-probability of each completion token among the legal ones, at least float32, 0 where
    masked.

    Args:
        read, completion_ids, completion_mask: As in `completion_logps`.
        trie (`TokenTrie`): The catalogue, on the same device.
        nodes (`torch.Tensor` of shape `(B, K, C)`): The node before each token, as in `TokenTrie.walk`. A token that
            is not among its children has the log-probability minus infinity and no gradient.
        temperature (*optional*, defaults to `1.0`): Divides the logits first.
    """
    mask = completion_mask.bool()
    targets, nodes = completion_ids[mask], nodes[mask]
    tokens, _, legal = trie.children(nodes, width=None if len(nodes) else 1)
    starts = read.rows.unsqueeze(1) * read.logits.shape[1]  # so that neither (M, V) is made nor its gradient
    scores = _upcast(read.logits.flatten().gather(0, (starts + tokens).flatten()).view(tokens.shape)) / temperature
    log_probs = torch.where(legal, scores, -torch.inf).log_softmax(-1)
    hit = legal & (tokens == targets.unsqueeze(1))
    chosen = torch.where(hit, log_probs, 0.0).sum(1)
    return _placed(torch.where(hit.any(1), chosen, -torch.inf), mask)


def _upcast(logits: Tensor) -> Tensor:
    return logits.to(torch.promote_types(logits.dtype, torch.float32))


def _placed(values: Tensor, mask: Tensor) -> Tensor:
    return values.new_zeros(mask.shape).masked_scatter(mask, values)


def _read(
    model: PreTrainedModel,
    wrapped: Any,
    prompt_ids: Tensor,
    prompt_mask: Tensor,
    completion_ids: Tensor,
    completion_mask: Tensor,
    scored: Tensor,
    *,
    shared: bool,
) -> CompletionLogits:
    """Separate rows are shared rows with one completion each, for which the model's own mask will do."""
    if not shared:
        present = completion_mask.any(-1).flatten().nonzero().squeeze(1)
        present = present if len(present) else present.new_zeros(1)  # a forward pass needs a row
        prompts = present // completion_mask.shape[1]
        prompt_ids, prompt_mask = prompt_ids[prompts], prompt_mask[prompts]
        completion_ids = completion_ids.flatten(0, 1)[present].unsqueeze(1)
        completion_mask, scored = (part.flatten(0, 1)[present].unsqueeze(1) for part in (completion_mask, scored))
    packed = _pack(prompt_ids, prompt_mask, completion_ids, completion_mask, scored)
    inputs = {"attention_mask": mask_for(model, _seen(packed)) if shared else packed.real.long()}
    if takes_positions(model):
        inputs["position_ids"] = packed.positions
    places, rows = _places(packed)
    with logits_at(model, places):
        logits = wrapped(input_ids=packed.token_ids, use_cache=False, **inputs).logits[0]
    return CompletionLogits(logits, rows)


class _Packed(NamedTuple):
    """Rows `(B, W)`: tokens, their positions, the completion each belongs to (-1: the prompt), which are real, and
    which of those are scored."""

    token_ids: Tensor
    positions: Tensor
    owners: Tensor
    real: Tensor
    scored: Tensor


def _pack(
    prompt_ids: Tensor, prompt_mask: Tensor, completion_ids: Tensor, completion_mask: Tensor, scored: Tensor
) -> _Packed:
    """The real tokens of each row, in order, on the left."""
    lengths = prompt_mask.sum(1)
    positions = lengths.view(-1, 1, 1) + completion_mask.cumsum(-1) - 1
    owners = torch.arange(completion_mask.shape[1], device=prompt_ids.device).view(1, -1, 1).expand_as(completion_ids)
    real = torch.cat([prompt_mask, completion_mask.flatten(1)], 1)
    width = int(real.sum(1).max())  # the one number that the host waits for
    order = torch.argsort(~real, dim=1, stable=True)[:, :width]
    return _Packed(
        torch.cat([prompt_ids, completion_ids.flatten(1)], 1).gather(1, order),
        torch.cat([prompt_mask.cumsum(1) - 1, positions.flatten(1)], 1).clamp(min=0).gather(1, order),
        torch.cat([torch.full_like(prompt_ids, -1), owners.flatten(1)], 1).gather(1, order),
        real.gather(1, order),
        torch.cat([torch.zeros_like(prompt_mask), scored.flatten(1)], 1).gather(1, order),
    )


def _seen(packed: _Packed) -> Tensor:
    """`(B, W, W)`: a token sees its prompt's and its own completion's earlier tokens, and itself. Columns that are not
    real see the prompt's first token at least, so that no softmax is empty."""
    owner, position = packed.owners, packed.positions
    same = (owner.unsqueeze(1) < 0) | (owner.unsqueeze(1) == owner.unsqueeze(2))
    return same & (position.unsqueeze(1) <= position.unsqueeze(2)) & packed.real.unsqueeze(1)


def _places(packed: _Packed) -> tuple[Tensor, Tensor]:
    """`(B, W)`, the positions that predict a scored token, and `(M,)`, which of those predicts each of them: the one
    before, but for a completion's first token the prompt's last."""
    ends = (packed.real & (packed.owners < 0)).sum(1, keepdim=True)
    column = torch.arange(packed.scored.shape[1], device=packed.scored.device)
    before = (torch.where(packed.positions == ends, ends, column) - 1).clamp(min=0)
    predicts = torch.zeros_like(packed.token_ids).scatter_add(1, before, packed.scored.long()) > 0
    numbers = predicts.flatten().cumsum(0).view_as(predicts) - 1
    return predicts, numbers.gather(1, before)[packed.scored]
