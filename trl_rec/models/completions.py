"""Scores K completions of a prompt in a single row, so that the prompt is processed only once.

A shared row is a prompt followed by the tokens of all its completions, without padding in between. For each completion
the position ids continue from the end of the prompt, and its tokens attend only to the prompt and to the same
completion. The results are therefore the same as with one row per completion, up to rounding. A model that cannot
read shared rows, for example because it does not accept a custom mask, gets one row per completion. The choice is made
before the forward pass, and its reason is logged once. Packed rows are padded on the right even if the input is padded
on the left. Logits are computed only at the positions that predict a scored token.

Legend: B prompts, P prompt tokens (padded), K completions per prompt, C tokens per completion (padded), W columns of
the packed rows, M scored completion tokens in total, N positions that predict them, V vocabulary size, or the
number of tokens if only some are asked for, L maximum number of legal tokens at a position (padded).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn

from trl_rec.losses.output import at_least_float32
from trl_rec.models.attention import check_suitable, mask_for, takes_positions, warn_once, why_separate
from trl_rec.models.experts import attending_by, balancing_loss, routing
from trl_rec.models.selection import logits_at


if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from trl_rec.items.trie import TokenTrie


class CompletionLogits(NamedTuple):
    """The logits that predict the scored completion tokens.

    Args:
        logits (`torch.Tensor` of shape `(N, V)`): The logits at each position that predicts a token. The last position
            of a prompt predicts the first tokens of all its completions. It occurs once in shared rows, and once per
            completion in separate rows.
        rows (`torch.Tensor` of shape `(M,)`): Index of the row of `logits` that predicts each scored token. The tokens
            are in the order of `scored.nonzero()`.
        aux_loss (`torch.Tensor` of shape `()`, *optional*): The load-balancing loss of a mixture of experts. Each
            token of the prompts and of the completions counts once. None unless it was asked for.
        tokens (`torch.Tensor` of shape `(V,)`, *optional*): The token of each column of `logits`, in ascending order.
            None if the columns are the whole vocabulary.
    """

    logits: Tensor
    rows: Tensor
    aux_loss: Tensor | None = None
    tokens: Tensor | None = None

    def at(self, tokens: Tensor) -> Tensor:
        """Returns the logits of `tokens` for each scored token, `(M, L)` in at least float32.

        Row `m` of `tokens` `(M, L)` is looked up in the logits that predict scored token `m`. Tokens whose logits were
        not requested get arbitrary values.
        """
        columns = tokens
        if self.tokens is not None:
            columns = torch.searchsorted(self.tokens, tokens).clamp(max=len(self.tokens) - 1)
        # Gather from the flattened logits, because `logits[rows]` would allocate an (M, V) tensor, and another one for
        # its gradient.
        starts = self.rows.unsqueeze(1) * self.logits.shape[1]
        return at_least_float32(self.logits.flatten().gather(0, (starts + columns).flatten()).view(tokens.shape))


def read_completions(
    model: PreTrainedModel,
    prompt_ids: Tensor,
    prompt_mask: Tensor,
    completion_ids: Tensor,
    completion_mask: Tensor,
    *,
    scored: Tensor | None = None,
    tokens: Tensor | None = None,
    wrapped: nn.Module | None = None,
    balanced: bool = False,
) -> CompletionLogits:
    """Runs one forward pass over prompts and their completions.

    Masked tokens do not affect the result, but their ids must be in the vocabulary.

    Args:
        model (`PreTrainedModel` or `PeftModel`): The model itself, not the wrapper of a distributed engine.
        prompt_ids (`torch.Tensor` of shape `(B, P)`): Prompts with at least one token each.
        prompt_mask (`torch.Tensor` of shape `(B, P)`): Boolean, or 0 and 1.
        completion_ids (`torch.Tensor` of shape `(B, K, C)`): Completions.
        completion_mask (`torch.Tensor` of shape `(B, K, C)`): Boolean. A completion whose mask is all False is absent,
            so prompts may have different numbers of completions. If all completions are absent, the logits are empty
            but still require a gradient, so that `backward` can be called.
        scored (`torch.Tensor` of shape `(B, K, C)`, *optional*): True for the completion tokens whose logits are
            needed. By default, the logits of all completion tokens are computed. A token that is the only legal one
            at its trie node needs no logits, because its log-probability among the legal tokens is 0.
        tokens (`torch.Tensor` of shape `(V,)`, *optional*): The tokens whose logits are needed, ascending, such as
            `trie.tokens`. By default, logits cover the vocabulary, which takes more time and memory.
        wrapped (`nn.Module`, *optional*): The module to call instead of `model`, such as a DDP module or a DeepSpeed
            engine.
        balanced (`bool`, *optional*, defaults to `False`): Whether to compute the load-balancing loss of a mixture of
            experts as well.

    Returns:
        [`CompletionLogits`]: The logits, and the index of the row that predicts each scored token.
    """
    check_suitable(model)
    reason = why_separate(model, prompt_ids.shape[1] + completion_ids.shape[2])
    if reason is not None:
        warn_once(reason, "each completion is processed in a separate row, which is slower")

    mask = completion_mask.bool()
    texts = (prompt_ids, prompt_mask.bool(), completion_ids, mask, mask if scored is None else mask & scored)
    caller = model if wrapped is None else wrapped
    return _read(model, caller, *texts, shared=reason is None, tokens=tokens, balanced=balanced)


def completion_logps(
    read: CompletionLogits, completion_ids: Tensor, completion_mask: Tensor, *, temperature: float = 1.0
) -> Tensor:
    """Computes the log-probability of each completion token over the whole vocabulary.

    Args:
        read (`CompletionLogits`): The result of [`read_completions`] over the whole vocabulary.
        completion_ids (`torch.Tensor` of shape `(B, K, C)`): The completions.
        completion_mask (`torch.Tensor` of shape `(B, K, C)`): True for the tokens that were scored.
        temperature (`float`, *optional*, defaults to `1.0`): Divides the logits.

    Returns:
        `torch.Tensor` of shape `(B, K, C)`: At least float32; 0 where masked.
    """
    if read.tokens is not None:
        raise ValueError("the logits cover only some tokens; call read_completions without tokens")
    mask = completion_mask.bool()
    log_probs = (at_least_float32(read.logits) / temperature).log_softmax(-1)  # (N, V)
    return _unpack(log_probs[read.rows, completion_ids[mask]], mask)


def legal_completion_logps(
    read: CompletionLogits,
    completion_ids: Tensor,
    completion_mask: Tensor,
    trie: TokenTrie,
    nodes: Tensor,
    *,
    temperature: float = 1.0,
) -> Tensor:
    """Computes the log-probability of each completion token among the legal tokens at its node of the trie.

    Args:
        read (`CompletionLogits`): The result of [`read_completions`]. The logits of `trie.tokens` are enough.
        completion_ids, completion_mask: As in [`completion_logps`].
        trie (`TokenTrie`): The trie of the catalogue, on the same device.
        nodes (`torch.Tensor` of shape `(B, K, C)`): The node before each token, as in `TokenTrie.walk`. A token that
            is not legal at its node has log-probability -inf and no gradient.
        temperature (`float`, *optional*, defaults to `1.0`): Divides the logits.

    Returns:
        `torch.Tensor` of shape `(B, K, C)`: At least float32; 0 where masked.
    """
    mask = completion_mask.bool()
    nodes = nodes[mask]  # (M,)
    tokens, _, legal = trie.children(nodes, width=None if len(nodes) else 1)
    return _unpack(chosen_legal_logps(read, completion_ids[mask], tokens, legal, temperature), mask)


def chosen_legal_logps(
    read: CompletionLogits, targets: Tensor, tokens: Tensor, legal: Tensor, temperature: float
) -> Tensor:
    """Computes the log-probability of each target `(M,)` among the `tokens` `(M, L)` that are `legal` `(M, L)`.

    A target that is not among the legal tokens has log-probability -inf and no gradient.
    """
    scores = read.at(tokens) / temperature
    log_probs = torch.where(legal, scores, -torch.inf).log_softmax(-1)  # (M, L)

    # At most one column contains the target, so the sum selects its log-probability.
    is_target = legal & (tokens == targets.unsqueeze(1))
    chosen = torch.where(is_target, log_probs, 0.0).sum(1)
    return torch.where(is_target.any(1), chosen, -torch.inf)


def _unpack(values: Tensor, mask: Tensor) -> Tensor:
    """Returns a tensor in the mask's shape with the values at the mask's True entries, and 0 elsewhere."""
    return values.new_zeros(mask.shape).masked_scatter(mask, values)


def _read(
    model: PreTrainedModel,
    wrapped: nn.Module,
    prompt_ids: Tensor,
    prompt_mask: Tensor,
    completion_ids: Tensor,
    completion_mask: Tensor,
    scored: Tensor,
    *,
    shared: bool,
    tokens: Tensor | None = None,
    balanced: bool = False,
) -> CompletionLogits:
    # 1. For separate rows, repeat the prompt for each completion, so that each row has one completion. Absent
    # completions are dropped. `repeated` is True for each row that has the same prompt as the previous row.
    repeated = torch.zeros(len(prompt_ids), dtype=torch.bool, device=prompt_ids.device)
    if not shared:
        present = completion_mask.any(-1).flatten().nonzero().squeeze(1)
        present = present if len(present) else present.new_zeros(1)  # a forward pass needs at least one row
        prompts = present // completion_mask.shape[1]
        repeated = torch.cat([repeated[:1], prompts[1:] == prompts[:-1]])
        prompt_ids = prompt_ids[prompts]
        prompt_mask = prompt_mask[prompts]
        completion_ids = completion_ids.flatten(0, 1)[present].unsqueeze(1)
        completion_mask = completion_mask.flatten(0, 1)[present].unsqueeze(1)
        scored = scored.flatten(0, 1)[present].unsqueeze(1)

    # 2. Pack the rows. A row with a single completion needs no custom mask besides the model's causal mask.
    packed = _pack(prompt_ids, prompt_mask, completion_ids, completion_mask, scored)
    attention_mask = mask_for(model, _seen(packed)) if shared else packed.real.long()
    inputs: dict[str, Any] = {"input_ids": packed.token_ids, "use_cache": False, **routing(model, balanced)}
    if takes_positions(model):
        inputs["position_ids"] = packed.positions

    # 3. Run the model. Logits are computed only where a scored token is predicted.
    positions, rows = _predicting_positions(packed)
    if not balanced:
        with logits_at(model, positions, tokens=tokens):
            outputs = wrapped(attention_mask=attention_mask, **inputs)
        return CompletionLogits(outputs.logits[0], rows, tokens=tokens)

    # 4. Or run it with the load-balancing loss, in which each token of a prompt counts once.
    counted = packed.real & ((packed.owners >= 0) | ~repeated.unsqueeze(1))
    with logits_at(model, positions, tokens=tokens), attending_by(model, attention_mask):
        outputs = wrapped(attention_mask=counted.long(), **inputs)
    return CompletionLogits(outputs.logits[0], rows, balancing_loss(model, outputs), tokens)


class _Packed(NamedTuple):
    """Packed rows, `(B, W)` each.

    Args:
        token_ids: The tokens.
        positions: Their position ids.
        owners: The index of the completion that each token belongs to; -1 for the prompt.
        real: False for padding.
        scored: True for the completion tokens whose logits are needed.
    """

    token_ids: Tensor
    positions: Tensor
    owners: Tensor
    real: Tensor
    scored: Tensor


def _pack(
    prompt_ids: Tensor, prompt_mask: Tensor, completion_ids: Tensor, completion_mask: Tensor, scored: Tensor
) -> _Packed:
    """Moves the real tokens of each row to the left, keeping their order."""
    # 1. In each completion, position ids continue from the end of the prompt.
    lengths = prompt_mask.sum(1)  # (B,)
    positions = lengths.view(-1, 1, 1) + completion_mask.cumsum(-1) - 1  # (B, K, C)
    owners = torch.arange(completion_mask.shape[1], device=prompt_ids.device).view(1, -1, 1).expand_as(completion_ids)

    # 2. A stable sort by `real` moves the padding to the right. Only the width has to be copied to the host.
    real = torch.cat([prompt_mask, completion_mask.flatten(1)], 1)
    width = int(real.sum(1).max())
    order = torch.argsort(~real, dim=1, stable=True)[:, :width]  # (B, W)

    return _Packed(
        token_ids=torch.cat([prompt_ids, completion_ids.flatten(1)], 1).gather(1, order),
        positions=torch.cat([prompt_mask.cumsum(1) - 1, positions.flatten(1)], 1).clamp(min=0).gather(1, order),
        owners=torch.cat([torch.full_like(prompt_ids, -1), owners.flatten(1)], 1).gather(1, order),
        real=real.gather(1, order),
        scored=torch.cat([torch.zeros_like(prompt_mask), scored.flatten(1)], 1).gather(1, order),
    )


def _seen(packed: _Packed) -> Tensor:
    """Returns a mask `(B, W, W)` that is True at `[:, q, t]` if token `q` attends to token `t`.

    A token attends to itself and to the earlier tokens of its prompt and of its completion. Padding attends at least
    to the first token of the prompt, so that no softmax is empty.
    """
    owner = packed.owners
    position = packed.positions
    same_text = (owner.unsqueeze(1) < 0) | (owner.unsqueeze(1) == owner.unsqueeze(2))
    not_later = position.unsqueeze(1) <= position.unsqueeze(2)
    return same_text & not_later & packed.real.unsqueeze(1)


def _predicting_positions(packed: _Packed) -> tuple[Tensor, Tensor]:
    """Returns a mask `(B, W)` of the positions that predict a scored token, and an index `(M,)` into these positions.

    Entry `m` is the index of the position that predicts scored token `m`, counted row by row over the positions in the
    mask.
    """
    # A token is predicted at the previous column, except that the first token of a completion is predicted at the last
    # column of the prompt.
    prompt_ends = (packed.real & (packed.owners < 0)).sum(1, keepdim=True)  # (B, 1): the first position of completions
    column = torch.arange(packed.scored.shape[1], device=packed.scored.device)
    before = (torch.where(packed.positions == prompt_ends, prompt_ends, column) - 1).clamp(min=0)

    predicts = torch.zeros_like(packed.token_ids).scatter_add(1, before, packed.scored.long()) > 0
    # The positions are numbered row by row, in the order in which `logits_at` returns their logits.
    numbers = predicts.flatten().cumsum(0).view_as(predicts) - 1
    return predicts, numbers.gather(1, before)[packed.scored]
