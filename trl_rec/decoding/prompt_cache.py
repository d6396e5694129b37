"""Runs the forward passes of decoding, and caches their keys and values. Each prompt is read once.

`SharedPrompt` keeps one cache row per prompt. The tokens of all beams of a prompt lie side by side in its row, and an
attention mask lets each token see the prompt and the earlier tokens of its own beam. So the prompt's keys and values
are stored once, and reordering the beams changes only the mask. Some models do not support such a mask, for example
because they use flash attention, or a sliding window shorter than the text. For these models, `SeparateRows` gives
every beam its own cache row, as `generate` does. `open_cache` chooses one of the two classes before the first forward
pass.

Legend: B: prompts, P: prompt tokens (left-padded), K: beams, W: pending tokens per beam (not read by the model yet;
right-aligned), A: active beams (beams that the model reads now), G: columns (token places in a cache row) that earlier
forward passes added after the prompt, Q: columns of this forward pass, V: vocabulary, or the argument `tokens` if it
is given.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from peft import PeftModel
from torch import Tensor
from transformers import DynamicCache

from trl_rec.compat import cache_arguments
from trl_rec.models.attention import check_suitable, keeps_state, mask_for, takes_positions, warn_once, why_separate
from trl_rec.models.experts import routing
from trl_rec.models.selection import logits_at


if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass
class Pending:
    """The pending tokens: tokens that the beams contain, but that the model has not read yet.

    Args:
        tokens (`torch.Tensor` of shape `(B, K, W)`): The pending tokens, right-aligned.
        lengths (`torch.Tensor` of shape `(B, K)`): Number of pending tokens of each beam.
        depths (`torch.Tensor` of shape `(B, K)`): Number of tokens of each beam after the prompt, including its
            pending tokens.
        active (`torch.Tensor` of shape `(B, K)`): True for the beams whose tokens are read now.
        num_active (`int`): A. No prompt has more than A active beams.
        num_inner (`int`): The inner tokens of a beam are all its pending tokens except the last one. The active beams
            of a prompt have at most `num_inner` inner tokens in total.
    """

    tokens: Tensor
    lengths: Tensor
    depths: Tensor
    active: Tensor
    num_active: int
    num_inner: int


def open_cache(
    model: PreTrainedModel, input_ids: Tensor, attention_mask: Tensor, longest: int, tokens: Tensor | None = None
) -> SharedPrompt | SeparateRows:
    """Makes a cache that suits the model, and lets the model read the prompts into it.

    Args:
        model: The model.
        input_ids: The prompts, `(B, P)`.
        attention_mask: 0 for padding, `(B, P)`.
        longest: Number of tokens of the longest possible completion.
        tokens: The tokens that logits are computed for, in this order. Defaults to the whole vocabulary.
    """
    _check_decodable(model)
    reason = why_separate(model, input_ids.shape[1] + longest)
    if reason is None:
        return SharedPrompt(model, input_ids, attention_mask, tokens)
    warn_once(reason, "every beam gets its own cache row, which is slower")
    return SeparateRows(model, input_ids, attention_mask, tokens)


def _check_decodable(model: PreTrainedModel) -> None:
    """Raises ValueError if the model supports neither cache."""
    name = type(model).__name__
    base = model.get_base_model() if isinstance(model, PeftModel) else model

    check_suitable(model)
    if keeps_state(model):
        raise ValueError(
            f"{name} keeps a recurrent state, which cannot be shared between beams; choose a model that uses only "
            "attention"
        )
    if not takes_positions(model):
        raise ValueError(
            f"{name} does not accept position ids, so the tokens of padded prompts and beams would get wrong "
            "positions; choose another model"
        )
    if "logits_to_keep" not in inspect.signature(base.forward).parameters:
        raise ValueError(f"the forward method of {name} has no argument logits_to_keep; choose another model")


class SharedPrompt:
    """A cache with one row per prompt. Each row contains the tokens of all beams of its prompt side by side.

    Attributes:
        logits (`torch.Tensor` of shape `(B, 1, V)`): The logits after the prompt.
    """

    shared = True
    has_logps = False

    def __init__(
        self, model: PreTrainedModel, input_ids: Tensor, attention_mask: Tensor, tokens: Tensor | None
    ) -> None:
        self.model = model
        self.tokens = tokens
        self.prompt_mask = attention_mask.bool()
        self.cache = DynamicCache()  # without a config, so that layers with a sliding window are not cropped
        self.caching = {**cache_arguments(model, self.cache), **routing(model, balanced=False)}
        self.logits = _read_prompt(model, input_ids, attention_mask, tokens, self.caching)
        self.seen = self.prompt_mask.new_zeros(len(input_ids), 1, 0)  # (B, K, G), True for the columns of each beam

    def reorder(self, parents: Tensor) -> None:
        """Makes beam `k` a continuation of beam `parents[:, k]`. Changes only the mask, not the cache."""
        self.seen = self.seen.gather(1, parents.unsqueeze(-1).expand(-1, -1, self.seen.shape[-1]))

    def extend(self, pending: Pending) -> tuple[Tensor, Tensor, Tensor]:
        """Reads the pending tokens of the active beams in one forward pass.

        Returns:
            `logits (B, A, V)`, the logits after each active beam; `slots (B, A)`, the index of each active beam among
            the K beams; and `valid (B, A)`, False where a prompt has fewer than A active beams.
        """
        # 1. Lay out the columns: first the inner tokens of all beams, packed without gaps, then the last token of each
        # beam, so that the last A logits are those after the beams.
        slots = torch.argsort(~pending.active, dim=1, stable=True)[:, : pending.num_active]
        valid = pending.active.gather(1, slots)
        owner, step, real = self._columns(pending, slots, valid)
        beam = slots.gather(1, owner)  # (B, Q)

        # 2. Look up the token and the position of each column. For a column without a token, both are arbitrary.
        width = pending.tokens.shape[-1]
        lengths = pending.lengths.gather(1, beam)
        depths = pending.depths.gather(1, beam)
        place = (width - lengths + step).clamp(min=0, max=width - 1)
        tokens = pending.tokens.flatten(1).gather(1, beam * width + place)
        positions = self.prompt_mask.sum(1, keepdim=True) + depths - lengths + step

        # 3. Run the model.
        with logits_at(self.model, tokens=self.tokens):
            output = self.model(
                input_ids=tokens,
                attention_mask=self._mask(owner, step, real, beam),
                position_ids=positions.clamp(min=0),
                **self.caching,
                logits_to_keep=pending.num_active,
            )

        # 4. Record which of the new columns belong to each beam.
        beams = torch.arange(self.seen.shape[1], device=beam.device).view(1, -1, 1)
        belongs = (beam.unsqueeze(1) == beams) & real.unsqueeze(1)  # (B, K, Q)
        self.seen = torch.cat([self.seen, belongs], -1)
        return output.logits[:, -pending.num_active :], slots, valid

    def read_beside(self, token_ids: Tensor, depths: Tensor, seen: Tensor, num_logits: int) -> Tensor:
        """Reads the same tokens after every prompt, and removes them from the cache again.

        Args:
            token_ids (`torch.Tensor` of shape `(Q,)`): The tokens.
            depths (`torch.Tensor` of shape `(Q,)`): For each token, its position after the prompt, counted from 1.
            seen (`torch.Tensor` of shape `(Q, Q)`): True where token `i` (row) attends to token `j` (column). All
                tokens attend to the prompt.
            num_logits (`int`): Number of tokens, counted from the last one, whose logits are returned.

        Returns:
            `torch.Tensor` of shape `(B, num_logits, V)`: The logits after these tokens.
        """
        num_prompts = len(self.prompt_mask)
        width = len(token_ids)
        prompt = self.prompt_mask.unsqueeze(1).expand(-1, width, -1)
        with logits_at(self.model, tokens=self.tokens):
            output = self.model(
                input_ids=token_ids.expand(num_prompts, -1),
                attention_mask=mask_for(self.model, torch.cat([prompt, seen.expand(num_prompts, -1, -1)], -1)),
                position_ids=self.prompt_mask.sum(1, keepdim=True) + depths - 1,
                **self.caching,
                logits_to_keep=num_logits,
            )
        self.cache.crop(-width)
        logits: Tensor = output.logits[:, -num_logits:]
        return logits

    def _columns(self, pending: Pending, slots: Tensor, valid: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Returns `owner, step, real`, each `(B, Q)`: for each column, the index of its beam among the active beams,
        the index of its token among the beam's pending tokens, and whether the column contains a token."""
        # The inner tokens of active beam `a` occupy the columns from `ends[a] - inner[a]` up to `ends[a]`, exclusive.
        inner = torch.where(valid, pending.lengths.gather(1, slots) - 1, 0)  # (B, A)
        ends = inner.cumsum(1)
        column = torch.arange(pending.num_inner, device=slots.device).expand(len(slots), -1).contiguous()
        owner = torch.searchsorted(ends, column, right=True).clamp(max=pending.num_active - 1)

        # The last token of each active beam follows, in the order of the beams.
        last_owner = torch.arange(pending.num_active, device=slots.device).expand(len(slots), -1)
        return (
            torch.cat([owner, last_owner], 1),
            torch.cat([column - (ends - inner).gather(1, owner), inner], 1),
            torch.cat([column < ends[:, -1:], valid], 1),
        )

    def _mask(self, owner: Tensor, step: Tensor, real: Tensor, beam: Tensor) -> Tensor:
        """Returns the attention mask, `(B, 1, Q, P + G + Q)`. Each column attends to the prompt, the earlier columns
        of its beam, and the new columns of its beam up to itself.

        A column without a token attends at least to the prompt, so that no softmax is empty.
        """
        prompt = self.prompt_mask.unsqueeze(1).expand(-1, owner.shape[1], -1)
        past = self.seen.gather(1, beam.unsqueeze(-1).expand(-1, -1, self.seen.shape[-1]))
        past = past & real.unsqueeze(-1)
        same_beam = owner.unsqueeze(2) == owner.unsqueeze(1)
        not_later = step.unsqueeze(1) <= step.unsqueeze(2)
        new = same_beam & not_later & real.unsqueeze(1)
        return mask_for(self.model, torch.cat([prompt, past, new], -1))


