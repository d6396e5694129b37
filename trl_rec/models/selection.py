"""Computes logits at chosen positions only, since the output embedding is by far the widest layer.

A forward pre-hook on the output embedding selects the positions, inside the wrapped forward pass. So this works under
adapters, activation checkpointing, DDP, ZeRO-3 and FSDP2 alike, and a model that transforms its logits afterwards
(soft-capping, scaling) still does.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn
from transformers import PreTrainedModel


@contextmanager
def logits_at(model: PreTrainedModel, positions: Tensor) -> Iterator[None]:
    """Inside the block, a forward pass of `model` returns logits of shape `(1, N, V)`, one row per chosen position.

    Args:
        model (`PreTrainedModel`): The model itself, not the wrapper of a distributed engine.
        positions (`torch.Tensor` of shape `(B, T)`): Boolean, with N True entries, which are read row by row. N may be
            0.
    """

    def select(module: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
        """The chosen hidden states `(1, N, hidden)`, and the layer's other inputs."""
        hidden_states = inputs[0]  # (B, T, hidden)
        return (hidden_states[positions].unsqueeze(0), *inputs[1:])

    handle = model.get_output_embeddings().register_forward_pre_hook(select)
    try:
        yield
    finally:
        handle.remove()
