"""The two list-wise losses of ALRO, for a model that writes its ranking of the candidates as a list.

`soft_lambda_loss` scores where the candidates are placed, `permutation_loss` how much the ranking depends on the order
of the candidates in the prompt. Both read one table per list: entry (k, i) is the log-probability that answer position
k names candidate i. The columns are candidates, not slots of the prompt; the caller maps slots back to candidates.
With n candidates, the first n answer positions count, and the table must be finite there.

Training also needs a supervised term on the tokens of the answer, which the trainer adds.

Legend: B lists, m candidates (padded) and as many answer positions; k and l are positions, i and j candidates.
"""

from __future__ import annotations

import math
from typing import Literal, get_args

import torch
from torch import Tensor
from torch.nn import functional as F

from trl_rec.losses.output import LossOutput, at_least_float32


Score = Literal["logprob", "prob"]
Delta = Literal["target", "model"]
Distance = Literal["jsd", "symkl", "ce"]


def soft_lambda_loss(
    logps: Tensor,
    ratings: Tensor,
    gold_rank: Tensor,
    mask: Tensor | None,
    *,
    gamma: float = 1.0,
    sigma: float = 1.0,
    score: Score = "logprob",
    delta: Delta = "target",
) -> LossOutput:
    r"""Soft lambda loss (after ALRO, arXiv 2403.19181): NDCG-Loss2 of LambdaLoss on expected positions.

    With $y$ the log-probabilities, or the probabilities, and positions counted from 1:

    $$ s_i = \sum_k k \frac{\exp(\gamma y_{ki})}{\sum_l \exp(\gamma y_{li})} \qquad
       L = \frac{1}{P} \sum_{r_i > r_j} \delta_{ij} |G_i - G_j| \log_2(1 + \exp(\sigma (s_i - s_j))) $$

    $$ G_i = \frac{2^{r_i} - 1}{maxDCG(r)} \qquad D(k) = \log_2(1 + k) \qquad
       \delta_{ij} = \left|\frac{1}{D(d_{ij})} - \frac{1}{D(d_{ij} + 1)}\right| $$

    where $P$ is the number of pairs and $d_{ij}$ the distance of the two candidates in the gold order. The softmax
    runs over positions, for one candidate at a time. A softmax over candidates can be cheated: such models sort well
    by expected position, but decode in nearly reversed order. The loss never reaches 0, since neighbours are only 1
    apart even in a perfect answer. A list whose ratings are all equal has loss 0 and gradient 0.

    Reconstruction: the paper's body was not available. $\delta$, $G$, $D$ and $s$ follow a summary of it. The sum over
    pairs was cut off in that summary; we completed it so that preferred candidates move to small positions. Dividing
    by $P$ and using log-probabilities for $y$ are our choices.

    Args:
        logps (`torch.Tensor` of shape `(B, m, m)`): Log-probability, over the identifiers of the list, that position k
            (dim 1) names candidate i (dim 2). bfloat16 and float16 are computed in float32.
        ratings (`torch.Tensor` of shape `(B, m)`): Not negative; 0 for a candidate without a rating.
        gold_rank (`torch.Tensor` of shape `(B, m)`): `int64`, the place of each candidate in the answer to be learned,
            from 0. Better ratings come first.
        mask (`torch.Tensor` of shape `(B, m)` or `None`): True where there is a candidate; `None` if all entries are
            candidates. Masked entries have no effect, even if infinite or NaN.
        gamma (`float`, *optional*, defaults to `1.0`): Sharpness of the softmax over positions. With `score="prob"`,
            about 8 to 10 works.
        sigma (`float`, *optional*, defaults to `1.0`): Sharpness of the comparison of two positions.
        score (`str`, *optional*, defaults to `"logprob"`): What y is: `"logprob"` or `"prob"`. With `"logprob"` and
            `gamma=1`, the softmax is the posterior of a candidate's position under a uniform prior over positions.
        delta (`str`, *optional*, defaults to `"target"`): `"target"` measures the distance in the gold order,
            `"model"` in the order of the expected positions, held constant.

    Returns:
        [`LossOutput`]: The loss, `(B,)`, and the metric `position`, `(B, m)`: the expected positions from 1, and 0
        where masked.
    """
    _check_soft_lambda(gamma, sigma, score, delta)
    mask = _all_true(ratings) if mask is None else mask

    # 1. Expected positions, gains, and the weight of each pair's distance.
    position = _expected_position(logps, mask, gamma, score)  # (B, m)
    gains = _gains(ratings, mask, position.dtype)  # (B, m)
    rank = gold_rank if delta == "target" else _rank(position.detach(), mask)
    gap_weight = _gap_weight(rank, position.dtype)  # (B, m, m)

    # 2. The logarithm for each pair: small where candidate i (dim 1) comes well before candidate j (dim 2).
    preferred = (ratings[:, :, None] > ratings[:, None, :]) & mask[:, :, None] & mask[:, None, :]
    weight = gap_weight * (gains[:, :, None] - gains[:, None, :])
    bits = -F.logsigmoid(sigma * (position[:, None, :] - position[:, :, None])) / math.log(2)

    # 3. The mean over pairs.
    loss = torch.where(preferred, weight * bits, 0).sum((1, 2)) / preferred.sum((1, 2)).clamp(min=1)
    return LossOutput(loss, {"position": torch.where(mask, position.detach(), 0)})


