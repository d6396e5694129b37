"""Reduces collisions of semantic IDs: the Sinkhorn algorithm spreads items with equal IDs over the last level's codes.

The method follows the released code of LC-Rec, LETTER and Align3GR. It processes each group of colliding items
separately. The last level assigns codes to residuals: the item vectors minus their centroids of all earlier levels.
The squared distances from these residuals to the centroids of the last level are centred and scaled to [-1, 1]. The
Sinkhorn algorithm turns these distances into a soft assignment: each item is divided among the codes, so that all
codes receive the same total. Then each item gets the code to which its largest part was assigned. Further rounds
repeat these steps for the items that still collide.

The repair may change the last code of every item in a group. It does not check whether an item outside the group
already has the new codes, so it can create new collisions. Callers of [`sinkhorn_repair`] should therefore call
[`repair_last_level`] afterwards. It resolves the remaining collisions wherever another last code is free.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from trl_rec.semantic_ids.collisions import group_of


ROUNDS = 20  # maximum number of rounds
EPSILON = 0.003  # temperature of the assignment, relative to distances scaled to [-1, 1]
ITERATIONS = 50  # number of Sinkhorn iterations
CHUNK = 1 << 22  # maximum number of entries of the assignments that are held in memory at a time


def sinkhorn_repair(codes: Tensor, last_residuals: Tensor, last_codebook: Tensor, *, rounds: int = ROUNDS) -> Tensor:
    """Changes the last codes of colliding items, which usually reduces the number of collisions.

    An item without collisions keeps its code. However, if a round gives the same codes to another item, the next round
    may change the codes of both items. Groups with more items than the last level has codes are left unchanged.

    Args:
        codes (`torch.Tensor` of shape `(num_items, levels)`): The codes before the repair.
        last_residuals (`torch.Tensor` of shape `(num_items, width)`): The residuals that the last level quantises.
        last_codebook (`torch.Tensor` of shape `(num_codes, width)`): The centroids of the last level.
        rounds (`int`, *optional*, defaults to `20`): Maximum number of rounds.

    Returns:
        `torch.Tensor` of shape `(num_items, levels)`: The codes after the repair.
    """
    codes = codes.clone()
    for _ in range(rounds):
        before = codes[:, -1].clone()
        for groups in _colliding_groups(codes, len(last_codebook)):
            centroids = last_codebook.expand(len(groups), -1, -1)
            distances = torch.cdist(last_residuals[groups], centroids).square()  # (G, size, num_codes)
            codes[groups, -1] = balanced(distances).argmax(-1)
        if torch.equal(before, codes[:, -1]):
            break
    return codes


def balanced(distances: Tensor, *, epsilon: float = EPSILON, iterations: int = ITERATIONS) -> Tensor:
    """Computes a soft assignment of the items of each group to codes, in which all codes receive the same total.

    The Sinkhorn algorithm starts with Q = exp(-d / epsilon), where d are the scaled distances, and normalises columns
    and rows in turn. This function stores log Q, because the entries of Q range from exp(-1 / epsilon) to
    exp(1 / epsilon), so they would underflow or overflow if epsilon is small.

    Args:
        distances (`torch.Tensor` of shape `(G, num_items, num_codes)`): Squared distances, for G groups of items.
        epsilon (`float`, *optional*, defaults to `0.003`): Temperature; smaller values give harder assignments.
        iterations (`int`, *optional*, defaults to `50`): Number of iterations.

    Returns:
        `torch.Tensor` of shape `(G, num_items, num_codes)`, float64: The share of each item that is assigned to each
        code. The shares of an item sum to 1. The shares that a code receives from the items of a group sum to about
        `num_items / num_codes`.
    """
    low = distances.amin((1, 2), keepdim=True)
    high = distances.amax((1, 2), keepdim=True)
    centre = (high + low) / 2
    half_range = ((high - low) / 2).clamp(min=1e-12)

    log_shares = -((distances - centre) / half_range).double() / epsilon
    for _ in range(iterations):
        log_shares = log_shares - log_shares.logsumexp(1, keepdim=True)
        log_shares = log_shares - log_shares.logsumexp(2, keepdim=True)
    return log_shares.exp()


def _colliding_groups(codes: Tensor, num_codes: int) -> Iterator[Tensor]:
    """Yields the groups of 2 to `num_codes` items with equal codes, as item indices `(G, size)`.

    Groups of the same size are yielded together, as many at a time as `CHUNK` allows.
    """
    group = group_of(codes)
    sizes = torch.bincount(group)

    # Sort by group, and then sort the result by group size. The second sort is stable, so the items of a group stay
    # adjacent.
    order = torch.argsort(group, stable=True)
    order = order[torch.argsort(sizes[group[order]], stable=True)]

    size_of_each = sizes[group[order]]
    for size in size_of_each.unique().tolist():
        if 1 < size <= num_codes:
            yield from order[size_of_each == size].view(-1, size).split(max(CHUNK // (size * num_codes), 1))
