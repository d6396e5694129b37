"""The two towers, for items and for users: each turns its input into a vector, and the vector into a few codes.

    SC = fuse([text; behaviour])        z = quantize(encode(SC))        decode(z) ~ [text; behaviour]

SC is the fused vector of the paper (semantic and collaborative). The SC vectors of a user and of the items the user
chose are aligned. The decoder reconstructs the fixed input and not SC, because the tower could make SC trivially easy
to reconstruct.

Legend: N items or users, W width of the input, S width of SC, B pairs of a user and an item.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from trl_rec.semantic_ids.quantizer import ResidualQuantizer


class Rebuilt(NamedTuple):
    """How well a tower reconstructs its inputs from their codes.

    Args:
        loss (`torch.Tensor` of shape `(N,)`): The squared error of the reconstruction plus the loss of the quantiser.
        error (`torch.Tensor` of shape `(N,)`): The squared error alone.
    """

    loss: Tensor
    error: Tensor


class Tower(nn.Module):
    """The tower of one side.

    Args:
        inputs (`int`): W.
        hidden (`int`): Width of the hidden layers.
        width (`int`): S.
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
        """The squared error `(N,)` of a reconstruction without quantisation."""
        error: Tensor = (self.decode(self.encode(fused)) - inputs).square().sum(1)
        return error


def u2i_loss(users: Tensor, items: Tensor, also_chosen: Tensor) -> Tensor:
    """The alignment loss of the paper (U2I): each user has to identify the chosen item among the items of the batch.

    It is -log softmax over the items of the batch, at the item that the user chose.

    Args:
        users (`torch.Tensor` of shape `(B, S)`): SC vectors of users.
        items (`torch.Tensor` of shape `(B, S)`): SC vectors of the items; the user of row `i` chose item `i`.
        also_chosen (`torch.Tensor` of shape `(B, B)`): True where the user of the row also chose the item of the
            column. Such an item is not a negative. The diagonal is ignored.

    Returns:
        `torch.Tensor` of shape `(B,)`: The loss of each pair.
    """
    scores = users @ items.T  # (B, B)
    is_own = torch.eye(len(users), dtype=torch.bool, device=users.device)
    own = torch.arange(len(users), device=users.device)
    return F.cross_entropy(scores.masked_fill(also_chosen & ~is_own, -torch.inf), own, reduction="none")


def _mlp(inputs: int, hidden: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(inputs, hidden), nn.GELU(), nn.Linear(hidden, outputs))
