"""Computes logits in float32, even if the model computes in bfloat16 or float16.

In bfloat16, a logit near 20 is rounded to a multiple of 0.125, which can give different beams equal scores or change
their order. Hidden states and the output embedding can be converted to float32 exactly, so that only float32 rounding
affects their product. On a CUDA device, a single matrix product takes both of them in low precision and returns
float32. On other devices, the output embedding is converted in parts, so that memory never holds a float32 copy of the
whole embedding.

Legend: N positions, H hidden size, V vocabulary, U tokens whose logits are computed.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from trl_rec.models.sampled_columns import SampledColumns


LOW_PRECISION = (torch.bfloat16, torch.float16)
PART_ROWS = 4096  # rows of the output embedding that are converted at a time


class PreciseLinear(TorchFunctionMode):
    """Context manager in which linear layers with V outputs return at least float32, for all or selected outputs.

    Args:
        num_outputs (`int`): V. Layers with a different number of outputs, such as the first matrix of a LoRA adapter,
            are not affected.
        tokens (`torch.Tensor` of shape `(U,)` or `SampledColumns`, *optional*): The outputs to compute. With
            `SampledColumns`, different outputs are computed at each position. Defaults to all outputs.
    """

    def __init__(self, num_outputs: int, tokens: Tensor | SampledColumns | None = None) -> None:
        super().__init__()
        self.num_outputs = num_outputs
        self.tokens = tokens

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Redirects `F.linear` to `_linear`. Linear layers and adapters both call `F.linear`."""
        if func is not F.linear:
            return func(*args, **(kwargs or {}))
        return self._linear(*args, **(kwargs or {}))

    def _linear(self, input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        """Replaces `F.linear`. The parameters have the same names, because callers may pass them by name."""
        if len(weight) != self.num_outputs:
            return F.linear(input, weight, bias)
        if isinstance(self.tokens, SampledColumns):
            return self.tokens.linear(input, weight, bias)
        if self.tokens is not None:
            weight = weight.index_select(0, self.tokens)
            bias = None if bias is None else bias.index_select(0, self.tokens)
        return precise_linear(input, weight, bias)


def precise_linear(hidden_states: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Same as `F.linear`, except that the result is at least float32.

    Under autocast, the operands are first rounded to the autocast dtype. As in `F.linear`, gradients are rounded to
    the dtype of the operands.
    """
    device = hidden_states.device.type
    if torch.is_autocast_enabled(device):
        dtype = torch.get_autocast_dtype(device)
        with torch.autocast(device, enabled=False):
            return precise_linear(hidden_states.to(dtype), weight.to(dtype), bias)
    if weight.dtype not in LOW_PRECISION or hidden_states.dtype != weight.dtype:
        return F.linear(hidden_states, weight, bias)

    product: Any = _LowPrecisionProduct
    logits: Tensor = product.apply(hidden_states.flatten(0, -2), weight)
    logits = logits.view(*hidden_states.shape[:-1], len(weight))
    return logits if bias is None else logits + bias


class _LowPrecisionProduct(torch.autograd.Function):
    """Multiplies low-precision hidden states `(N, H)` by the transpose of a low-precision weight `(V, H)`.

    Returns the product `(N, V)` in float32.
    """

    @staticmethod
    def forward(ctx: Any, hidden_states: Tensor, weight: Tensor) -> Tensor:
        """Returns the product, and saves the operands for the backward pass.

        The operands themselves are saved, and no float32 copies of them, so that ZeRO-3 can release the weight between
        the two passes.
        """
        ctx.save_for_backward(hidden_states, weight)
        if hidden_states.is_cuda and len(hidden_states):
            return torch.mm(hidden_states, weight.T, out_dtype=torch.float32)
        return _product_in_parts(hidden_states, weight)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, Tensor | None]:
        """Returns the gradients of the hidden states and of the weight, in the dtype of the operands."""
        hidden_states, weight = ctx.saved_tensors
        gradient = gradients[0].to(weight.dtype)  # (N, V)
        return (
            gradient @ weight if ctx.needs_input_grad[0] else None,
            gradient.T @ hidden_states if ctx.needs_input_grad[1] else None,
        )


def _product_in_parts(hidden_states: Tensor, weight: Tensor) -> Tensor:
    """Computes the product in float32, converting `PART_ROWS` rows of the weight at a time."""
    hidden_states = hidden_states.float()
    product = hidden_states.new_empty(len(hidden_states), len(weight))
    for start in range(0, len(weight), PART_ROWS):
        stop = start + PART_ROWS
        product[:, start:stop] = hidden_states @ weight[start:stop].float().T
    return product
