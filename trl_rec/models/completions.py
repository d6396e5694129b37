"""Scores K completions of a prompt in a single row, so that the prompt is processed only once.

A shared row is a prompt followed by the tokens of all its completions, without padding in between. The position ids of
each completion continue from the end of the prompt, and its tokens attend only to the prompt and to the same
completion. The results are therefore the same as with one row per completion, up to rounding.

A model that cannot read shared rows, for example because it does not accept a custom mask, gets separate rows, one per
completion. The choice is made before the forward pass, and its reason is logged once. Both kinds of rows are packed:
all padding is moved to the right, even if the input is padded on the left. Logits are computed only at the positions
that predict a scored token.

Legend: B prompts, P prompt tokens (padded), K completions per prompt, C tokens per completion (padded), R packed rows
(B shared rows, or one separate row per completion), W columns of the packed rows, M scored completion tokens in total,
N positions that predict them, V tokens whose logits are computed (the vocabulary by default), L legal tokens at a
position (padded).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn

from trl_rec.losses.output import at_least_float32
from trl_rec.models.attention import check_suitable, mask_for, takes_positions, warn_once, why_separate
from trl_rec.models.experts import attending_by, balancing_loss, routing
from trl_rec.models.selection import logits_at, places_of


if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from trl_rec.items.trie import TokenTrie


class CompletionLogits(NamedTuple):
    """The logits that predict the scored completion tokens.

    Args:
        logits (`torch.Tensor` of shape `(N, V)`): The logits at each position that predicts a scored token. The last
            position of a prompt predicts the first tokens of all its completions. The logits of this position occur
            once in shared rows, and once per completion in separate rows.
        rows (`torch.Tensor` of shape `(M,)`): Index of the row of `logits` that predicts each scored token. The tokens
            are in the order of `scored.nonzero()`.
        aux_loss (`torch.Tensor` of shape `()`, *optional*): The load-balancing loss of a mixture of experts. Each
            token of the prompts and of the completions counts once. None unless it was requested.
        tokens (`torch.Tensor` of shape `(V,)`, *optional*): The token of each column of `logits`, in ascending order.
            None if the columns are the whole vocabulary.
        layout (`Layout`, *optional*): How the texts were arranged in rows. Pass it to [`read_completions`] when
            another model reads the same texts.
    """

    logits: Tensor
    rows: Tensor
    aux_loss: Tensor | None = None
    tokens: Tensor | None = None
    layout: Layout | None = None

    def places_in(self, scored: Tensor) -> Tensor:
        """Returns the indices of the M scored tokens in the flattened mask `scored`. Without a layout, the host waits
        for the device to count the tokens."""
        return places_of(scored) if self.layout is None else self.layout.places

    def at(self, tokens: Tensor) -> Tensor:
        """Returns the logits of `tokens` for each scored token, `(M, L)` in at least float32.

        Row `m` of `tokens` `(M, L)` is looked up in the logits that predict scored token `m`. If `tokens` has the
        shape `(1, L)`, its only row is used for all scored tokens. Tokens whose logits were not requested get
        arbitrary values.
        """
        columns = tokens
        if self.tokens is not None:
            columns = torch.searchsorted(self.tokens, tokens).clamp(max=len(self.tokens) - 1)
        # Gather from the flattened logits, because `logits[rows]` would allocate an (M, V) tensor, and another (M, V)
        # tensor for its gradient.
        index = self.rows.unsqueeze(1) * self.logits.shape[1] + columns  # (M, L)
        return at_least_float32(self.logits.flatten().gather(0, index.flatten()).view(index.shape))


class Layout(NamedTuple):
    """Packed rows of texts. The layout depends on the texts, and on whether the model reads shared rows.

    Args:
        shared (`bool`): Whether all completions of a prompt are in one row.
        token_ids (`torch.Tensor` of shape `(R, W)`): The tokens.
        positions (`torch.Tensor` of shape `(R, W)`): The position ids of the tokens.
        owners (`torch.Tensor` of shape `(R, W)`): The index of the completion that each token belongs to; -1 for the
            prompt.
        real (`torch.Tensor` of shape `(R, W)`): False for padding.
        repeated (`torch.Tensor` of shape `(R,)`): True for each row that has the same prompt as the previous row.
        predicting (`torch.Tensor` of shape `(N,)`): For each position that predicts a scored token, its
            index in the flattened rows `(R * W,)`.
        rows (`torch.Tensor` of shape `(M,)`): Same as in [`CompletionLogits`].
        places (`torch.Tensor` of shape `(M,)`): The indices of the scored tokens among all B * K * C completion
            tokens, including masked tokens.
    """

    shared: bool
    token_ids: Tensor
    positions: Tensor
    owners: Tensor
    real: Tensor
    repeated: Tensor
    predicting: Tensor
    rows: Tensor
    places: Tensor


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
    layout: Layout | None = None,
) -> CompletionLogits:
    """Runs one forward pass over prompts and their completions.

    Masked tokens do not affect the result, but their ids must be in the vocabulary. The host waits for the device
    once, to compute the sizes of the rows, unless a suitable `layout` is passed.

    Args:
        model (`PreTrainedModel` or `PeftModel`): The model itself, not the wrapper of a distributed engine.
        prompt_ids (`torch.Tensor` of shape `(B, P)`): Prompts with at least one token each.
        prompt_mask (`torch.Tensor` of shape `(B, P)`): Boolean, or 0 and 1.
        completion_ids (`torch.Tensor` of shape `(B, K, C)`): Completions.
        completion_mask (`torch.Tensor` of shape `(B, K, C)`): Boolean. A completion whose mask is all False is absent,
            so prompts may have different numbers of completions. If all completions are absent, the logits are empty
            but still require a gradient, so that `backward` can be called.
        scored (`torch.Tensor` of shape `(B, K, C)`, *optional*): True for the completion tokens whose logits are
            needed. By default, the logits of all completion tokens are computed. A forced token (the only legal token
            at its trie node) needs no logits, because its log-probability among the legal tokens is 0.
        tokens (`torch.Tensor` of shape `(V,)`, *optional*): The tokens whose logits are needed, ascending, such as
            `trie.tokens`. By default, the logits of the whole vocabulary are computed, which takes more time and
            memory.
        wrapped (`nn.Module`, *optional*): The module to call instead of `model`, such as a DDP module or a DeepSpeed
            engine.
        balanced (`bool`, *optional*, defaults to `False`): Whether to compute the load-balancing loss of a mixture of
            experts as well.
        layout (`Layout`, *optional*): The layout that was made when another model read the same texts. It is used only
            if this model reads the same kind of rows, shared or separate.

    Returns:
        [`CompletionLogits`]: The logits, and the index of the row of logits that predicts each scored token.
    """
    check_suitable(model)
    reason = why_separate(model, prompt_ids.shape[1] + completion_ids.shape[2])
    if reason is not None:
        warn_once(reason, "each completion is processed in a separate row, which is slower")

    if layout is None or layout.shared != (reason is None):
        mask = completion_mask.bool()
        texts = (prompt_ids, prompt_mask.bool(), completion_ids, mask, mask if scored is None else mask & scored)
        layout = lay_out(*texts, shared=reason is None)
    return _read(model, model if wrapped is None else wrapped, layout, tokens=tokens, balanced=balanced)


def completion_logps(
    read: CompletionLogits, completion_ids: Tensor, completion_mask: Tensor, *, temperature: float = 1.0
) -> Tensor:
    """Computes the log-probability of each completion token over the whole vocabulary.

    Args:
        read (`CompletionLogits`): The result of [`read_completions`] over the whole vocabulary.
        completion_ids (`torch.Tensor` of shape `(B, K, C)`): The completions.
        completion_mask (`torch.Tensor` of shape `(B, K, C)`): True for the tokens that were scored.
        temperature (`float`, *optional*, defaults to `1.0`): Divisor of the logits.

    Returns:
        `torch.Tensor` of shape `(B, K, C)`: The log-probabilities, in at least float32; 0 where masked.
    """
    if read.tokens is not None:
        raise ValueError("the logits cover only some tokens; call read_completions without tokens")
    places = read.places_in(completion_mask.bool())  # (M,)
    log_probs = (at_least_float32(read.logits) / temperature).log_softmax(-1)  # (N, V)
    chosen = log_probs[read.rows, completion_ids.flatten()[places]]
    return unpacked(chosen, places, completion_ids.shape)


def legal_completion_logps(
    read: CompletionLogits,
    completion_ids: Tensor,
    completion_mask: Tensor,
    trie: TokenTrie,
    nodes: Tensor,
    *,
    temperature: float = 1.0,
) -> Tensor:
    """Computes the log-probability of each completion token among the tokens that are legal at its node of the trie.

    Args:
        read (`CompletionLogits`): The result of [`read_completions`]. The logits of `trie.tokens` are enough.
        completion_ids, completion_mask: Same as in [`completion_logps`].
        trie (`TokenTrie`): The trie of the catalogue, on the same device.
        nodes (`torch.Tensor` of shape `(B, K, C)`): The node before each token, as in `TokenTrie.walk`. A token that
            is not legal at its node has log-probability -inf and no gradient.
        temperature (`float`, *optional*, defaults to `1.0`): Divisor of the logits.

    Returns:
        `torch.Tensor` of shape `(B, K, C)`: The log-probabilities, in at least float32; 0 where masked.
    """
    places = read.places_in(completion_mask.bool())  # (M,)
    # Pad to the number of children of the widest node of the trie. Counting the children of the given nodes instead
    # would need a copy from the device, and would rarely save columns: the widest node is nearly always the root, at
    # which every completion begins.
    tokens, _, legal = trie.children(nodes.flatten()[places], trie.max_width)
    chosen = chosen_legal_logps(read, completion_ids.flatten()[places], tokens, legal, temperature)
    return unpacked(chosen, places, completion_ids.shape)


def chosen_legal_logps(
    read: CompletionLogits, targets: Tensor, tokens: Tensor, legal: Tensor, temperature: float
) -> Tensor:
    """Computes the log-probability of each target among the legal tokens.

    Args:
        read: The result of [`read_completions`].
        targets: The scored tokens, `(M,)`. A target that is not legal has log-probability -inf and no gradient.
        tokens: The legal tokens at the place of each target, padded, `(M, L)`, or `(1, L)` if they are the same
            for all targets.
        legal: False for padding, `(M, L)`.
        temperature: Divisor of the logits.
    """
    scores = read.at(tokens) / temperature
    log_probs = torch.where(legal, scores, -torch.inf).log_softmax(-1)  # (M, L)

    # At most one column contains the target, so the sum selects its log-probability.
    is_target = legal & (tokens == targets.unsqueeze(1))
    chosen = torch.where(is_target, log_probs, 0.0).sum(1)
    return torch.where(is_target.any(1), chosen, -torch.inf)


def unpacked(values: Tensor, places: Tensor, shape: torch.Size) -> Tensor:
    """Returns a tensor of the given shape, with `values` at the flat indices `places` and 0 elsewhere."""
    return values.new_zeros(shape.numel()).scatter(0, places, values).view(shape)


def _read(
    model: PreTrainedModel,
    wrapped: nn.Module,
    layout: Layout,
    *,
    tokens: Tensor | None = None,
    balanced: bool = False,
) -> CompletionLogits:
    """Runs the model over packed rows."""
    # A row with a single completion needs no custom mask. The padding mask and the model's causal mask suffice.
    attention_mask = mask_for(model, _seen(layout)) if layout.shared else layout.real.long()
    inputs: dict[str, Any] = {"input_ids": layout.token_ids, "use_cache": False, **routing(model, balanced)}
    if takes_positions(model):
        inputs["position_ids"] = layout.positions

    # 1. If the load-balancing loss is not requested, run the model without it. Logits are computed only where a scored
    # token is predicted.
    if not balanced:
        with logits_at(model, layout.predicting, tokens=tokens):
            outputs = wrapped(attention_mask=attention_mask, **inputs)
        return CompletionLogits(outputs.logits[0], layout.rows, tokens=tokens, layout=layout)

    # 2. If the load-balancing loss is requested, run the model with it. The loss counts each prompt once, even if
    # several rows repeat the prompt. Under `attending_by`, the argument `attention_mask` only selects the tokens that
    # the loss counts.
    counted = layout.real & ((layout.owners >= 0) | ~layout.repeated.unsqueeze(1))
    with logits_at(model, layout.predicting, tokens=tokens), attending_by(model, attention_mask):
        outputs = wrapped(attention_mask=counted.long(), **inputs)
    return CompletionLogits(outputs.logits[0], layout.rows, balancing_loss(model, outputs), tokens, layout)


def lay_out(
    prompt_ids: Tensor,
    prompt_mask: Tensor,
    completion_ids: Tensor,
    completion_mask: Tensor,
    scored: Tensor,
    *,
    shared: bool,
) -> Layout:
    """Packs texts into rows, with all completions of a prompt in one row if `shared`.

    The masks must be boolean. Apart from this, the arguments are the same as those of [`read_completions`].
    """
    # 1. Compute the sizes that the host needs, and copy them to the host together:
    # - the width of the rows,
    # - the number of scored tokens,
    # - the number of predicting columns that shared rows save, because the last column of a prompt predicts the first
    #   tokens of all its completions,
    # - the number of completions that are not absent.
    lengths = completion_mask.sum(-1)  # (B, K)
    per_prompt = lengths.sum(1) if shared else lengths.amax(1)
    begins = scored & (completion_mask.cumsum(-1) == 1)  # (B, K, C)
    num_begun = begins.sum((1, 2))  # (B,)
    sizes = [
        (prompt_mask.sum(1) + per_prompt).amax(),
        scored.sum(),
        (num_begun - 1).clamp(min=0).sum(),
        (lengths > 0).sum(),
    ]
    width, num_scored, num_sharing, num_present = torch.stack(sizes).tolist()
    places = places_of(scored, num_scored)

    # 2. For separate rows, repeat the prompt for each completion, so that each row has one completion. Absent
    # completions are dropped.
    repeated = torch.zeros(len(prompt_ids), dtype=torch.bool, device=prompt_ids.device)
    if not shared:
        present = places_of(lengths > 0, num_present)
        present = present if num_present else present.new_zeros(1)  # a forward pass needs at least one row
        prompts = present // completion_mask.shape[1]
        repeated = torch.cat([repeated[:1], prompts[1:] == prompts[:-1]])
        prompt_ids = prompt_ids[prompts]
        prompt_mask = prompt_mask[prompts]
        completion_ids = completion_ids.flatten(0, 1)[present].unsqueeze(1)
        completion_mask = completion_mask.flatten(0, 1)[present].unsqueeze(1)
        scored = scored.flatten(0, 1)[present].unsqueeze(1)

    # 3. In each completion, position ids continue from the end of the prompt.
    starts = prompt_mask.sum(1).view(-1, 1, 1)
    positions = starts + completion_mask.cumsum(-1) - 1  # (B, K, C), or (R, 1, C) for separate rows
    owners = torch.arange(completion_mask.shape[1], device=prompt_ids.device).view(1, -1, 1).expand_as(completion_ids)

    # 4. A stable sort by `real` moves the padding to the right.
    real = torch.cat([prompt_mask, completion_mask.flatten(1)], 1)
    order = torch.argsort(~real, dim=1, stable=True)[:, :width]  # (R, W)
    real = real.gather(1, order)
    positions = torch.cat([prompt_mask.cumsum(1) - 1, positions.flatten(1)], 1).clamp(min=0).gather(1, order)
    owners = torch.cat([torch.full_like(prompt_ids, -1), owners.flatten(1)], 1).gather(1, order)
    packed_scored = torch.cat([torch.zeros_like(prompt_mask), scored.flatten(1)], 1).gather(1, order)

    # 5. Find the columns that predict a scored token.
    before, predicts = _predicting(positions, owners, real, packed_scored)
    num_predicting = num_scored - num_sharing if shared else num_scored
    # The predicting columns are numbered row by row, in the order in which `logits_at` returns their logits.
    numbers = predicts.flatten().cumsum(0).view_as(predicts) - 1
    return Layout(
        shared=shared,
        token_ids=torch.cat([prompt_ids, completion_ids.flatten(1)], 1).gather(1, order),
        positions=positions,
        owners=owners,
        real=real,
        repeated=repeated,
        predicting=places_of(predicts, num_predicting),
        rows=numbers.gather(1, before).flatten()[places_of(packed_scored, num_scored)],
        places=places,
    )


def _predicting(positions: Tensor, owners: Tensor, real: Tensor, scored: Tensor) -> tuple[Tensor, Tensor]:
    """Returns two tensors `(R, W)`. For each column, the first contains the index of the column that predicts its
    token. The second is True if the column itself predicts a scored token.

    A token is predicted at the previous column, except that the first token of a completion is predicted at the last
    column of the prompt.
    """
    prompt_ends = (real & (owners < 0)).sum(1, keepdim=True)  # (R, 1): the first position of completions
    column = torch.arange(positions.shape[1], device=positions.device)
    before = (torch.where(positions == prompt_ends, prompt_ends, column) - 1).clamp(min=0)
    return before, torch.zeros_like(positions).scatter_add(1, before, scored.long()) > 0


def _seen(layout: Layout) -> Tensor:
    """Returns a mask `(B, W, W)` that is True at `[:, q, t]` if token `q` attends to token `t`.

    A token attends to itself and to the earlier tokens of its prompt and of its completion. Padding attends at least
    to the first token of the prompt, so that no softmax is empty.
    """
    owner = layout.owners
    position = layout.positions
    same_text = (owner.unsqueeze(1) < 0) | (owner.unsqueeze(1) == owner.unsqueeze(2))
    not_later = position.unsqueeze(1) <= position.unsqueeze(2)
    return same_text & not_later & layout.real.unsqueeze(1)
