"""Computes the parts of BLADE for one prompt or one list at a time: probabilities in exact fractions, and rewards,
advantages and losses in floats. `fixed_point` integrates numerically, in arrays."""

import math
from collections.abc import Sequence
from fractions import Fraction
from itertools import product

import numpy as np


def posterior_cdf(
    rewards: Sequence[float], references: Sequence[float], coefficient: Fraction, prior: Fraction
) -> list[tuple[Fraction, Fraction]]:
    """Returns two estimates for each rollout of one prompt, as exact fractions: the probability that another list has
    at most the rollout's reward (`at_most`), and the probability that it has a lower reward (`below`).

    Each estimate is a weighted mean of two frequencies. The frequency among the rollouts has the weight `coefficient`.
    The frequency among the reference lists has the remaining weight, and is smoothed by a Beta(`prior`, `prior`)
    distribution.
    """
    pairs = []
    for own in rewards:
        counts = [
            (sum(other <= own for other in references), sum(other <= own for other in rewards)),
            (sum(other < own for other in references), sum(other < own for other in rewards)),
        ]
        at_most, below = (
            (1 - coefficient) * (offline + prior) / (len(references) + 2 * prior)
            + coefficient * Fraction(online, len(rewards))
            for offline, online in counts
        )
        pairs.append((at_most, below))
    return pairs


def best_of_n_reward(at_most: Fraction, below: Fraction, best_of: int) -> float:
    """Returns the log of F^(N-1) + F^(N-2) F_ + ... + F_^(N-1), where F is `at_most` and F_ is `below`. This sum
    equals (F^N - F_^N) / (F - F_), or the limit of this quotient if F and F_ are equal."""
    terms = sum(at_most ** (best_of - 1 - power) * below**power for power in range(best_of))
    return math.log(terms.numerator) - math.log(terms.denominator)


def static_reward(reward: float, references: Sequence[float], best_of: int, prior: Fraction) -> float:
    """Returns the Best-of-N reward of a list with the given reward, computed from the rewards of the reference lists
    alone. Reference lists with an equal reward count in F (`at_most`), but not in F_ (`below`)."""
    size = len(references) + 2 * prior
    at_most = (sum(reference <= reward for reference in references) + prior) / size
    below = (sum(reference < reward for reference in references) + prior) / size
    return best_of_n_reward(at_most, below, best_of)


def best_of_n_law(rewards: Sequence[float], best_of: int) -> list[Fraction]:
    """Returns the probability that each list is the best of N uniform draws, by enumerating all sequences of N draws.
    If several draws of a sequence are tied for the best, each of these draws wins with the same probability."""
    law = [Fraction(0)] * len(rewards)
    for draws in product(range(len(rewards)), repeat=best_of):
        winners = [item for item in draws if rewards[item] == max(rewards[other] for other in draws)]
        for item in winners:
            law[item] += Fraction(1, len(winners) * len(rewards) ** best_of)
    return law


def leave_one_out(rewards: Sequence[float]) -> list[float]:
    return [
        own - math.fsum(other for place, other in enumerate(rewards) if place != index) / (len(rewards) - 1)
        for index, own in enumerate(rewards)
    ]


def standardized(rewards: Sequence[float], eps: float) -> list[float]:
    mean = math.fsum(rewards) / len(rewards)
    deviation = math.sqrt(math.fsum((reward - mean) ** 2 for reward in rewards) / (len(rewards) - 1))
    return [(reward - mean) / (deviation + eps) if len(set(rewards)) > 1 else 0.0 for reward in rewards]


def list_loss(logp: float, old_logp: float, advantage: float, clip: float) -> tuple[float, float, float, float]:
    """Returns the loss, its slope with respect to `logp`, the ratio, and whether clipping removed the slope."""
    ratio = math.exp(min(logp - old_logp, 20.0))
    clipped = ratio > 1 + clip if advantage > 0 else advantage < 0 and ratio < 1 - clip
    if clipped:
        return -(1 + clip if advantage > 0 else 1 - clip) * advantage, 0.0, ratio, 1.0
    return -ratio * advantage, -ratio * advantage if logp - old_logp <= 20 else 0.0, ratio, 0.0


def fixed_point(best_of: int, coefficient: float, num_points: int = 20_001) -> tuple[float, float]:
    """Returns the effective N of BLADE's fixed point, and its KL to the starting policy.

    The fixed point is the policy that further training with BLADE does not change. Let U be the quantile of a reward
    of this policy among the rewards of the starting policy. U has the density
    g(u) = c ((1 - tau) u + tau G(u))^(N-1), where G' = g and tau is `coefficient`. The effective N is
    E[U] / (1 - E[U]). For Best-of-N sampling from the starting policy, E[U] is N / (N + 1), so the effective N is N.

    Let h = (1 - tau) u + tau G, so dh/du = (1 - tau) + tau c h^(N-1). All integrals are over h from 0 to 1. Bisection
    finds the c for which the density g integrates to 1.
    """
    h = np.linspace(0, 1, num_points)
    power = h ** (best_of - 1)

    def integral(values: np.ndarray) -> np.ndarray:
        steps = (values[1:] + values[:-1]) / 2 / (num_points - 1)
        return np.concatenate([[0.0], np.cumsum(steps)])

    low, high = 0.0, 1e9
    for _ in range(80):
        c = (low + high) / 2
        mass = integral(c * power / (1 - coefficient + coefficient * c * power))[-1]
        low, high = (c, high) if mass < 1 else (low, c)
    slope = 1 - coefficient + coefficient * c * power
    u, density = integral(1 / slope), c * power
    mean = integral(u * density / slope)[-1]
    log_density = np.log(np.maximum(density, 1e-300))
    return mean / (1 - mean), float(integral(density * log_density / slope)[-1])
