"""Computes the NDCG of the rankings that result from many settings of a prior.

Sorting the items for every setting would take long. Instead, the items that rank above each target are counted.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from trl_rec.evaluation.prior_choice.grid import Setting


# In a first pass, the targets are ranked only among the `NUM_STRONG` items with the highest scores and the
# `NUM_STRONG` items to which the prior gives the highest weights.
NUM_STRONG = 64


def ndcg_by_setting(
    scores: Tensor,
    items: Tensor,
    targets: Tensor,
    settings: Sequence[Setting],
    weights: Mapping[float | None, Tensor],
    k: int,
) -> np.ndarray:
    """Returns NDCG@k of each prompt under each setting, `(B, len(settings))`.

    Args:
        scores (`torch.Tensor` of shape `(B, P)`): The scores of the items before a prior is applied; -inf for excluded
            items.
        items (`torch.Tensor` of shape `(B, P)`): The items to rank; -1 is padding. Items with equal scores are ordered
            by their index.
        targets (`torch.Tensor` of shape `(B, T)`): The relevant items, padded with -1.
        settings: The settings of the prior. Each has a strength, which is the exponent of the prior's weights, and an
            eps.
        weights: `log(w / W)` of the items for each `Setting.eps` (the weight of the popularity in the prior),
            `(B, P)`. Here w is the weight that the prior gives an item, and W the sum of the weights of all items.
        k: The cutoff.
    """
    # 1. Find the targets among the items. A repeated target counts once.
    targets = targets.sort(1).values
    targets[:, 1:] = torch.where(targets[:, 1:] == targets[:, :-1], -1, targets[:, 1:])
    found = [(items == target.unsqueeze(1)) & (target.unsqueeze(1) >= 0) for target in targets.T]
    places = torch.stack([one.long().argmax(1) for one in found], 1)  # (B, T)
    is_found = torch.stack([one.any(1) for one in found], 1)
    scores = scores.masked_fill(items < 0, -torch.inf)

    # 2. Most prompts have no target among the k best items under any setting. To find these prompts, rank the targets
    #    among a few strong items: a target that is not among the k best of these is not among the k best of all items.
    gains = torch.zeros(len(scores), len(settings), dtype=torch.float64, device=scores.device)
    rows = torch.arange(len(scores), device=scores.device)
    if scores.shape[1] > 4 * NUM_STRONG:
        columns = _strong_columns(scores, weights, places)  # (B, P')
        some = {eps: one.gather(1, columns) for eps, one in weights.items()}
        own = (columns.unsqueeze(1) == places.unsqueeze(2)).long().argmax(2)  # (B, T)
        possible = _gains(scores.gather(1, columns), items.gather(1, columns), own, is_found, settings, some, k)
        rows = possible.any(1).nonzero().squeeze(1)

    # 3. For the prompts that may have a target among the k best items, rank the targets among all items.
    if len(rows):
        some = {eps: one[rows] for eps, one in weights.items()}
        gains[rows] = _gains(scores[rows], items[rows], places[rows], is_found[rows], settings, some, k)
    ideal = _discounts(k, scores.device).cumsum(0)[(targets >= 0).sum(1).clamp(1, k) - 1]  # (B,)
    ndcg: np.ndarray = (gains / ideal.unsqueeze(1)).cpu().numpy()
    return ndcg


def _strong_columns(scores: Tensor, weights: Mapping[float | None, Tensor], places: Tensor) -> Tensor:
    """Returns the columns of the best items by score, of the best items by the prior, and of the targets, `(B, P')`.

    For the best items by the prior, the first eps in `weights` is used. The columns of a row are distinct. P' is the
    largest number of these columns in any row; rows with fewer are filled up with arbitrary further columns.
    """
    by_score = scores.topk(NUM_STRONG, 1).indices
    by_weight = [one.topk(NUM_STRONG, 1).indices for one in list(weights.values())[:1]]
    is_strong = torch.zeros(scores.shape, dtype=torch.bool, device=scores.device)
    is_strong = is_strong.scatter(1, torch.cat([by_score, *by_weight, places], 1), True)
    width = int(is_strong.sum(1).amax())
    return is_strong.to(torch.uint8).topk(width, 1).indices


def _gains(
    scores: Tensor,
    items: Tensor,
    places: Tensor,
    is_found: Tensor,
    settings: Sequence[Setting],
    weights: Mapping[float | None, Tensor],
    k: int,
) -> Tensor:
    """Returns the sum of the discounts of the targets that are among the k best items, `(B, len(settings))`.

    The targets are the items at the `places` `(B, T)`. Entries where `is_found` is False are ignored.
    """
    discounts = _discounts(k, scores.device)
    gains = torch.zeros(len(scores), len(settings), dtype=torch.float64, device=scores.device)
    comes_first = [items < items.gather(1, place.unsqueeze(1)) for place in places.T]  # among equal scores
    for number, setting in enumerate(settings):
        total = torch.add(scores, weights[setting.eps], alpha=setting.strength) if setting.strength else scores
        for column, is_lower in enumerate(comes_first):
            own = total.gather(1, places[:, column : column + 1])  # (B, 1)
            rank = torch.count_nonzero(total > own, 1)
            rank = rank + torch.count_nonzero((total == own) & is_lower, 1)
            hit = is_found[:, column] & (own[:, 0] > -torch.inf) & (rank < k)
            gains[:, number] += torch.where(hit, discounts[rank.clamp(max=k - 1)], 0.0)
    return gains


def _discounts(k: int, device: torch.device) -> Tensor:
    """Returns the gain of a hit at each of the first k ranks, `(k,)`."""
    return 1 / torch.arange(2, k + 2, dtype=torch.float64, device=device).log2()
