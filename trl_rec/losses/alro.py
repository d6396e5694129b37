"""Implements the two list-wise losses of ALRO, for a model that reads candidates and answers with their ranking.

Both losses read tables of log-probabilities. Entry (k, i) of a table is the log-probability that answer position k
names candidate i. `soft_lambda_loss` takes one table per list, and penalises candidates at wrong positions.
`permutation_loss` takes two tables per list, for two orders of the candidates in the prompt, and penalises differences
between the tables. The caller has to sort the columns, so that column i belongs to the same candidate in both. If
a list has n candidates, only its first n answer positions count, and the log-probabilities of its candidates at these
positions must be finite.

Training also needs a supervised loss on the tokens of the answer, which the trainer adds.

Legend: B lists; m candidates (padded) and m answer positions; k and l are positions, i and j are candidates.
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
    r"""Computes the soft lambda loss (after ALRO, arXiv 2403.19181): LambdaLoss's NDCG-Loss2 on expected positions.

    Positions are counted from 1. Let $s$ be the expected positions of the candidates, $r$ their ratings, and $y$ the
    log-probabilities or the probabilities (see `score`):

    $$ s_i = \sum_k k \frac{\exp(\gamma y_{ki})}{\sum_l \exp(\gamma y_{li})} \qquad
       L = \frac{1}{P} \sum_{r_i > r_j} \delta_{ij} |G_i - G_j| \log_2(1 + \exp(\sigma (s_i - s_j))) $$

    $$ G_i = \frac{2^{r_i} - 1}{maxDCG(r)} \qquad D(k) = \log_2(1 + k) \qquad
       \delta_{ij} = \left|\frac{1}{D(d_{ij})} - \frac{1}{D(d_{ij} + 1)}\right| $$

    where $P$ is the number of pairs in the sum, $maxDCG(r)$ is the DCG of the candidates in the order of their
    ratings, and $d_{ij}$ is the distance between two candidates in the order that `delta` selects. The softmax of each
    candidate is taken over positions. With a softmax over candidates, a model could minimise the loss without learning
    to rank: its expected positions would be well sorted, but it would decode the candidates in nearly reversed order.
    If all ratings of a list are equal, the loss and its gradient are 0. Otherwise, the loss is positive even for a
    perfect answer, because $\log_2(1 + \exp(x))$ is positive for every $x$.

    Reconstruction: the full text of the paper was not available. $\delta$, $G$, $D$ and $s$ follow a summary of the
    paper. The summary gives the sum over pairs only in part. We completed the sum so that preferred candidates move to
    earlier positions. Dividing by $P$ and using log-probabilities for $y$ are our choices.

    Args:
        logps (`torch.Tensor` of shape `(B, m, m)`): Log-probability that answer position k (dim 1) names candidate i
            (dim 2), normalised over the candidates of the list. bfloat16 and float16 inputs are computed in float32.
        ratings (`torch.Tensor` of shape `(B, m)`): Non-negative ratings; 0 for a candidate without a rating.
        gold_rank (`torch.Tensor` of shape `(B, m)`): `int64`, the rank of each candidate in the target answer,
            counted from 0. Higher ratings come first.
        mask (`torch.Tensor` of shape `(B, m)` or `None`): True where there is a candidate; `None` if all entries are
            candidates. Entries of missing candidates have no effect, even if infinite or NaN.
        gamma (`float`, *optional*, defaults to `1.0`): Sharpness of the softmax over positions. With `score="prob"`,
            use values between 8 and 10.
        sigma (`float`, *optional*, defaults to `1.0`): Sharpness of the pairwise comparison of expected positions.
        score (`str`, *optional*, defaults to `"logprob"`): Whether y is the log-probability (`"logprob"`) or the
            probability (`"prob"`). With `"logprob"` and `gamma=1`, the softmax is the posterior of a candidate's
            position under a uniform prior over positions.
        delta (`str`, *optional*, defaults to `"target"`): With `"target"`, distances are measured in the order of
            `gold_rank`; with `"model"`, in the order of the expected positions, without a gradient.

    Returns:
        [`LossOutput`]: The loss, `(B,)`, and the metric `position`, `(B, m)`: the expected positions, counted from 1,
        and 0 for missing candidates.
    """
    _check_soft_lambda(gamma, sigma, score, delta)
    mask = _all_true(ratings) if mask is None else mask

    # 1. Compute the expected positions, the gains, and the delta of each pair.
    position = _expected_position(logps, mask, gamma, score)  # (B, m)
    gains = _gains(ratings, mask, position.dtype)  # (B, m)
    rank = gold_rank if delta == "target" else _rank(position.detach(), mask)
    gap_weight = _gap_weight(rank, position.dtype)  # (B, m, m)

    # 2. Compute the logarithm in L for each pair. It is small if candidate i (dim 1) comes well before j (dim 2).
    preferred = (ratings[:, :, None] > ratings[:, None, :]) & mask[:, :, None] & mask[:, None, :]
    weight = gap_weight * (gains[:, :, None] - gains[:, None, :])
    bits = -F.logsigmoid(sigma * (position[:, None, :] - position[:, :, None])) / math.log(2)

    # 3. Average over pairs.
    loss = torch.where(preferred, weight * bits, 0).sum((1, 2)) / preferred.sum((1, 2)).clamp(min=1)
    return LossOutput(loss, {"position": torch.where(mask, position.detach(), 0)})


def permutation_loss(
    logps: Tensor, permuted_logps: Tensor, mask: Tensor | None, *, distance: Distance = "jsd"
) -> LossOutput:
    r"""Computes the permutation-sensitive loss (after ALRO, arXiv 2403.19181): how much the answer changes with the
    order of the candidates in the prompt.

    The candidates are shown in two orders. At each answer position, this gives two distributions over candidates, $p$
    and $q$. The loss is the distance between $p$ and $q$, averaged over positions. With $M = (p + q) / 2$:

    $$ jsd = \frac{KL(p\|M) + KL(q\|M)}{2} \qquad symkl = \frac{KL(p\|q) + KL(q\|p)}{2} \qquad ce = KL(q\|p) $$

    `jsd` is at most log 2. `ce` treats q as a constant, so it has the same gradient as the cross-entropy against q.
    There is no option for a cross-entropy with a gradient through both p and q, because this gradient would sharpen p
    and q even if they are equal. If p and q are equal, all three distances and their gradients with respect to the
    logits are 0.

    Reconstruction: no source states which distance the paper uses, or how many orders of the candidates it compares.

    Args:
        logps (`torch.Tensor` of shape `(B, m, m)`): Log-probabilities, as in [`soft_lambda_loss`].
        permuted_logps (`torch.Tensor` of shape `(B, m, m)`): Log-probabilities for the prompt with the other order of
            the candidates. The columns must be in the same order as in `logps`.
        mask (`torch.Tensor` of shape `(B, m)` or `None`): True where there is a candidate; `None` if all entries are
            candidates. Entries of missing candidates have no effect, even if infinite or NaN.
        distance (`str`, *optional*, defaults to `"jsd"`): `"jsd"`, `"symkl"` or `"ce"`.

    Returns:
        [`LossOutput`]: The loss, `(B,)`, and no metrics.
    """
    if distance not in get_args(Distance):
        raise ValueError(f"`distance` must be 'jsd', 'symkl' or 'ce', but is {distance!r}.")
    mask = _all_true(logps[:, 0]) if mask is None else mask

    # 1. Set masked log-probabilities to 0.
    counts = _table_mask(mask)
    p = torch.where(counts, at_least_float32(logps), 0)
    q = torch.where(counts, at_least_float32(permuted_logps), 0)

    # 2. Compute the summands of the distance.
    if distance == "jsd":
        middle = torch.logaddexp(p, q) - math.log(2)
        summands = (p.exp() * (p - middle) + q.exp() * (q - middle)) / 2
    elif distance == "symkl":
        summands = (p.exp() - q.exp()) * (p - q) / 2
    else:
        q = q.detach()
        summands = q.exp() * (q - p)

    # 3. Sum over candidates and average over positions.
    loss = torch.where(counts, summands, 0).sum((1, 2)) / mask.sum(-1).clamp(min=1)
    return LossOutput(loss, {})


def _expected_position(logps: Tensor, mask: Tensor, gamma: float, score: str) -> Tensor:
    """Computes the expected positions s, `(B, m)`, counted from 1, in at least float32. Masked entries are finite but
    meaningless."""
    counts = _table_mask(mask)
    values = torch.where(counts, at_least_float32(logps), 0)
    if score == "prob":
        values = values.exp()

    # Masked entries get the most negative finite number instead of -inf, because the column of a missing candidate is
    # fully masked, and its softmax would otherwise be NaN.
    weights = torch.where(counts, gamma * values, torch.finfo(values.dtype).min).softmax(1)  # (B, m, m)
    position = torch.arange(1, mask.shape[1] + 1, device=weights.device, dtype=weights.dtype)
    # Sum products instead of using a matrix product, which would be computed in bfloat16 under autocast.
    return (position[:, None] * weights).sum(1)


def _table_mask(mask: Tensor) -> Tensor:
    """Returns a mask `(B, m, m)` that is True for the n candidates of a list at its first n answer positions."""
    position = torch.arange(mask.shape[1], device=mask.device)
    return (position < mask.sum(-1, keepdim=True))[:, :, None] & mask[:, None, :]


def _gains(ratings: Tensor, mask: Tensor, dtype: torch.dtype) -> Tensor:
    """Computes the gains G of the candidates, `(B, m)`. Masked entries are 0."""
    # Subtract the best rating from every exponent, because 2 ** rating overflows for ratings above 127. This
    # multiplies all gains by 2 ** -best, a factor that cancels in G.
    ratings = torch.where(mask, ratings, 0).to(dtype)
    best = ratings.amax(-1, keepdim=True)
    gains = torch.exp2(ratings - best) - torch.exp2(-best)

    discounts = torch.arange(2, ratings.shape[1] + 2, device=ratings.device, dtype=dtype).log2()
    max_dcg = (gains.sort(-1, descending=True).values / discounts).sum(-1, keepdim=True)
    return gains / max_dcg.where(max_dcg > 0, 1)


def _rank(position: Tensor, mask: Tensor) -> Tensor:
    """Ranks the candidates by expected position, `(B, m)`, counted from 0. Candidates with equal positions are ranked
    by column, and missing candidates come last."""
    return position.masked_fill(~mask, torch.inf).argsort(dim=-1, stable=True).argsort(-1)


def _gap_weight(rank: Tensor, dtype: torch.dtype) -> Tensor:
    """Computes the delta of each pair, `(B, m, m)`. The diagonal is unused. Distances there are set to 1, to avoid
    dividing by D(0) = 0."""
    distance = (rank[:, :, None] - rank[:, None, :]).abs().clamp(min=1).to(dtype)
    return 1 / torch.log2(1 + distance) - 1 / torch.log2(2 + distance)


def _all_true(tensor: Tensor) -> Tensor:
    return torch.ones_like(tensor, dtype=torch.bool)


def _check_soft_lambda(gamma: float, sigma: float, score: str, delta: str) -> None:
    if gamma <= 0:
        raise ValueError(
            f"`gamma` must be positive, but is {gamma}; at 0, all expected positions are equal. Set it to 1."
        )
    if sigma <= 0:
        raise ValueError(f"`sigma` must be positive, but is {sigma}; at 0, the order has no effect. Set it to 1.")
    if score not in get_args(Score):
        raise ValueError(f"`score` must be 'logprob' or 'prob', but is {score!r}.")
    if delta not in get_args(Delta):
        raise ValueError(f"`delta` must be 'target' or 'model', but is {delta!r}.")
