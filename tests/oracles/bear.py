"""Computes the loss of BEAR for one position at a time, in plain floats, with a gradient that was derived by hand.

`weighted_cross_entropy` works on tensors, and computes the loss of the code that BEAR's authors published.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F


class Position(NamedTuple):
    """What `bear_loss` must return for one position, and the gradient of the loss with respect to each logit."""

    loss: float
    ce: float
    margin: float
    pruned: float
    gradient: list[float]


def log_sigmoid(x: float) -> float:
    return min(x, 0.0) - math.log1p(math.exp(-abs(x)))


def sigmoid(x: float) -> float:
    return math.exp(log_sigmoid(x))


def log_probs(logits: list[float], legal: list[bool], temperature: float) -> list[float]:
    scaled = [logit / temperature if allowed else -math.inf for logit, allowed in zip(logits, legal, strict=True)]
    top = max(scaled)
    normaliser = top + math.log(math.fsum(math.exp(value - top) for value in scaled))
    return [value - normaliser for value in scaled]


def threshold(logps: list[float], legal: list[bool], num_beams: int) -> float:
    """Returns the b-th largest log-probability. b is the number of beams, but at most the number of legal tokens."""
    return sorted(logps, reverse=True)[min(num_beams, sum(legal)) - 1]


def regulariser(margin: float, weight: float, sharpness: float, variant: str) -> float:
    if variant == "paper":
        return weight * log_sigmoid(-margin / sharpness)
    return -weight * log_sigmoid(margin / sharpness)


def position(
    logits: list[float],
    target: int,
    legal: list[bool],
    *,
    num_beams: int,
    weight: float,
    sharpness: float,
    temperature: float,
    variant: str,
    smoothing: float = 0.0,
) -> Position:
    logps = log_probs(logits, legal, temperature)
    margin = logps[target] - threshold(logps, legal, num_beams)
    lean = margin if variant == "paper" else -margin
    excess = weight / sharpness * sigmoid(lean / sharpness)
    gradient = []
    for column, logp in enumerate(logps):
        wanted = (1 - smoothing) * (column == target) + smoothing / sum(legal)
        softmax_gradient = (math.exp(logp) - wanted) / temperature
        softmax_gradient += excess * (math.exp(logp) - (column == target)) / temperature
        gradient.append(softmax_gradient if legal[column] else 0.0)
    above = sum(allowed and logit > logits[target] for logit, allowed in zip(logits, legal, strict=True))
    pruned = float(above >= min(num_beams, sum(legal)))
    mean = math.fsum(logp for logp, allowed in zip(logps, legal, strict=True) if allowed) / sum(legal)
    learned = (1 - smoothing) * logps[target] + smoothing * mean
    loss = regulariser(margin, weight, sharpness, variant) - learned
    return Position(loss, -logps[target], margin, pruned, gradient)


def frozen_loss(
    logits: list[float],
    target: int,
    legal: list[bool],
    frozen_threshold: float,
    *,
    weight: float,
    sharpness: float,
    temperature: float,
    variant: str,
) -> float:
    """Returns the loss for a given threshold. This threshold is a constant: it does not depend on the logits."""
    chosen = log_probs(logits, legal, temperature)[target]
    return regulariser(chosen - frozen_threshold, weight, sharpness, variant) - chosen


def weighted_cross_entropy(
    logits: Tensor,
    target: Tensor,
    legal: Tensor,
    *,
    num_beams: int,
    topk_weight: float,
    topk_tau: float,
    temperature: float,
) -> Tensor:
    """Returns the loss `(N,)` of the published code, before that code divides it by the sum of the weights.

    The loss of a token is its cross-entropy times a detached weight,
    1 + topk_weight * sigmoid((log p - log p_(b)) / topk_tau). Here p is the probability of the token, and p_(b) is the
    b-th largest probability, where b is the number of beams, but at most the number of legal tokens.
    """
    losses = []
    for row, gold, allowed in zip(logits, target, legal, strict=True):
        masked = torch.stack(
            [value if ok else torch.full_like(value, -torch.inf) for value, ok in zip(row, allowed, strict=True)]
        )
        ce = F.cross_entropy(masked / temperature, gold)
        probs = (masked.detach() / temperature).softmax(0)
        kept = probs[allowed].sort(descending=True).values[:num_beams][-1]
        losses.append((1 + topk_weight * torch.sigmoid((probs[gold].log() - kept.log()) / topk_tau)) * ce)
    return torch.stack(losses)
