"""The published repair of collisions: items with one ID are spread evenly over the last level's codes.

As the released code of LC-Rec, LETTER and Align3GR has it: distances of a group's items to the codes, centred and scaled to
[-1, 1], become a doubly even assignment by Sinkhorn's iteration, each item takes its likeliest code, and what collides then is
repaired again. It moves every item of a group, and does not look at which codes the group's cell has given away; what is still
not alone after the last round is left to [`repair_last_level`].
"""

from __future__ import annotations

import torch
from torch import Tensor

from trl_rec.semantic_ids.collisions import group_of


ROUNDS = 20
EPSILON = 0.003
ITERATIONS = 50


def sinkhorn_repair(codes: Tensor, last_residuals: Tensor, last_codebook: Tensor, *, rounds: int = ROUNDS) -> Tensor:
    """Codes `(num_items, levels)` with fewer collisions; only last codes change, and only those of items that collide.

    Args:
        codes (`Tensor` of shape `(num_items, levels)`): The codes as they were found.
        last_residuals (`Tensor` of shape `(num_items, width)`): What the last level has to tell apart.
        last_codebook (`Tensor` of shape `(num_codes, width)`): The last level's centroids.
        rounds (`int`, *optional*, defaults to `20`): Most repairs.
    """
    codes = codes.clone()
    for _ in range(rounds):
        group = group_of(codes)
        sizes = torch.bincount(group)
        colliding = (sizes[group] > 1).nonzero().squeeze(1)
        if not len(colliding):
            break
        order = colliding[torch.argsort(group[colliding], stable=True)]
        before = codes[order, -1]
        for items in order.split(sizes[sizes > 1].tolist()):
            codes[items, -1] = balanced(torch.cdist(last_residuals[items], last_codebook).square()).argmax(1)
        if torch.equal(before, codes[order, -1]):
            break
    return codes


def balanced(distances: Tensor, *, epsilon: float = EPSILON, iterations: int = ITERATIONS) -> Tensor:
    """An assignment `(num_items, num_codes)`: each item's shares sum to 1, and all codes get as much.

    Legend: Q = exp(-d / epsilon), columns and rows scaled in turn; kept as logarithms, as exp(-1 / .003) is nothing in float32.
    """
    middle, spread = (distances.max() + distances.min()) / 2, (distances.max() - distances.min()) / 2
    log_shares = -((distances - middle) / spread.clamp(min=1e-12)).double() / epsilon
    for _ in range(iterations):
        log_shares = log_shares - log_shares.logsumexp(0, keepdim=True)
        log_shares = log_shares - log_shares.logsumexp(1, keepdim=True)
    return log_shares.exp()
