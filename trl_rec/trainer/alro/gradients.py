"""How strongly each part of a loss pulls, to choose its weight by: the norm of its gradient before any weight."""

from __future__ import annotations

import torch
from torch import Tensor


def gradient_norms(parts: dict[str, Tensor], model: torch.nn.Module) -> dict[str, float]:
    """The gradient norm of each part's mean over what is trained, on this process; the graph is kept."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    norms = {}
    for name, part in parts.items():
        gradients = torch.autograd.grad(part.mean(), trained, retain_graph=True, allow_unused=True)
        squares = [gradient.float().square().sum() for gradient in gradients if gradient is not None]
        norms[name] = float(torch.stack(squares).sum().sqrt())
    return norms
