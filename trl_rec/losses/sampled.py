"""Implements sampled softmax: cross-entropy over a large catalogue, estimated from a few sampled items per target.

Each item is one token.

Legend: N positions, L sampled columns, K columns (among the L) that count at a position.
"""

from __future__ import annotations

import torch
from torch import Tensor

from trl_rec.losses.output import LossOutput, at_least_float32


def sampled_softmax_loss(
    logits: Tensor, log_q: Tensor, counted: Tensor | None = None, *, temperature: float = 1.0
) -> LossOutput:
    r"""Computes the cross-entropy against sampled negatives, with one value per position, and corrects it for the
    sampling probabilities of the negatives (Bengio and Senécal, 2008; Jean et al., arXiv 1412.2007).

    Let $y$ be the target, $s$ the logits divided by the temperature, and $j_1, \dots, j_K$ negatives that are drawn
    with replacement from a distribution $q$ over all tokens but the target:

    $$ L = -s_y + \log\Big(e^{s_y} + \sum_{k=1}^{K} e^{s_{j_k} - \log(K q_{j_k})}\Big) $$

    The expected value of the sum over $k$ is exactly the full sum $\sum_{j \neq y} e^{s_j}$. The loss contains the
    logarithm of this estimate, so the expected value of the loss is below the full cross-entropy. This bias vanishes
    as $K$ grows. Without negatives, the loss and its gradient are 0.

    Args:
        logits (`torch.Tensor` of shape `(N, 1 + L)`): Logits of the target, in column 0, and of the sampled negatives.
            bfloat16 and float16 inputs are computed in float32.
        log_q (`torch.Tensor` of shape `(N, L)`): Logarithm of the probability $q$ of each negative.
        counted (`torch.Tensor` of shape `(N, L)`, *optional*): True for the K negatives that count at each position.
            The other columns have no effect, even if infinite or NaN. By default, all L columns count.
        temperature (`float`, *optional*, defaults to `1.0`): Divisor of the logits.

    Returns:
        [`LossOutput`]: The loss, `(N,)`, and the metric `sampled_ce`, which is the same value, detached.
    """
    if temperature <= 0:
        raise ValueError(
            f"`temperature` must be positive, but is {temperature}; it divides the logits. Set it to 1, for example."
        )
    scores = at_least_float32(logits) / temperature
    if counted is None:
        counted = torch.ones_like(log_q, dtype=torch.bool)

    num_draws = counted.sum(-1, keepdim=True).to(scores)  # (N, 1)
    corrected = scores[:, 1:] - log_q.to(scores) - num_draws.log()
    corrected = torch.where(counted, corrected, -torch.inf)  # (N, L)
    loss = torch.cat([scores[:, :1], corrected], 1).logsumexp(-1) - scores[:, 0]
    return LossOutput(loss, {"sampled_ce": loss.detach()})
