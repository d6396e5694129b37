"""Defines the return type of all losses, and converts their inputs to at least float32."""

from typing import NamedTuple

import torch
from torch import Tensor


class LossOutput(NamedTuple):
    """An unreduced loss and its metrics.

    Loss functions neither reduce the loss nor log the metrics. Their callers do both, because trainers differ in what
    they divide the loss by and in how they name the metrics.

    Args:
        loss (`torch.Tensor`): Unreduced loss, with one value per token, list or row, depending on the loss.
        metrics (`dict[str, torch.Tensor]`): Maps metric names to detached, unreduced floating-point tensors. Boolean
            metrics are 1 or 0.
    """

    loss: Tensor
    metrics: dict[str, Tensor]


def at_least_float32(tensor: Tensor) -> Tensor:
    """Converts bfloat16 and float16 tensors to float32. Returns float32 and float64 tensors without a copy."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))
