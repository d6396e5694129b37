"""BEAR: cross-entropy plus a term on the margin between the target token and the last token that a beam search keeps.

The margin is the target's log-probability minus a threshold, which is detached as in the authors' code. A margin of
logits has the same value, because the normaliser cancels, but another gradient. With log-probabilities the gradient is
zero where the target is the only legal token.

Legend: N positions, C tokens to choose from: the legal ones (padded), or the vocabulary.
"""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import Tensor
from torch.nn import functional as F

from trl_rec.losses.output import LossOutput, at_least_float32


Variant = Literal["paper", "survival"]


def bear_loss(
    logits: Tensor,
    target: Tensor,
    legal: Tensor | None,
    *,
    num_beams: int,
    weight: float,
    sharpness: float,
    temperature: float = 1.0,
    variant: Variant = "paper",
) -> LossOutput:
    r"""Beam-search-aware regularisation (BEAR, arXiv 2601.22925), one value per position.

    Let $b$ be the smaller of `num_beams` and the number of legal tokens, $p$ the softmax over the legal tokens,
    $p_{(b)}$ its $b$-th largest value, held constant, and $\Delta = \log p_y - \log p_{(b)}$:

    $$ L_{paper} = -\log p_y + w \log \sigma(-\Delta / \xi) $$
    $$ L_{survival} = -\log p_y - w \log \sigma(\Delta / \xi) $$

    Both multiply the gradient of the cross-entropy by a factor between 1 and $1 + w / \xi$. `paper` gives the larger
    factor to targets already inside the beam; its value is unbounded below, so do not choose checkpoints by it.
    `survival` gives the larger factor to targets outside the beam. Weight 0 reduces to cross-entropy: MSL with
    `legal`, plain SFT without. A position with one legal token has zero gradient and the constant value
    $-w \log 2$ (`paper`) or $w \log 2$ (`survival`).

    Reconstruction: the paper's body was not available; `paper` follows two independent notes on it. The authors' code
    weights the cross-entropy by a detached factor. With its options `topk_weight` and `topk_tau`, it has the gradient
    of `paper` at `weight = topk_weight * topk_tau` and `sharpness = topk_tau`. Deviation: that code then divides by
    the sum of the factors over a micro-batch; nothing is reduced here.

    Args:
        logits (`torch.Tensor` of shape `(N, C)`): bfloat16 and float16 are computed in float32.
        target (`torch.Tensor` of shape `(N,)`): `int64`, the column of the target token. It must be legal.
        legal (`torch.Tensor` of shape `(N, C)` or `None`): True where a token may follow; `None` if all may. The
            logits of other tokens have no effect, even if infinite or NaN.
        num_beams (`int`): The paper's B, the width of the beam search in which the target is to survive.
        weight (`float`): The paper's lambda.
        sharpness (`float`): The paper's xi, the unit in which the margin is measured.
        temperature (`float`, *optional*, defaults to `1.0`): Divides the logits first.
        variant (`str`, *optional*, defaults to `"paper"`): `"paper"` or `"survival"`.

    Returns:
        [`LossOutput`]: The loss, `(N,)`, and the metrics `ce`, `margin`, and `pruned`: 1 where the target is below the
        b-th largest. A target that ties with the b-th largest counts as kept.
    """
    _check(num_beams, sharpness, temperature, variant)

    log_probs = _log_softmax(logits, legal, temperature)  # (N, C)
    chosen = log_probs.gather(-1, target[:, None]).squeeze(-1)  # (N,)
    margin = chosen - _threshold(log_probs.detach(), num_beams)
    if variant == "paper":
        loss = weight * F.logsigmoid(-margin / sharpness) - chosen
    else:
        loss = -weight * F.logsigmoid(margin / sharpness) - chosen

    margin = margin.detach()
    return LossOutput(loss, {"ce": -chosen.detach(), "margin": margin, "pruned": (margin < 0).to(margin.dtype)})


def _log_softmax(logits: Tensor, legal: Tensor | None, temperature: float) -> Tensor:
    """`(N, C)`, at least float32, -inf where a token is not legal."""
    # Each step that can be skipped saves a pass over the vocabulary.
    if legal is not None:
        logits = torch.where(legal, logits, -torch.inf)
    logits = at_least_float32(logits)
    if temperature != 1:
        logits = logits / temperature
    return logits.log_softmax(-1)


def _threshold(log_probs: Tensor, num_beams: int) -> Tensor:
    """`(N,)`: the b-th largest value of each row."""
    # Illegal tokens are -inf, so the smallest finite value among the `num_beams` largest is the b-th. This avoids
    # counting the legal tokens.
    best = log_probs.topk(min(num_beams, log_probs.shape[-1]), sorted=False).values
    return best.where(best.isfinite(), torch.inf).amin(-1)


def _check(num_beams: int, sharpness: float, temperature: float, variant: str) -> None:
    if num_beams < 1:
        raise ValueError(
            f"`num_beams` is {num_beams}, but a beam search keeps at least 1: give the width used to decode."
        )
    if sharpness <= 0:
        raise ValueError(
            f"`sharpness` is {sharpness}, but it divides the margin: give a positive number, such as 2.75."
        )
    if temperature <= 0:
        raise ValueError(
            f"`temperature` is {temperature}, but it divides the logits: give a positive number, such as 1."
        )
    if variant not in get_args(Variant):
        raise ValueError(f"`variant` is {variant!r}, but BEAR has two: give 'paper' or 'survival'.")
