"""The published repair of collisions: items with the same ID are spread evenly over the codes of the last level.

It follows the released code of LC-Rec, LETTER and Align3GR. For each group of colliding items, the distances to the
codes are centred and scaled to [-1, 1], and Sinkhorn's iteration turns them into an assignment in which all codes
receive the same share. Each item takes its likeliest code. Items that collide afterwards are repaired again.

The repair moves every item of a group, and it does not check which codes other items of the same cell already have.
[`repair_last_level`] handles the collisions that remain after the last round.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from trl_rec.semantic_ids.collisions import group_of


ROUNDS = 20
EPSILON = 0.003  # temperature of the assignment, in units of the scaled distances
ITERATIONS = 50
CHUNK = 1 << 22  # entries of the assignments that are held at a time


def sinkhorn_repair(codes: Tensor, last_residuals: Tensor, last_codebook: Tensor, *, rounds: int = ROUNDS) -> Tensor:
    """Changes the last code of colliding items, usually with fewer collisions as a result.

    An item that collides with nothing keeps its code, unless an earlier round moved other items onto it. Groups with
    more items than there are codes are left unchanged.

    Args:
        codes (`torch.Tensor` of shape `(num_items, levels)`): The codes as quantised.
        last_residuals (`torch.Tensor` of shape `(num_items, width)`): The input of the last level.
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
    """Assigns the items of each group softly and evenly to codes.

    Sinkhorn's iteration on Q = exp(-d / epsilon): columns and rows are normalised in turn. Q is kept as logarithms,
    since exp(-1 / 0.003) underflows in float32.

    Args:
        distances (`torch.Tensor` of shape `(G, num_items, num_codes)`): Squared distances, for G groups of items.
        epsilon (`float`, *optional*, defaults to `0.003`): Temperature; smaller values give harder assignments.
        iterations (`int`, *optional*, defaults to `50`): Number of iterations.

    Returns:
        `torch.Tensor` of shape `(G, num_items, num_codes)`, float64: The shares of each item sum to 1. Every code of a
        group receives about the same total.
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


def _colliding_groups(codes: Tensor, most: int) -> Iterator[Tensor]:
    """The groups of 2 to `most` items with equal codes, as item indices `(G, size)`. Groups of the same size are
    yielded together, as many at a time as `CHUNK` allows."""
    group = group_of(codes)
    sizes = torch.bincount(group)

    # Sort by group first, then by size with a stable sort: the items of a group stay next to each other.
    order = torch.argsort(group, stable=True)
    order = order[torch.argsort(sizes[group[order]], stable=True)]

    size_of_each = sizes[group[order]]
    for size in size_of_each.unique().tolist():
        if 1 < size <= most:
            yield from order[size_of_each == size].view(-1, size).split(max(CHUNK // (size * most), 1))
