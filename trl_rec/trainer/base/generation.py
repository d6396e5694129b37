"""A model that decodes while it is in training: whole, and without what would stop it where processes decode unequally
much.

TRL's `unwrap_model_for_generation` leaves one hook of DeepSpeed ZeRO-3 (TRL 1.16, DeepSpeed 0.19): at the start of a
forward pass it compares notes with the other processes. One that has fewer batches to decode is then waited for
without end.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from trl.models import unwrap_model_for_generation

from trl_rec.models.loading import keep_differentiable
from trl_rec.trainer.base.gradient_checkpointing import checkpointing_kept


@contextmanager
def whole_model(wrapped: Any, accelerator: Any) -> Iterator[Any]:
    """Inside, the model itself, with all its weights; afterwards, all is as it was.

    Args:
        wrapped: The model as the engine has it.
        accelerator: The trainer's.
    """
    model = keep_differentiable(accelerator.unwrap_model(wrapped))
    with checkpointing_kept(model), unwrap_model_for_generation(wrapped, accelerator) as model, _alone(wrapped):
        yield model


@contextmanager
def _alone(wrapped: Any) -> Iterator[None]:
    """Inside, a ZeRO-3 engine's forward passes ask nothing of other processes. The weights have to be gathered."""
    optimizer = getattr(wrapped, "optimizer", None)
    offload: Any = getattr(optimizer, "parameter_offload", optimizer)
    handle = getattr(offload, "fwd_pre_hook", None)
    if handle is None:
        yield
        return
    hooks = offload.module._forward_pre_hooks
    hook = hooks.pop(handle.id)
    try:
        yield
    finally:
        hooks[handle.id] = hook
