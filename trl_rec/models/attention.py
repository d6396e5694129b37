"""Attention masks of our own: decides which models accept one, and builds it in the form that they need.

A row with several texts side by side needs a mask that no model builds for itself. A model that is given a mask
ignores its sliding windows. The result is the same as long as the prompt and any one of the texts after it fit into
the window together.
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
    from transformers import PreTrainedModel

logger = logging.getLogger(__name__)
ATTENTION = {"full_attention", "sliding_attention", "chunked_attention"}  # layer types without a recurrent state


def mask_for(model: PreTrainedModel, seen: Tensor) -> Tensor:
    """The mask `(B, 1, Q, T)` that lets query `q` see key `t` where `seen[:, q, t]` is True.

    Boolean for sdpa. For eager attention, in the model's dtype, to be added to the attention scores.
    """
    seen = seen.unsqueeze(1)
    if attention_kind(model) == "sdpa":
        return seen

    blocked = torch.finfo(model.dtype).min  # eager attention adds its mask: a boolean would be silently wrong
    return torch.zeros(seen.shape, dtype=model.dtype, device=seen.device).masked_fill(~seen, blocked)


def why_separate(model: PreTrainedModel, length: int) -> str | None:
    """Why the model cannot read texts of up to `length` tokens side by side in one row; None where it can."""
    name = type(model).__name__
    config = model.config.get_text_config()

    # 1. The model must take our mask and our positions.
    if keeps_state(model):
        return f"{name} keeps a recurrent state, which texts cannot share"
    if not takes_positions(model):
        return f"{name} takes no position ids"
    if attention_kind(model) not in ("sdpa", "eager"):
        return f"attention {attention_kind(model)!r} takes no mask of our own"

    # 2. None of its layers may attend to fewer tokens than our mask allows.
    settings = config.to_dict()
    if "local" in (settings.get("attention_layers") or ()):  # GPT-Neo
        return "local attention counts columns, not positions"
    window = settings.get("sliding_window") or settings.get("attention_chunk_size")
    kinds = settings.get("layer_types")
    # Without `layer_types`, a model with a window uses it unless `use_sliding_window` says no.
    slides = set(kinds) != {"full_attention"} if kinds else settings.get("use_sliding_window", True)
    if slides and window and length > window:
        return f"prompt and completion do not fit the attention window of {window} tokens"
    return None


@cache
def warn_once(reason: str, consequence: str) -> None:
    """Logs why rows are separate and what follows from it, once per process and reason."""
    logger.warning(f"{reason}: {consequence}")


def check_suitable(model: PreTrainedModel) -> None:
    """Raises unless the model reads a prompt and its continuation as one row of tokens."""
    name = type(model).__name__
    if model.config.is_encoder_decoder:
        raise ValueError(f"{name} is an encoder-decoder; prompts and completions in one row need a decoder-only model")
    if isinstance(model, PeftModel) and model.active_peft_config.is_prompt_learning:
        raise ValueError(
            f"{name} puts learned columns before each prompt, which our masks miss; train with LoRA instead"
        )


def keeps_state(model: PreTrainedModel) -> bool:
    """Whether any layer keeps a recurrent state instead of attending."""
    # Models of recurrent layers alone mark the whole class as stateful; mixed ones name the type of each layer.
    kinds = model.config.get_text_config().to_dict().get("layer_types")
    return bool(is_stateful(model) or not set(kinds or ()) <= ATTENTION)


def takes_positions(model: PreTrainedModel) -> bool:
    """Whether the model places tokens by the position ids passed to it, not by their columns."""
    base = model.get_base_model() if isinstance(model, PeftModel) else model
    # With ALiBi (BLOOM, MPT) distances are counted in columns, whatever position ids are passed.
    alibi = model.config.get_text_config().to_dict().get("alibi")
    return "position_ids" in inspect.signature(base.forward).parameters and not alibi
