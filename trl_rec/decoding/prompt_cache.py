"""The forward passes of beam search: what the model says after each beam, the prompt computed once.

`SharedPrompt` keeps one cache row a prompt, in which the tokens of all its beams stand side by side; a mask lets each
token see the prompt and its own beam's past, so the prompt's keys and values are stored once and reordering beams
moves no cache. Where a model cannot take such a mask (flash attention, a sliding window shorter than the text),
`SeparateRows` gives every beam a cache row, as `generate` does. `open_cache` chooses before the first forward.

Legend: B prompts, P prompt tokens (left-padded), K beams, W pending tokens of a beam (right-aligned), A active beams
(those that branch now), G columns generated so far, Q columns of this forward, V vocabulary.
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
from trl_rec.models.attention import check_suitable, keeps_state, mask_for, say_once, takes_positions
from trl_rec.models.attention import why_separate as _why_separate


if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass
class Pending:
    """Tokens that beams have chosen, or were forced into, and the model has not read yet.

    Args:
        tokens (`torch.Tensor` of shape `(B, K, W)`): The tokens, right-aligned.
        lengths (`torch.Tensor` of shape `(B, K)`): How many of them count.
        depths (`torch.Tensor` of shape `(B, K)`): Tokens since the prompt, these included.
        active (`torch.Tensor` of shape `(B, K)`): The beams to read now.
        num_active (`int`): The most active beams of a prompt.
        num_inner (`int`): The most pending tokens of a prompt's active beams, each beam's last one left out.
    """

    tokens: Tensor
    lengths: Tensor
    depths: Tensor
    active: Tensor
    num_active: int
    num_inner: int


def open_cache(
    model: PreTrainedModel, input_ids: Tensor, attention_mask: Tensor, longest: int
) -> SharedPrompt | SeparateRows:
    """The cache that serves this model for prompts of this length and completions up to `longest` tokens."""
    _check_unsuitable(model)
    reason = _why_separate(model, input_ids.shape[1] + longest)
    if reason is None:
        return SharedPrompt(model, input_ids, attention_mask)
    say_once(reason, "every beam gets a cache row of its own, which is slower")
    return SeparateRows(model, input_ids, attention_mask)


def _check_unsuitable(model: PreTrainedModel) -> None:
    name = type(model).__name__
    base = model.get_base_model() if isinstance(model, PeftModel) else model
    check_suitable(model)
    if keeps_state(model):
        raise ValueError(
            f"{name} keeps a recurrent state that beams cannot share; decoding needs attention layers alone"
        )
    if not takes_positions(model):
        raise ValueError(
            f"{name} takes no position ids, so padded prompts and beams would be misplaced; choose another model"
        )
    if "logits_to_keep" not in inspect.signature(base.forward).parameters:
        raise ValueError(f"{name} cannot be asked for the logits of its last positions alone; choose another model")


class SharedPrompt:
    """One cache row a prompt, its beams side by side. `logits` of shape `(B, 1, V)` follow the prompt."""

    shared = True

    def __init__(self, model: PreTrainedModel, input_ids: Tensor, attention_mask: Tensor) -> None:
        self.model, self.prompt_mask = model, attention_mask.bool()
        self.cache = DynamicCache()  # bare: with a config it would crop sliding layers
        self.caching = cache_arguments(model, self.cache)
        self.logits = _read_prompt(model, input_ids, attention_mask, self.caching)
        self.seen = self.prompt_mask.new_zeros(len(input_ids), 1, 0)  # (B, K, G): the columns in each beam's past

    def reorder(self, parents: Tensor) -> None:
        """Beam `k` becomes a continuation of beam `parents[:, k]`."""
        self.seen = self.seen.gather(1, parents.unsqueeze(-1).expand(-1, -1, self.seen.shape[-1]))

    def extend(self, pending: Pending) -> tuple[Tensor, Tensor, Tensor]:
        """Reads the active beams' pending tokens: `logits (B, A, V)` after each, its beam `slots (B, A)`, and whether
        it `counts`.

        The columns are each beam's inner tokens, packed without gaps, then one column a beam for its last token: thus
        the logits that matter are the last A.
        """
        slots = torch.argsort(~pending.active, dim=1, stable=True)[:, : pending.num_active]
        counts = pending.active.gather(1, slots)
        owner, step, valid = self._columns(pending, slots, counts)
        beam = slots.gather(1, owner)
        lengths, depths = pending.lengths.gather(1, beam), pending.depths.gather(1, beam)
        width = pending.tokens.shape[-1]
        place = (width - lengths + step).clamp(min=0, max=width - 1)  # columns that are not real may point anywhere
        tokens = pending.tokens.flatten(1).gather(1, beam * width + place)
        positions = self.prompt_mask.sum(1, keepdim=True) + depths - lengths + step
        output = self.model(
            input_ids=tokens,
            attention_mask=self._mask(owner, step, valid, beam),
            position_ids=positions.clamp(min=0),
            **self.caching,
            logits_to_keep=pending.num_active,
        )
        own = (
            beam.unsqueeze(1) == torch.arange(self.seen.shape[1], device=beam.device).view(1, -1, 1)
        ) & valid.unsqueeze(1)
        self.seen = torch.cat([self.seen, own], -1)
        return output.logits[:, -pending.num_active :], slots, counts

    def _columns(self, pending: Pending, slots: Tensor, counts: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """`owner, step, valid (B, Q)`: the active beam of each column, the token's place in its beam's pending tokens,
        is it real."""
        inner = torch.where(counts, pending.lengths.gather(1, slots) - 1, 0)
        ends = inner.cumsum(1)
        column = torch.arange(pending.num_inner, device=slots.device).expand(len(slots), -1).contiguous()
        owner = torch.searchsorted(ends, column, right=True).clamp(max=pending.num_active - 1)
        last = torch.arange(pending.num_active, device=slots.device).expand(len(slots), -1)
        return (
            torch.cat([owner, last], 1),
            torch.cat([column - (ends - inner).gather(1, owner), inner], 1),
            torch.cat([column < ends[:, -1:], counts], 1),
        )

    def _mask(self, owner: Tensor, step: Tensor, valid: Tensor, beam: Tensor) -> Tensor:
        """`(B, 1, Q, P + G + Q)`. Columns that are not real see the prompt alone, so that no softmax is empty."""
        prompt = self.prompt_mask.unsqueeze(1).expand(-1, owner.shape[1], -1)
        past = self.seen.gather(1, beam.unsqueeze(-1).expand(-1, -1, self.seen.shape[-1]))
        same = (
            (owner.unsqueeze(2) == owner.unsqueeze(1)) & (step.unsqueeze(1) <= step.unsqueeze(2)) & valid.unsqueeze(1)
        )
        return mask_for(self.model, torch.cat([prompt, past & valid.unsqueeze(-1), same], -1))


class SeparateRows:
    """One cache row a beam, one token a step: as `generate` does, for models that `SharedPrompt` cannot serve."""

    shared = False

    def __init__(self, model: PreTrainedModel, input_ids: Tensor, attention_mask: Tensor) -> None:
        self.model, self.prompt_length = model, attention_mask.sum(1)
        self.mask = attention_mask
        self.cache = DynamicCache(config=model.config)
        self.caching = cache_arguments(model, self.cache)
        self.logits = _read_prompt(model, input_ids, attention_mask, self.caching)

    def reorder(self, parents: Tensor) -> None:
        """Beam `k` becomes a continuation of beam `parents[:, k]`."""
        num_prompts = len(parents)
        rows = (
            torch.arange(num_prompts, device=parents.device).unsqueeze(1) * (len(self.mask) // num_prompts) + parents
        )
        self.cache.batch_select_indices(rows.flatten())
        self.mask = self.mask[rows.flatten()]

    def extend(self, pending: Pending) -> tuple[Tensor, Tensor, Tensor]:
        """Reads one token of every beam; see `SharedPrompt.extend`."""
        num_prompts, num_beams = pending.active.shape
        self.mask = torch.cat([self.mask, self.mask.new_ones(len(self.mask), 1)], 1)
        output = self.model(
            input_ids=pending.tokens[..., -1].reshape(-1, 1),
            attention_mask=self.mask,
            position_ids=(self.prompt_length.unsqueeze(1) + pending.depths - 1).reshape(-1, 1),
            **self.caching,
        )
        slots = torch.arange(num_beams, device=self.mask.device).expand(num_prompts, -1)
        return output.logits[:, -1].view(num_prompts, num_beams, -1), slots, pending.active


def _read_prompt(
    model: PreTrainedModel, input_ids: Tensor, attention_mask: Tensor, caching: Mapping[str, Any]
) -> Tensor:
    """Fills the cache, and returns `(B, 1, V)`: the logits after the prompt."""
    positions = (attention_mask.long().cumsum(1) - 1).clamp(min=0)
    output = model(
        input_ids=input_ids,
        attention_mask=attention_mask,
        position_ids=positions,
        **caching,
        logits_to_keep=1,
    )
    return output.logits[:, -1:]
