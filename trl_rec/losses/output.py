"""What all losses share: the type they return, and the number format they compute in."""

from typing import NamedTuple

import torch
from torch import Tensor


class LossOutput(NamedTuple):
    """A loss and the metrics to log beside it.

    Losses neither reduce nor log; their callers do, since only they know the divisor and the name to log under.

    Args:
        loss (`torch.Tensor`): One value per thing that the loss scores (a token, a list, a row), not reduced.
        metrics (`dict[str, torch.Tensor]`): Detached floating-point tensors by name, not reduced either. A yes-or-no
            metric is 1 or 0.
    """

    loss: Tensor
    metrics: dict[str, Tensor]


def at_least_float32(tensor: Tensor) -> Tensor:
    """bfloat16 and float16 as float32. float32 and float64 tensors are returned as they are, without a copy."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))
