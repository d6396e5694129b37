"""The published repair of collisions: items with one ID are spread evenly over the last level's codes.

As the released code of LC-Rec, LETTER and Align3GR has it: distances of a group's items to the codes, centred and
scaled to [-1, 1], become a doubly even assignment by Sinkhorn's iteration, each item takes its likeliest code, and
what collides then is repaired again. It moves every item of a group, and does not look at which codes the group's cell
has given away; what is still not alone after the last round is left to [`repair_last_level`].
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from trl_rec.semantic_ids.collisions import group_of


ROUNDS = 20
EPSILON = 0.003
ITERATIONS = 50
CHUNK = 1 << 22  # entries of assignments that are held at a time


def sinkhorn_repair(codes: Tensor, last_residuals: Tensor, last_codebook: Tensor, *, rounds: int = ROUNDS) -> Tensor:
    """Codes `(num_items, levels)`, as a rule with fewer collisions. Only last codes change, and only those of items
    that collide, if with items that a round before has moved. Groups of more items than there are codes are left as
    they are.

    Args:
        codes (`Tensor` of shape `(num_items, levels)`): The codes as they were found.
        last_residuals (`Tensor` of shape `(num_items, width)`): What the last level has to tell apart.
        last_codebook (`Tensor` of shape `(num_codes, width)`): The last level's centroids.
        rounds (`int`, *optional*, defaults to `20`): Most repairs.
    """
    codes = codes.clone()
    for _ in range(rounds):
        before = codes[:, -1].clone()
        for groups in _colliding(codes, len(last_codebook)):
            distances = torch.cdist(last_residuals[groups], last_codebook.expand(len(groups), -1, -1)).square()
            codes[groups, -1] = balanced(distances).argmax(-1)
        if torch.equal(before, codes[:, -1]):
            break
    return codes


def balanced(distances: Tensor, *, epsilon: float = EPSILON, iterations: int = ITERATIONS) -> Tensor:
    """Assignments `(num_groups, num_items, num_codes)`: each item's shares sum to 1, and all codes of a group get as
    much.

    Legend: Q = exp(-d / epsilon), columns and rows scaled in turn; kept as logarithms, as exp(-1 / .003) is nothing in
    float32.
    """
    low, high = distances.amin((1, 2), keepdim=True), distances.amax((1, 2), keepdim=True)
    log_shares = -((distances - (high + low) / 2) / ((high - low) / 2).clamp(min=1e-12)).double() / epsilon
    for _ in range(iterations):
        log_shares = log_shares - log_shares.logsumexp(1, keepdim=True)
        log_shares = log_shares - log_shares.logsumexp(2, keepdim=True)
    return log_shares.exp()


def _colliding(codes: Tensor, most: int) -> Iterator[Tensor]:
    """Items with equal codes, `(num_groups, size)`: groups of one size together, as many as fit."""
    group = group_of(codes)
    sizes = torch.bincount(group)
    order = torch.argsort(group, stable=True)
    order = order[torch.argsort(sizes[group[order]], stable=True)]  # groups stay whole
    by_size = sizes[group[order]]
    for size in by_size.unique().tolist():
        if 1 < size <= most:
            yield from order[by_size == size].view(-1, size).split(max(CHUNK // (size * most), 1))
