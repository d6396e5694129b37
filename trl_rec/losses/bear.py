"""Implements the loss of BEAR: cross-entropy plus a term that depends on whether beam search keeps the target token.

The term depends on a margin: the log-probability of the target token minus a threshold, which is the log-probability
of the least likely token that the search keeps. As in the authors' code, the threshold is detached. The margin must
not be computed as the difference between the logits of the two tokens, which has the same value but a different
gradient. The gradient of the margin is zero where the target is the only legal token.

Legend: N positions; C tokens to choose from, which are either the legal tokens (padded) or the whole vocabulary.
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
    smoothing: float = 0.0,
) -> LossOutput:
    r"""Computes the loss of beam-search-aware regularisation (BEAR, arXiv 2601.22925), with one value per position.

    Let $y$ be the target, $p$ the softmax over the legal tokens, and $b$ the smaller of `num_beams` and the number of
    legal tokens. Let $p_{(b)}$ be the $b$-th largest value of $p$, held constant, and
    $\Delta = \log p_y - \log p_{(b)}$:

    $$ L_{paper} = -\log p_y + w \log \sigma(-\Delta / \xi) $$
    $$ L_{survival} = -\log p_y - w \log \sigma(\Delta / \xi) $$

    With label smoothing $\epsilon$ over the $n$ legal tokens, the first term, $-\log p_y$, becomes

    $$ -(1 - \epsilon) \log p_y - \frac{\epsilon}{n} \sum_j \log p_j $$

    Without smoothing, both variants multiply the gradient of the cross-entropy by a factor between 1 and
    $1 + w / \xi$. The variant `paper` gives larger factors to targets that are already inside the beam. Its loss has
    no lower bound, so do not use this loss to select checkpoints. The variant `survival` gives larger factors to
    targets outside the beam. With weight 0, both variants reduce to cross-entropy: to MSL (masked softmax loss, over
    the legal tokens) if `legal` is given, and to plain SFT (over the whole vocabulary) if `legal` is `None`. At a
    position with one legal token, the gradient is zero and the loss is constant: $-w \log 2$ (`paper`) or $w \log 2$
    (`survival`).

    Reconstruction: the full text of the paper was not available; `paper` follows two independent notes on the paper.
    The authors' code multiplies the cross-entropy by a detached factor, which depends on the options `topk_weight` and
    `topk_tau`. The product has the same gradient as `paper` with `weight = topk_weight * topk_tau` and
    `sharpness = topk_tau`. Deviation: the authors' code then divides by the sum of the factors over a micro-batch;
    this function returns one value per position instead.

    Args:
        logits (`torch.Tensor` of shape `(N, C)`): Logits. bfloat16 and float16 inputs are computed in float32.
        target (`torch.Tensor` of shape `(N,)`): `int64`, the column of the target token, which must be legal.
        legal (`torch.Tensor` of shape `(N, C)` or `None`): True where a token is legal; `None` if all tokens are
            legal. The logits of illegal tokens have no effect, even if infinite or NaN.
        num_beams (`int`): Number of beams of the beam search used for decoding, the paper's B.
        weight (`float`): Weight of the margin term: w in the formulas above, lambda in the paper.
        sharpness (`float`): Divisor of the margin, the paper's xi.
        temperature (`float`, *optional*, defaults to `1.0`): Divisor of the logits, applied before the softmax.
        variant (`str`, *optional*, defaults to `"paper"`): `"paper"` or `"survival"`.
        smoothing (`float`, *optional*, defaults to `0.0`): Label smoothing: the share of the label's probability
            mass that is spread evenly over the legal tokens, including the target. The margin term is not smoothed.

    Returns:
        [`LossOutput`]: The loss, `(N,)`, and the metrics `ce` (without smoothing), `margin` and `pruned` (1 where the
        target is less likely than the b-th likeliest token; a target as likely as this token counts as kept).
    """
    _check(num_beams, sharpness, temperature, variant, smoothing)

    log_probs = _log_softmax(logits, legal, temperature)  # (N, C)
    chosen = log_probs.gather(-1, target[:, None]).squeeze(-1)  # (N,)
    margin = chosen - _threshold(log_probs.detach(), num_beams)
    learned = chosen if smoothing == 0 else (1 - smoothing) * chosen + smoothing * _mean(log_probs, legal)
    if variant == "paper":
        loss = weight * F.logsigmoid(-margin / sharpness) - learned
    else:
        loss = -weight * F.logsigmoid(margin / sharpness) - learned

    margin = margin.detach()
    return LossOutput(loss, {"ce": -chosen.detach(), "margin": margin, "pruned": (margin < 0).to(margin.dtype)})


def _log_softmax(logits: Tensor, legal: Tensor | None, temperature: float) -> Tensor:
    """Returns the log-probabilities, `(N, C)`, in at least float32. Illegal tokens get -inf."""
    # Skip steps that are not needed, because each step reads all logits.
    if legal is not None:
        logits = torch.where(legal, logits, -torch.inf)
    logits = at_least_float32(logits)
    if temperature != 1:
        logits = logits / temperature
    return logits.log_softmax(-1)


def _mean(log_probs: Tensor, legal: Tensor | None) -> Tensor:
    """Returns the mean log-probability of the legal tokens of each row, `(N,)`."""
    if legal is None:
        return log_probs.mean(-1)
    return log_probs.where(legal, 0.0).sum(-1) / legal.sum(-1)


def _threshold(log_probs: Tensor, num_beams: int) -> Tensor:
    """Returns the b-th largest log-probability of each row, `(N,)`."""
    # Illegal tokens have the value -inf, so the b-th largest value is the smallest finite value among the `num_beams`
    # largest values. Finding it in this way avoids counting the legal tokens.
    best = log_probs.topk(min(num_beams, log_probs.shape[-1]), sorted=False).values
    return best.where(best.isfinite(), torch.inf).amin(-1)


def _check(num_beams: int, sharpness: float, temperature: float, variant: str, smoothing: float) -> None:
    if num_beams < 1:
        raise ValueError(
            f"`num_beams` must be at least 1, but is {num_beams}; set it to the number of beams used for decoding."
        )
    if sharpness <= 0:
        raise ValueError(
            f"`sharpness` must be positive, but is {sharpness}; it divides the margin. Set it to 2.75, for example."
        )
    if temperature <= 0:
        raise ValueError(
            f"`temperature` must be positive, but is {temperature}; it divides the logits. Set it to 1, for example."
        )
    if variant not in get_args(Variant):
        raise ValueError(f"`variant` must be 'paper' or 'survival', but is {variant!r}.")
    if not 0 <= smoothing < 1:
        raise ValueError(
            f"`smoothing` must be at least 0 and below 1, but is {smoothing}; it is a share of the label's "
            "probability mass. Set it to 0.1, for example."
        )
