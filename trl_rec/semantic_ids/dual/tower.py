"""Defines the tower of items or users: a model that maps its input to a vector, and the vector to a few codes.

    SC = fuse([text; behaviour])        z = quantize(encode(SC))        decode(z) ~ [text; behaviour]

The input is a text vector followed by a behaviour vector. SC (semantic and collaborative) is the vector that Align3GR
fuses from them. Training aligns the SC vector of a user with the SC vectors of the items that the user chose. The
decoder reconstructs the input instead of SC, because the input is fixed. If the decoder reconstructed SC, which is
learned, the tower could learn an SC that is trivial to reconstruct.

Legend: N items or users, W width of the input, S width of SC, B pairs of a user and an item.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from trl_rec.semantic_ids.dual.quantizer import ResidualQuantizer


class Rebuilt(NamedTuple):
    """The loss and the error of reconstructing a tower's inputs from their codes.

    Args:
        loss (`torch.Tensor` of shape `(N,)`): The squared reconstruction error plus the loss of the quantiser.
        error (`torch.Tensor` of shape `(N,)`): The squared reconstruction error.
    """

    loss: Tensor
    error: Tensor


class Tower(nn.Module):
    """A tower for items or users.

    Args:
        inputs (`int`): W, the width of the input.
        hidden (`int`): Width of the hidden layers.
        width (`int`): S, the width of SC.
        code_width (`int`): Width of the vectors that are quantised.
        levels (`int`): Number of codes per item or user.
        codes (`int`): Number of different codes per level.
    """

    def __init__(self, inputs: int, *, hidden: int, width: int, code_width: int, levels: int, codes: int) -> None:
        super().__init__()
        self.fuse = _mlp(inputs, hidden, width)
        self.encode = _mlp(width, hidden, code_width)
        self.quantize = ResidualQuantizer(levels, codes, code_width)
        self.decode = _mlp(code_width, hidden, inputs)

    def rebuild(self, fused: Tensor, inputs: Tensor) -> Rebuilt:
        """Reconstructs `inputs` `(N, W)` from the codes of the SC vectors `fused` `(N, S)`."""
        quantized = self.quantize(self.encode(fused))
        error = (self.decode(quantized.vectors) - inputs).square().sum(1)
        return Rebuilt(error + quantized.loss, error)

    def autoencode(self, fused: Tensor, inputs: Tensor) -> Tensor:
        """Returns the squared error `(N,)` of reconstructing `inputs` without quantisation."""
        error: Tensor = (self.decode(self.encode(fused)) - inputs).square().sum(1)
        return error


def u2i_loss(users: Tensor, items: Tensor, also_chosen: Tensor) -> Tensor:
    """Computes Align3GR's user-to-item alignment loss (U2I), an in-batch softmax loss.

    The loss of a pair is -log p, where p is the probability of the chosen item under a softmax over the items of the
    batch.

    Args:
        users (`torch.Tensor` of shape `(B, S)`): SC vectors of the users, one row per pair.
        items (`torch.Tensor` of shape `(B, S)`): SC vectors of the items. Row `i` is the item of pair `i`.
        also_chosen (`torch.Tensor` of shape `(B, B)`): True where the user of the row also chose the item of the
            column. These items are left out of the softmax of this row. The diagonal is ignored.

    Returns:
        `torch.Tensor` of shape `(B,)`: The loss of each pair.
    """
    scores = users @ items.T  # (B, B)
    is_own = torch.eye(len(users), dtype=torch.bool, device=users.device)
    own = torch.arange(len(users), device=users.device)
    return F.cross_entropy(scores.masked_fill(also_chosen & ~is_own, -torch.inf), own, reduction="none")


def _mlp(inputs: int, hidden: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(inputs, hidden), nn.GELU(), nn.Linear(hidden, outputs))
