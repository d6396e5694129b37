"""ALRO's two losses on a ranking written out as a list: one on the places of the candidates, one on the order of the
prompt.

Both read a table per list: in row k the log-probabilities that answer position k names each candidate. Its columns are
candidates, not slots of the prompt: the caller maps them back. A position k counts if the list has more than k
candidates, whichever candidates those are; the table must be finite there.

The supervised term on the answer's tokens is needed beside them. It is not here.

Legend: B lists, m candidates (padded) and as many answer positions; k a position, i and j candidates.
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
    r"""Soft lambda loss (after ALRO, arXiv 2403.19181): NDCG-Loss2 of LambdaLoss on expected positions, one value a
    list.

    With $y$ the log-probabilities, or the probabilities, and positions counted from 1:

    $$ s_i = \sum_k k \frac{\exp(\gamma y_{ki})}{\sum_l \exp(\gamma y_{li})} \qquad
       L = \frac{1}{P} \sum_{r_i > r_j} \delta_{ij} |G_i - G_j| \log_2(1 + \exp(\sigma (s_i - s_j))) $$

    $$ G_i = \frac{2^{r_i} - 1}{maxDCG(r)} \qquad \delta_{ij} = \left|\frac{1}{D(d_{ij})} - \frac{1}{D(d_{ij} + 1)}\right|
       \qquad D(k) = \log_2(1 + k) $$

    with $P$ the number of pairs and $d_{ij}$ the distance of the two in the gold order. The softmax runs over
    positions, for one candidate at a time. Over candidates it can be cheated: they then sort well, and decode near
    reversed. The loss does not reach 0: neighbours are 1 apart even in a perfect answer. A list whose ratings are all
    equal has loss and gradient 0.

    Reconstruction: the paper's body was not at hand. $\delta$, $G$, $D$ and $s$ follow one summary of it; the sum over
    pairs was cut off there, and is completed so that a preferred candidate is drawn to a small position. The division
    by $P$, and log-probabilities for $y$, are ours.

    Args:
        logps: `(B, m, m)`, log-probability over the identifiers of the list that position k (dim 1) names candidate i
            (dim 2). bfloat16 and float16 are computed in float32.
        ratings: `(B, m)`, not negative; 0 for a candidate that was not rated.
        gold_rank: `(B, m)`, `int64`, place of each candidate in the answer to be learned, from 0. A better rating
            comes first.
        mask: `(B, m)`, True where there is a candidate, or `None` when all are. What is held elsewhere plays no part,
            be it infinite or NaN.
        gamma (*optional*, defaults to `1.0`): Sharpness of the softmax over positions. With `score="prob"` take about
            8 to 10.
        sigma (*optional*, defaults to `1.0`): Sharpness of the comparison of two positions.
        score (*optional*, defaults to `"logprob"`): What y is: `"logprob"` or `"prob"`. With the first, and gamma 1,
            the softmax is the posterior of a candidate's position when all positions are as likely.
        delta (*optional*, defaults to `"target"`): Where the distance is taken: in the gold order, or with `"model"`
            in the order of the expected positions, held constant.

    Returns:
        The loss, `(B,)`, and the metric `position`, `(B, m)`, the expected positions from 1; 0 where there is no
        candidate.
    """
    _check_soft_lambda(gamma, sigma, score, delta)
    mask = _all_true(ratings) if mask is None else mask
    position = _expected_position(logps, mask, gamma, score)
    gains = _gains(ratings, mask, position.dtype)
    rank = gold_rank if delta == "target" else _rank(position.detach(), mask)
    preferred = (ratings[:, :, None] > ratings[:, None, :]) & mask[:, :, None] & mask[:, None, :]
    weight = _gap_weight(rank, position.dtype) * (gains[:, :, None] - gains[:, None, :])
    bits = -F.logsigmoid(sigma * (position[:, None, :] - position[:, :, None])) / math.log(2)
    loss = torch.where(preferred, weight * bits, 0).sum((1, 2)) / preferred.sum((1, 2)).clamp(min=1)
    return LossOutput(loss, {"position": torch.where(mask, position.detach(), 0)})


def permutation_loss(
    logps: Tensor, permuted_logps: Tensor, mask: Tensor | None, *, distance: Distance = "jsd"
) -> LossOutput:
    r"""Permutation-sensitive learning (after ALRO, arXiv 2403.19181): what the order of the prompt changes, one value
    a list.

    The mean over answer positions of the distance between the distributions over candidates that two orders of the
    same candidates give, $p$ and $q$. With $M = (p + q) / 2$:

    $$ jsd = \frac{KL(p\|M) + KL(q\|M)}{2} \qquad symkl = \frac{KL(p\|q) + KL(q\|p)}{2} \qquad ce = KL(q\|p) $$

    `jsd` is at most log 2. `ce` holds q constant: it has the gradient of cross-entropy against q. Cross-entropy with a
    gradient through both is not offered: at equality it goes on to make both certain. All three are 0 at equality, as
    is their gradient with respect to the logits.

    Reconstruction: no source says which distance, nor how many orders.

    Args:
        logps: `(B, m, m)`, as in [`soft_lambda_loss`].
        permuted_logps: `(B, m, m)`, the same candidates in the same columns, read from the prompt in the other order.
        mask: `(B, m)`, True where there is a candidate, or `None` when all are. What is held elsewhere plays no part,
            be it infinite or NaN.
        distance (*optional*, defaults to `"jsd"`): `"jsd"`, `"symkl"` or `"ce"`.

    Returns:
        The loss, `(B,)`, and no metrics.
    """
    if distance not in get_args(Distance):
        raise ValueError(f"`distance` is {distance!r}, but there are three: give 'jsd', 'symkl' or 'ce'.")
    mask = _all_true(logps[:, 0]) if mask is None else mask
    counts = _counts(mask)
    p, q = (torch.where(counts, at_least_float32(table), 0) for table in (logps, permuted_logps))
    if distance == "jsd":
        middle = torch.logaddexp(p, q) - math.log(2)
        summands = (p.exp() * (p - middle) + q.exp() * (q - middle)) / 2
    elif distance == "symkl":
        summands = (p.exp() - q.exp()) * (p - q) / 2
    else:
        q = q.detach()
        summands = q.exp() * (q - p)
    loss = torch.where(counts, summands, 0).sum((1, 2)) / mask.sum(-1).clamp(min=1)
    return LossOutput(loss, {})


def _expected_position(logps: Tensor, mask: Tensor, gamma: float, score: str) -> Tensor:
    """`(B, m)`, at least float32, counted from 1; finite, but without meaning, where there is no candidate."""
    counts = _counts(mask)
    values = torch.where(counts, at_least_float32(logps), 0)
    if score == "prob":
        values = values.exp()
    # The least finite number and not minus infinity: the column of a missing candidate holds nothing else.
    weights = torch.where(counts, gamma * values, torch.finfo(values.dtype).min).softmax(1)
    position = torch.arange(1, mask.shape[1] + 1, device=weights.device, dtype=weights.dtype)
    # Not a matrix product: under autocast that is computed in bfloat16.
    return (position[:, None] * weights).sum(1)


def _counts(mask: Tensor) -> Tensor:
    """`(B, m, m)`, True at the candidates of the first n answer positions, n being how many candidates a list has."""
    position = torch.arange(mask.shape[1], device=mask.device)
    return (position < mask.sum(-1, keepdim=True))[:, :, None] & mask[:, None, :]


def _gains(ratings: Tensor, mask: Tensor, dtype: torch.dtype) -> Tensor:
    """G, `(B, m)`. The best rating is taken out of every exponent, and cancels: else ratings above 127 overflow."""
    ratings = torch.where(mask, ratings, 0).to(dtype)
    best = ratings.amax(-1, keepdim=True)
    gains = torch.exp2(ratings - best) - torch.exp2(-best)
    discounts = torch.arange(2, ratings.shape[1] + 2, device=ratings.device, dtype=dtype).log2()
    max_dcg = (gains.sort(-1, descending=True).values / discounts).sum(-1, keepdim=True)
    return gains / max_dcg.where(max_dcg > 0, 1)


def _rank(position: Tensor, mask: Tensor) -> Tensor:
    """Place of each candidate by its expected position, from 0, those that are missing last; ties in order of
    column."""
    return position.masked_fill(~mask, torch.inf).argsort(dim=-1, stable=True).argsort(-1)


def _gap_weight(rank: Tensor, dtype: torch.dtype) -> Tensor:
    """delta, `(B, m, m)`. On the diagonal, which no pair uses, the distance is taken as 1, since D(0) is 0."""
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
