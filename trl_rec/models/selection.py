"""Computes logits in float32, and only at selected positions.

The output embedding is by far the widest layer, so selecting positions saves time and memory. A forward pre-hook on
the output embedding selects the hidden states, so the selection happens inside the forward pass, whatever wraps the
model. Therefore the selection works with adapters, activation checkpointing, DDP, ZeRO-3 and FSDP2. If the model
transforms its logits, for example by soft-capping or scaling, it transforms the selected logits in float32.

The selection temporarily changes the output embedding, so a lock makes threads that share a model take turns.

Legend: B rows, T tokens per row, N selected positions, U tokens whose logits are computed, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from threading import Lock, RLock
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from trl_rec.compat import is_quantized_layer, torch_linear
from trl_rec.losses.output import at_least_float32
from trl_rec.models.precision import PreciseLinear
from trl_rec.models.sampled_columns import SampledColumns


_turns: WeakKeyDictionary[nn.Module, RLock] = WeakKeyDictionary()  # one lock per output embedding
_turns_lock = Lock()


@contextmanager
def logits_at(
    model: PreTrainedModel, positions: Tensor | None = None, *, tokens: Tensor | SampledColumns | None = None
) -> Iterator[None]:
    """Makes forward passes of `model` inside the `with` block return only the logits of N positions, `(1, N, V)`.

    The logits are at least float32, as described in `precision.py`.

    Args:
        model (`PreTrainedModel`): The model itself, not the wrapper of a distributed engine.
        positions (`torch.Tensor` of shape `(N,)` or `(B, T)`, *optional*): The indices of the positions among all
            B * T positions, or a boolean mask with N True entries. N may be 0. The logits are in the order of the
            indices, or of `positions.nonzero()`. With a mask, the host waits for the device to count the entries. By
            default, the model computes logits at its usual positions and returns them in their usual shape.
        tokens (`torch.Tensor` of shape `(U,)` or `SampledColumns`, *optional*): The tokens to compute logits for. The
            logits have one column per token, in the same order. Defaults to the vocabulary. With `SampledColumns`,
            each of the N positions has its own tokens. If the model transforms its logits, it must treat all tokens
            alike, as soft-capping and scaling do.
    """
    head = model.get_output_embeddings()
    places = positions
    if positions is not None and positions.dtype == torch.bool:
        places = places_of(positions)

    def select(module: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
        """Returns the selected hidden states `(1, N, hidden)`, and the layer's other inputs."""
        hidden_states = inputs[0]  # (B, T, hidden)
        return (hidden_states.flatten(0, 1).index_select(0, places).unsqueeze(0), *inputs[1:])

    # Keep the hook out of compiled code, which would not notice that the hook is added and removed.
    hook: Any = torch.compiler.disable(select)
    with _turn(head):
        handle = None if places is None else head.register_forward_pre_hook(hook)
        try:
            with _precise(head, tokens):
                yield
        finally:
            if handle is not None:
                handle.remove()


def places_of(mask: Tensor, count: int | None = None) -> Tensor:
    """Returns the indices of the True entries of the flattened mask, ascending.

    Args:
        mask: A boolean mask of any shape.
        count (*optional*): The number of True entries. Without it, the host waits for the device to count them.
    """
    if count is None:
        return mask.flatten().nonzero().squeeze(1)
    # Entry `k` of the result is the first position at which the running count of True entries reaches `k + 1`.
    numbers = torch.arange(1, count + 1, device=mask.device)
    return torch.searchsorted(mask.flatten().cumsum(0), numbers)


def _turn(head: nn.Module) -> RLock:
    """Returns the lock that a thread holds while it changes an output embedding."""
    with _turns_lock:
        return _turns.setdefault(head, RLock())


@contextmanager
def _precise(head: nn.Module, tokens: Tensor | SampledColumns | None) -> Iterator[None]:
    """Makes the output embedding return only the logits of `tokens` inside the `with` block, in at least float32."""
    # 1. Find the layers that compute logits.
    layers = list(head.modules())  # an adapter adds layers
    quantized = any(is_quantized_layer(layer) for layer in layers)
    num_outputs = max(layer.out_features for layer in layers if isinstance(layer, nn.Linear))
    forward = head.forward

    def forward_precisely(*inputs: Any) -> Tensor:
        """Returns the logits. If the output embedding is quantised, the logits that it returns are converted to
        float32."""
        if quantized:
            logits: Tensor = at_least_float32(forward(*inputs))
            if isinstance(tokens, SampledColumns):
                return tokens.pick(logits)
            return logits if tokens is None else logits.index_select(-1, tokens)
        with torch_linear(), PreciseLinear(num_outputs, tokens):
            logits = forward(*inputs)
        return logits

    # 2. Replace the forward method inside the block.
    own = vars(head).get("forward")  # set by accelerate on layers that it moves between devices
    vars(head)["forward"] = torch.compiler.disable(forward_precisely)
    try:
        yield
    finally:
        vars(head).pop("forward")
        if own is not None:
            vars(head)["forward"] = own