class SeparateRows:
    """A cache with one row per beam. Each step reads one token of every beam, as in `generate`.

    It is used for models that do not support the mask of `SharedPrompt`. `logits`, `reorder` and `extend` have the
    same meaning as in `SharedPrompt`; there is no `read_beside`.
    """

    shared = False
    has_logps = False

    def __init__(
        self, model: PreTrainedModel, input_ids: Tensor, attention_mask: Tensor, tokens: Tensor | None
    ) -> None:
        self.model = model
        self.tokens = tokens
        self.prompt_length = attention_mask.sum(1)
        self.mask = attention_mask
        self.cache = DynamicCache(config=model.config)
        self.caching = {**cache_arguments(model, self.cache), **routing(model, balanced=False)}
        self.logits = _read_prompt(model, input_ids, attention_mask, tokens, self.caching)

    def reorder(self, parents: Tensor) -> None:
        """Makes beam `k` a continuation of beam `parents[:, k]`."""
        num_prompts = len(parents)
        rows_per_prompt = len(self.mask) // num_prompts
        first_rows = torch.arange(num_prompts, device=parents.device).unsqueeze(1) * rows_per_prompt
        rows = (first_rows + parents).flatten()
        self.cache.batch_select_indices(rows)
        self.mask = self.mask[rows]

    def extend(self, pending: Pending) -> tuple[Tensor, Tensor, Tensor]:
        """Reads one token of every beam. Returns the same tensors as `SharedPrompt.extend`, with A = K."""
        num_prompts, num_beams = pending.active.shape
        self.mask = torch.cat([self.mask, self.mask.new_ones(len(self.mask), 1)], 1)
        positions = self.prompt_length.unsqueeze(1) + pending.depths - 1  # (B, K)

        with logits_at(self.model, tokens=self.tokens):
            output = self.model(
                input_ids=pending.tokens[..., -1].reshape(-1, 1),
                attention_mask=self.mask,
                position_ids=positions.reshape(-1, 1),
                **self.caching,
            )
        slots = torch.arange(num_beams, device=self.mask.device).expand(num_prompts, -1)
        return output.logits[:, -1].view(num_prompts, num_beams, -1), slots, pending.active


def _read_prompt(
    model: PreTrainedModel,
    input_ids: Tensor,
    attention_mask: Tensor,
    tokens: Tensor | None,
    caching: Mapping[str, Any],
) -> Tensor:
    """Reads the prompts into the cache. Returns the logits after each prompt, `(B, 1, V)`."""
    positions = (attention_mask.long().cumsum(1) - 1).clamp(min=0)
    with logits_at(model, tokens=tokens):
        output = model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=positions,
            **caching,
            logits_to_keep=1,
        )
    logits: Tensor = output.logits[:, -1:]
    return logits
