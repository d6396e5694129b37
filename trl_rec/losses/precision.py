"""The number format that losses are computed in, whatever they are given."""

import torch
from torch import Tensor


def at_least_float32(tensor: Tensor) -> Tensor:
    """bfloat16 and float16 as float32; float32 and float64 as they are, not copied."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))