def permutation_loss(
    logps: Tensor, permuted_logps: Tensor, mask: Tensor | None, *, distance: Distance = "jsd"
) -> LossOutput:
    r"""Permutation-sensitive learning (after ALRO, arXiv 2403.19181): how much the order of the prompt changes the
    answer.

    Two orders of the same candidates in the prompt give two distributions over candidates at each answer position,
    $p$ and $q$. The loss is the mean of their distance over positions. With $M = (p + q) / 2$:

    $$ jsd = \frac{KL(p\|M) + KL(q\|M)}{2} \qquad symkl = \frac{KL(p\|q) + KL(q\|p)}{2} \qquad ce = KL(q\|p) $$

    `jsd` is at most log 2. `ce` holds q constant, so it has the gradient of the cross-entropy against q.
    Cross-entropy with a gradient through both is not offered: once p and q are equal, it would keep making both more
    certain. If p and q are equal, all three distances are 0, and so are their gradients with respect to the logits.

    Reconstruction: no source states which distance is used, or for how many orders.

    Args:
        logps (`torch.Tensor` of shape `(B, m, m)`): As in [`soft_lambda_loss`].
        permuted_logps (`torch.Tensor` of shape `(B, m, m)`): The same candidates in the same columns, for the prompt
            with the other order.
        mask (`torch.Tensor` of shape `(B, m)` or `None`): True where there is a candidate; `None` if all entries are
            candidates. Masked entries have no effect, even if infinite or NaN.
        distance (`str`, *optional*, defaults to `"jsd"`): `"jsd"`, `"symkl"` or `"ce"`.

    Returns:
        [`LossOutput`]: The loss, `(B,)`, and no metrics.
    """
    if distance not in get_args(Distance):
        raise ValueError(f"`distance` is {distance!r}, but there are three: give 'jsd', 'symkl' or 'ce'.")
    mask = _all_true(logps[:, 0]) if mask is None else mask

    # 1. Log-probabilities, 0 where masked.
    counts = _table_mask(mask)
    p = torch.where(counts, at_least_float32(logps), 0)
    q = torch.where(counts, at_least_float32(permuted_logps), 0)

    # 2. The terms of the distance.
    if distance == "jsd":
        middle = torch.logaddexp(p, q) - math.log(2)
        summands = (p.exp() * (p - middle) + q.exp() * (q - middle)) / 2
    elif distance == "symkl":
        summands = (p.exp() - q.exp()) * (p - q) / 2
    else:
        q = q.detach()
        summands = q.exp() * (q - p)

    # 3. Summed over candidates, averaged over positions.
    loss = torch.where(counts, summands, 0).sum((1, 2)) / mask.sum(-1).clamp(min=1)
    return LossOutput(loss, {})


def _expected_position(logps: Tensor, mask: Tensor, gamma: float, score: str) -> Tensor:
    """The expected positions s, `(B, m)`, at least float32, counted from 1; finite but meaningless where masked."""
    counts = _table_mask(mask)
    values = torch.where(counts, at_least_float32(logps), 0)
    if score == "prob":
        values = values.exp()

    # Masked entries get the least finite number. The column of a missing candidate contains nothing else, and a
    # softmax over -inf alone would be NaN.
    weights = torch.where(counts, gamma * values, torch.finfo(values.dtype).min).softmax(1)  # (B, m, m)
    position = torch.arange(1, mask.shape[1] + 1, device=weights.device, dtype=weights.dtype)
    # Not a matrix product, which autocast would compute in bfloat16.
    return (position[:, None] * weights).sum(1)


def _table_mask(mask: Tensor) -> Tensor:
    """`(B, m, m)`: True at the candidates of the first n answer positions, where n is the number of candidates."""
    position = torch.arange(mask.shape[1], device=mask.device)
    return (position < mask.sum(-1, keepdim=True))[:, :, None] & mask[:, None, :]


def _gains(ratings: Tensor, mask: Tensor, dtype: torch.dtype) -> Tensor:
    """The gains G of the candidates, `(B, m)`; 0 where masked."""
    # The best rating is subtracted from every exponent, which cancels in G; otherwise ratings above 127 overflow.
    ratings = torch.where(mask, ratings, 0).to(dtype)
    best = ratings.amax(-1, keepdim=True)
    gains = torch.exp2(ratings - best) - torch.exp2(-best)

    discounts = torch.arange(2, ratings.shape[1] + 2, device=ratings.device, dtype=dtype).log2()
    max_dcg = (gains.sort(-1, descending=True).values / discounts).sum(-1, keepdim=True)
    return gains / max_dcg.where(max_dcg > 0, 1)


def _rank(position: Tensor, mask: Tensor) -> Tensor:
    """`(B, m)`: the rank of each candidate by expected position, from 0; ties by column, missing candidates last."""
    return position.masked_fill(~mask, torch.inf).argsort(dim=-1, stable=True).argsort(-1)


def _gap_weight(rank: Tensor, dtype: torch.dtype) -> Tensor:
    """The delta of each pair, `(B, m, m)`. The diagonal, which no pair uses, has distance 1, because D(0) is 0."""
    distance = (rank[:, :, None] - rank[:, None, :]).abs().clamp(min=1).to(dtype)
    return 1 / torch.log2(1 + distance) - 1 / torch.log2(2 + distance)


def _all_true(tensor: Tensor) -> Tensor:
    return torch.ones_like(tensor, dtype=torch.bool)


def _check_soft_lambda(gamma: float, sigma: float, score: str, delta: str) -> None:
    if gamma <= 0:
        raise ValueError(
            f"`gamma` is {gamma}, but at 0 all positions are the same: give a positive number, such as 1."
        )
    if sigma <= 0:
        raise ValueError(f"`sigma` is {sigma}, but at 0 no order is preferred: give a positive number, such as 1.")
    if score not in get_args(Score):
        raise ValueError(f"`score` is {score!r}, but there are two: give 'logprob' or 'prob'.")
    if delta not in get_args(Delta):
        raise ValueError(f"`delta` is {delta!r}, but there are two: give 'target' or 'model'.")
