"""Masks of our own: which models take them, and in what form.

A row that holds several texts side by side needs a mask that no model makes by itself. Passing one switches sliding
windows off, which changes nothing while each text, from the start of the row's prompt, fits the window.
"""

from __future__ import annotations

import inspect
import logging
from typing import TYPE_CHECKING

import torch
from peft import PeftModel
from torch import Tensor

from trl_rec.compat import attention_kind, is_stateful


if TYPE_CHECKING:
    from transformers import PreTrainedModel

logger = logging.getLogger(__name__)
ATTENTION = {"full_attention", "sliding_attention", "chunked_attention"}
_told: set[str] = set()


def mask_for(model: PreTrainedModel, seen: Tensor) -> Tensor:
    """The mask `(B, 1, Q, T)` that lets query `q` of a row see its key `t` where `seen[:, q, t]` is True: boolean for
    sdpa, added to the scores, in the model's dtype, for eager attention."""
    seen = seen.unsqueeze(1)
    if attention_kind(model) == "sdpa":
        return seen
    blocked = torch.finfo(model.dtype).min  # eager attention adds its mask: a boolean would be silently wrong
    return torch.zeros(seen.shape, dtype=model.dtype, device=seen.device).masked_fill(~seen, blocked)


def why_separate(model: PreTrainedModel, length: int) -> str | None:
    """Why the model cannot read texts of up to `length` tokens side by side in one row, or None where it can."""
    name, config = type(model).__name__, model.config.get_text_config()
    if keeps_state(model):
        return f"{name} keeps a recurrent state, which texts cannot share"
    if not takes_positions(model):
        return f"{name} takes no position ids"
    if attention_kind(model) not in ("sdpa", "eager"):
        return f"attention {attention_kind(model)!r} takes no mask of our own"
    settings = config.to_dict()
    if "local" in (settings.get("attention_layers") or ()):
        return "local attention counts columns, not positions"
    window, kinds = settings.get("sliding_window") or settings.get("attention_chunk_size"), settings.get("layer_types")
    slides = set(kinds) != {"full_attention"} if kinds else settings.get("use_sliding_window", True)
    if slides and window and length > window:
        return f"prompt and completion do not fit the attention window of {window} tokens"
    return None


def say_once(reason: str, consequence: str) -> None:
    """Logs why rows are separate and what that means, the first time in this process."""
    message = f"{reason}: {consequence}"
    if message not in _told:
        _told.add(message)
        logger.warning(message)


def check_suitable(model: PreTrainedModel) -> None:
    """Refuses models whose rows are not a prompt and its continuation, neither side by side nor separately."""
    name = type(model).__name__
    if model.config.is_encoder_decoder:
        raise ValueError(f"{name} is an encoder-decoder; prompts and completions in one row need a decoder-only model")
    if isinstance(model, PeftModel) and model.active_peft_config.is_prompt_learning:
        raise ValueError(
            f"{name} puts learned columns before each prompt, which our masks miss; train with LoRA instead"
        )


def keeps_state(model: PreTrainedModel) -> bool:
    """Does any layer keep a recurrent state rather than attend?"""
    kinds = model.config.get_text_config().to_dict().get("layer_types")
    return bool(is_stateful(model) or not set(kinds or ()) <= ATTENTION)


def takes_positions(model: PreTrainedModel) -> bool:
    """Does the model place tokens by the position ids that it is given, rather than by their columns?"""
    base = model.get_base_model() if isinstance(model, PeftModel) else model
    alibi = model.config.get_text_config().to_dict().get("alibi")
    return "position_ids" in inspect.signature(base.forward).parameters and not alibi
