"""Logits at chosen positions only: the output embedding is by far the widest layer, and most of its rows nobody reads.

The place is a forward pre-hook on the output embedding, inside the wrapped forward: so it holds under adapters,
activation checkpointing, DDP, ZeRO-3 and FSDP2 alike, and what a model does to its logits afterwards (soft-capping,
scaling) still happens.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn
from transformers import PreTrainedModel


@contextmanager
def logits_at(model: PreTrainedModel, positions: Tensor) -> Iterator[None]:
    """Inside, a forward pass of `model` returns logits of shape `(1, N, V)`, one row for each True in `positions`.

    Args:
        model: The model itself, not the wrapper of a distributed engine.
        positions (`torch.Tensor` of shape `(B, T)`): Boolean; N True entries, read row by row. N may be 0.
    """

    def select(module: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
        return (inputs[0][positions].unsqueeze(0), *inputs[1:])

    handle = model.get_output_embeddings().register_forward_pre_hook(select)
    try:
        yield
    finally:
        handle.remove()
