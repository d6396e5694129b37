"""Computes logits in float32, and only at selected positions, since the output embedding is by far the widest layer.

A forward pre-hook on the output embedding selects the hidden states, so the selection happens inside the forward pass
of any wrapper. Therefore the selection works with adapters, activation checkpointing, DDP, ZeRO-3 and FSDP2. The model
still applies its transformations of logits, such as soft-capping or scaling, and does so in float32.

Legend: B rows, T tokens per row, N selected positions, U tokens whose logits are wanted, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from trl_rec.compat import is_quantized_layer, torch_linear
from trl_rec.losses.output import at_least_float32
from trl_rec.models.precision import PreciseLinear
from trl_rec.models.sampled_columns import SampledColumns


@contextmanager
def logits_at(
    model: PreTrainedModel, positions: Tensor | None = None, *, tokens: Tensor | SampledColumns | None = None
) -> Iterator[None]:
    """Inside the block, forward passes of `model` return logits `(1, N, V)`, only for the N selected positions.

    The logits are at least float32, as described in `precision.py`.

    Args:
        model (`PreTrainedModel`): The model itself, not the wrapper of a distributed engine.
        positions (`torch.Tensor` of shape `(B, T)`, *optional*): Boolean mask with N True entries. N may be 0. The
            logits are in the order of `positions.nonzero()`. By default, the model computes logits at its usual
            positions and returns them in their usual shape.
        tokens (`torch.Tensor` of shape `(U,)` or `SampledColumns`, *optional*): The tokens to compute logits for, in
            the order of the columns of the logits. Defaults to the vocabulary. With `SampledColumns`, each of the N
            positions has its own tokens. If the model transforms its logits, it must treat all tokens alike, as
            soft-capping and scaling do.
    """
    head = model.get_output_embeddings()

    def select(module: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
        """Returns the selected hidden states `(1, N, hidden)`, and the layer's other inputs."""
        hidden_states = inputs[0]  # (B, T, hidden)
        return (hidden_states[positions].unsqueeze(0), *inputs[1:])

    # Compiled code would not notice that the hook is added and removed.
    hook: Any = torch.compiler.disable(select)
    handle = None if positions is None else head.register_forward_pre_hook(hook)
    try:
        with _precise(head, tokens):
            yield
    finally:
        if handle is not None:
            handle.remove()


@contextmanager
def _precise(head: nn.Module, tokens: Tensor | SampledColumns | None) -> Iterator[None]:
    """Inside the block, the output embedding computes only the logits of `tokens`, in at least float32."""
    layers = list(head.modules())  # more than one under an adapter
    quantized = any(is_quantized_layer(layer) for layer in layers)
    num_outputs = max(layer.out_features for layer in layers if isinstance(layer, nn.Linear))
    forward = head.forward

    def forward_precisely(*inputs: Any) -> Tensor:
        """Returns the logits. If the output embedding is quantised, its own logits are converted to float32."""
        if quantized:
            logits: Tensor = at_least_float32(forward(*inputs))
            if isinstance(tokens, SampledColumns):
                return tokens.pick(logits)
            return logits if tokens is None else logits.index_select(-1, tokens)
        with torch_linear(), PreciseLinear(num_outputs, tokens):
            logits = forward(*inputs)
        return logits

    own = vars(head).get("forward")  # set by accelerate on layers that it moves between devices
    vars(head)["forward"] = torch.compiler.disable(forward_precisely)
    try:
        yield
    finally:
        vars(head).pop("forward")
        if own is not None:
            vars(head)["forward"] = own
