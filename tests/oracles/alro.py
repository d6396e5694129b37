"""Computes ALRO's losses for one list at a time, in plain floats. Their gradients were derived by hand."""

import math
from typing import NamedTuple


Table = list[list[float]]


class Ranked(NamedTuple):
    """The result of `soft_lambda` for one list of candidates: the loss, the expected position of each candidate in the
    answer, and the gradient of the loss with respect to the table of log-probabilities. The table has a row per answer
    position and a column per candidate."""

    loss: float
    position: list[float]
    gradient: Table


class Compared(NamedTuple):
    """The result of `permutation` for one list of candidates: the loss, and its gradients with respect to the two
    tables of log-probabilities. The tables belong to two orders of the candidates in the prompt."""

    loss: float
    gradient: Table
    permuted_gradient: Table


def discount(rank: int) -> float:
    return math.log2(1 + rank)


def gap_weight(distance: int) -> float:
    return abs(1 / discount(distance) - 1 / discount(distance + 1))


def gains(ratings: list[float]) -> list[float]:
    raw = [2**rating - 1 for rating in ratings]
    best = sum(gain / discount(rank) for rank, gain in enumerate(sorted(raw, reverse=True), start=1))
    return [gain / best if best else 0.0 for gain in raw]


def log2_1_plus_exp(x: float) -> float:
    return (max(x, 0.0) + math.log1p(math.exp(-abs(x)))) / math.log(2)


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x)) if x > 0 else math.exp(x) / (1 + math.exp(x))


def soft_lambda(
    logps: Table,
    ratings: list[float],
    gold_rank: list[int],
    mask: list[bool],
    *,
    gamma: float,
    sigma: float,
    score: str,
    delta: str,
) -> Ranked:
    items = [item for item, real in enumerate(mask) if real]
    places = range(len(items))
    shares, position = {}, [0.0] * len(mask)
    for item in items:
        y = [math.exp(logps[k][item]) if score == "prob" else logps[k][item] for k in places]
        powers = [math.exp(gamma * (value - max(y))) for value in y]
        shares[item] = [power / math.fsum(powers) for power in powers]
        position[item] = math.fsum((k + 1) * share for k, share in enumerate(shares[item]))
    gain = dict(zip(items, gains([ratings[item] for item in items]), strict=True))
    order = sorted(items, key=lambda item: position[item])
    rank = {item: order.index(item) if delta == "model" else gold_rank[item] for item in items}

    pairs = [(i, j) for i in items for j in items if ratings[i] > ratings[j]]
    loss, slope = 0.0, dict.fromkeys(items, 0.0)
    for i, j in pairs:
        weight = gap_weight(abs(rank[i] - rank[j])) * abs(gain[i] - gain[j]) / len(pairs)
        x = sigma * (position[i] - position[j])
        loss += weight * log2_1_plus_exp(x)
        slope[i] += weight * sigma * sigmoid(x) / math.log(2)
        slope[j] -= weight * sigma * sigmoid(x) / math.log(2)

    gradient = [[0.0] * len(mask) for _ in mask]
    for item in items:
        for k in places:
            inner = math.exp(logps[k][item]) if score == "prob" else 1.0
            gradient[k][item] = slope[item] * gamma * shares[item][k] * (k + 1 - position[item]) * inner
    return Ranked(loss, position, gradient)


def lambda_loss(scores: list[float], ratings: list[float], sigma: float) -> float:
    """Returns LambdaLoss with the weights of NDCG-Loss2 and with binary logarithms, summed over pairs. Candidates are
    ranked by descending score."""
    order = sorted(range(len(scores)), key=lambda item: -scores[item])
    sorted_ratings = [ratings[item] for item in order]
    sorted_scores = [scores[item] for item in order]
    gain = gains(sorted_ratings)
    total = 0.0
    for a in range(len(order)):
        for b in range(len(order)):
            if sorted_ratings[a] > sorted_ratings[b]:
                weight = gap_weight(abs(a - b)) * abs(gain[a] - gain[b])
                total -= weight * math.log2(sigmoid(sigma * (sorted_scores[a] - sorted_scores[b])))
    return total


def permutation(logps: Table, permuted_logps: Table, mask: list[bool], *, distance: str) -> Compared:
    items = [item for item, real in enumerate(mask) if real]
    gradient = [[0.0] * len(mask) for _ in mask]
    permuted_gradient = [[0.0] * len(mask) for _ in mask]
    total = 0.0
    for k in range(len(items)):
        for i in items:
            log_p, log_q = logps[k][i], permuted_logps[k][i]
            p, q = math.exp(log_p), math.exp(log_q)
            if distance == "jsd":
                top = max(log_p, log_q)
                log_m = top + math.log((math.exp(log_p - top) + math.exp(log_q - top)) / 2)
                value = (p * (log_p - log_m) + q * (log_q - log_m)) / 2
                slopes = p * (log_p - log_m) / 2, q * (log_q - log_m) / 2
            elif distance == "symkl":
                value = (p * (log_p - log_q) + q * (log_q - log_p)) / 2
                slopes = (p * (log_p - log_q) + p - q) / 2, (q * (log_q - log_p) + q - p) / 2
            else:
                value = q * (log_q - log_p)
                slopes = -q, 0.0
            total += value / len(items)
            gradient[k][i], permuted_gradient[k][i] = (slope / len(items) for slope in slopes)
    return Compared(total, gradient, permuted_gradient)
