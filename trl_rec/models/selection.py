"""Computes logits only at selected positions, since the output embedding is by far the widest layer.

A forward pre-hook on the output embedding selects the hidden states inside the wrapped forward pass. Therefore this
works with adapters, activation checkpointing, DDP, ZeRO-3 and FSDP2, and transformations that a model applies to its
logits, such as soft-capping or scaling, still take place.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel


@contextmanager
def logits_at(model: PreTrainedModel, positions: Tensor) -> Iterator[None]:
    """Makes forward passes of `model` inside the block return logits `(1, N, V)`, for the N selected positions only.

    Args:
        model (`PreTrainedModel`): The model itself, not the wrapper of a distributed engine.
        positions (`torch.Tensor` of shape `(B, T)`): Boolean mask with N True entries, which may be 0. The logits are
            in the order of `positions.nonzero()`.
    """

    def select(module: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
        """Returns the selected hidden states `(1, N, hidden)`, and the layer's other inputs."""
        hidden_states = inputs[0]  # (B, T, hidden)
        return (hidden_states[positions].unsqueeze(0), *inputs[1:])

    # Compiled code would not notice that the hook is added and removed.
    hook: Any = torch.compiler.disable(select)
    handle = model.get_output_embeddings().register_forward_pre_hook(hook)
    try:
        yield
    finally:
        handle.remove()
