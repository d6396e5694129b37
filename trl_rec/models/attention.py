"""Determines whether a model accepts a custom attention mask, and builds the mask in the format that the model needs.

A custom mask is needed if a row contains several completions of one prompt, or several branches (see `branches.py`). A
model with sliding windows ignores its windows if it is given a custom mask. The result is still correct if the prompt
and the longest completion together fit into the window.
"""

from __future__ import annotations

import inspect
import logging
from functools import cache
from typing import TYPE_CHECKING

import torch
from peft import PeftModel
from torch import Tensor

from trl_rec.compat import attention_kind, is_stateful


if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel

logger = logging.getLogger(__name__)
ATTENTION = {"full_attention", "sliding_attention", "chunked_attention"}  # layer types without a recurrent state


def mask_for(model: PreTrainedModel, seen: Tensor) -> Tensor:
    """Builds the attention mask `(B, 1, Q, T)`, in which query `q` attends to key `t` where `seen[:, q, t]` is True.

    The mask is boolean for sdpa. For eager attention it has the model's dtype and is added to the attention scores.
    """
    seen = seen.unsqueeze(1)
    if attention_kind(model) == "sdpa":
        return seen

    # Eager attention adds the mask to the scores, so a boolean mask would give wrong results without an error.
    blocked = torch.finfo(model.dtype).min
    return torch.zeros(seen.shape, dtype=model.dtype, device=seen.device).masked_fill(~seen, blocked)


def why_separate(model: PreTrainedModel, length: int) -> str | None:
    """Returns why the model cannot read several completions in one row, or None if it can.

    `length` is the maximum number of tokens of the prompt and one completion together.
    """
    name = type(model).__name__
    config = model.config.get_text_config()

    # 1. The model must accept a custom mask and custom position ids.
    if keeps_state(model):
        return f"{name} keeps a recurrent state, which completions cannot share"
    if not takes_positions(model):
        return f"{name} does not accept position ids"
    if attention_kind(model) not in ("sdpa", "eager"):
        return f"the attention implementation {attention_kind(model)!r} does not accept a custom mask"

    # 2. Every layer must be able to attend to all tokens that the mask allows.
    settings = config.to_dict()
    if "local" in (settings.get("attention_layers") or ()):  # GPT-Neo
        return "local attention measures distances in columns, not in position ids"
    window = settings.get("sliding_window") or settings.get("attention_chunk_size")
    kinds = settings.get("layer_types")
    # Without `layer_types`, a model that has a window uses the window unless `use_sliding_window` is False.
    slides = set(kinds) != {"full_attention"} if kinds else settings.get("use_sliding_window", True)
    if slides and window and length > window:
        return f"prompt and completion do not fit into the attention window of {window} tokens"

    # 3. The position embeddings must not depend on how long the longest text of the row is.
    original = unscaled_length(config)
    if original is not None and length > original:
        return (
            f"prompt and completion are longer than {original} tokens, and beyond this length the position embeddings "
            f"of {name} depend on the length of the longest text"
        )
    return None


def unscaled_length(config: PreTrainedConfig) -> int | None:
    """Returns the number of tokens above which rotary position embeddings depend on the length of the text.

    Only the types `dynamic` and `longrope` depend on the length. For all other types, returns None.
    """
    settings = config.to_dict()
    rope = settings.get("rope_parameters") or settings.get("rope_scaling") or {}

    # Some models have one dict of parameters per type of layer.
    lengths = []
    for one in [*(value for value in rope.values() if isinstance(value, dict)), rope]:
        kind = one.get("rope_type") or one.get("type")
        if kind == "dynamic":
            lengths.append(settings["max_position_embeddings"])
        elif kind == "longrope":
            key = "original_max_position_embeddings"
            lengths.append(one.get(key) or settings.get(key) or settings["max_position_embeddings"])
    return min(lengths, default=None)


@cache
def warn_once(reason: str, consequence: str) -> None:
    """Logs why completions, branches or beams get separate rows, and what follows from this.

    The same text is logged only once per process.
    """
    logger.warning(f"{reason}: {consequence}")


def check_suitable(model: PreTrainedModel) -> None:
    """Raises ValueError if the model cannot read a prompt and its completion as one sequence of tokens."""
    name = type(model).__name__
    if model.config.is_encoder_decoder:
        raise ValueError(f"{name} is an encoder-decoder model; choose a decoder-only model")
    if isinstance(model, PeftModel) and model.active_peft_config.is_prompt_learning:
        raise ValueError(
            f"{name} inserts virtual tokens before each prompt, which is not supported; use a LoRA adapter instead"
        )


def keeps_state(model: PreTrainedModel) -> bool:
    """Returns whether any layer keeps a recurrent state instead of using attention."""
    # Purely recurrent models are marked as stateful by their class. Hybrid models list the type of each layer.
    kinds = model.config.get_text_config().to_dict().get("layer_types")
    return bool(is_stateful(model) or not set(kinds or ()) <= ATTENTION)


def takes_positions(model: PreTrainedModel) -> bool:
    """Returns whether the model uses the position ids passed to it."""
    base = model.get_base_model() if isinstance(model, PeftModel) else model
    # ALiBi ignores position ids. It computes distances from the columns in which the tokens stand. Falcon's `forward`
    # has the parameter `position_ids` even if the model is configured to use ALiBi.
    alibi = model.config.get_text_config().to_dict().get("alibi")
    return "position_ids" in inspect.signature(base.forward).parameters and not alibi
