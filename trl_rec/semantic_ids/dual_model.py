"""Two towers, one for items and one for users: what is known of either becomes a vector, and the vector a few codes.

    SC = fuse([text; behaviour])        z = quantise(encode(SC))        decode(z) ~ [text; behaviour]

The SC vectors of a user and of what the user chooses are aligned; what is rebuilt is the fixed input and not SC, which
could make itself easy to rebuild.

Legend: N items or users, W width of the input, S width of SC.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from trl_rec.semantic_ids.quantizer import ResidualQuantizer


class Rebuilt(NamedTuple):
    """What a tower makes of its input on the way to codes and back.

    Args:
        loss (`torch.Tensor` of shape `(N,)`): Squared error of the rebuilt input + the quantiser's loss.
        error (`torch.Tensor` of shape `(N,)`): The squared error alone.
    """

    loss: Tensor
    error: Tensor


class Tower(nn.Module):
    """One side.

    Args:
        inputs (`int`): W.
        hidden (`int`): Width of the hidden layers.
        width (`int`): S.
        code_width (`int`): Width of what is quantised.
        levels, codes (`int`): Of the quantiser.
    """

    def __init__(self, inputs: int, *, hidden: int, width: int, code_width: int, levels: int, codes: int) -> None:
        super().__init__()
        self.fuse, self.encode = _mlp(inputs, hidden, width), _mlp(width, hidden, code_width)
        self.quantize, self.decode = ResidualQuantizer(levels, codes, code_width), _mlp(code_width, hidden, inputs)

    def rebuild(self, fused: Tensor, wanted: Tensor) -> Rebuilt:
        """Of SC vectors `(N, S)` and the inputs `(N, W)` that they should tell of."""
        quantized = self.quantize(self.encode(fused))
        error = (self.decode(quantized.vectors) - wanted).square().sum(1)
        return Rebuilt(error + quantized.loss, error)

    def autoencode(self, fused: Tensor, wanted: Tensor) -> Tensor:
        """The squared error `(N,)` without quantisation."""
        return (self.decode(self.encode(fused)) - wanted).square().sum(1)


def u2i_loss(users: Tensor, items: Tensor, others: Tensor) -> Tensor:
    """-log softmax over the items of the batch, `(B,)`: the loss by which a user finds the item chosen among the
    others.

    Args:
        users: SC vectors `(B, S)` of users.
        items: SC vectors `(B, S)` of an item that each has chosen.
        others: `(B, B)`, True where the item of the column is no negative of the row's user, who chose it as well. The
            diagonal may hold anything.
    """
    scores = users @ items.T
    is_own = torch.eye(len(users), dtype=torch.bool, device=users.device)
    return functional.cross_entropy(
        scores.masked_fill(others & ~is_own, -torch.inf),
        torch.arange(len(users), device=users.device),
        reduction="none",
    )


def _mlp(inputs: int, hidden: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(inputs, hidden), nn.GELU(), nn.Linear(hidden, outputs))
