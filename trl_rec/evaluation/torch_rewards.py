"""Computes the rewards of lists from tensors, so that training does not copy lists to the host.

[`score_tensors`] returns the same values as `score_lists` in `rewards.py`. Both round rewards to 12 decimals, so that
equally good lists have equal rewards. On a device without float64, `score_tensors` computes rewards in float32 and
rounds them to 5 decimals, so lists that are nearly equally good also get equal rewards.

Legend: B users, G lists per user, K ranks, T targets per user (padded), H items of the longest history, N items of the
catalogue, D groups of items (for example genres).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cache
from typing import NamedTuple, TypeAlias

import torch
from torch import Tensor
from torch.nn.functional import pad

from trl_rec.evaluation.rewards import DECIMALS


DECIMALS_FLOAT32 = 5


class ListTensors(NamedTuple):
    """Lists to score, with the data that rewards use. All tensors are on one device.

    Args:
        lists (`torch.Tensor` of shape `(B, G, K)`): Item indices, best first; -1 marks a missing rank.
        targets (`torch.Tensor` of shape `(B, T)`): The items that each user chose next, padded with -1. The rewards
            `ndcg` and `recall` of a user without targets are NaN.
        histories (`torch.Tensor` of shape `(B, H)`): The items that each user chose before, padded with -1.
        shares (`torch.Tensor` of shape `(N, D)`, *optional*): The fraction of each item that belongs to each group.
            Needed for the reward `mgu`.
        units (`torch.Tensor` of shape `(N, D)`, *optional*): The rows of `shares`, each divided by its Euclidean norm,
            as returned by `unit_vectors`. Needed for the reward `ild`.
    """

    lists: Tensor
    targets: Tensor
    histories: Tensor
    shares: Tensor | None = None
    units: Tensor | None = None


class RewardTensors(NamedTuple):
    """The rewards of a batch of lists, `(B, G)` each.

    Args:
        total: The weighted sum of the rewards, which training optimises.
        parts: The unweighted rewards by name, for logging.
    """

    total: Tensor
    parts: dict[str, Tensor]


TorchReward: TypeAlias = Callable[[ListTensors], Tensor]


def score_tensors(batch: ListTensors, weights: Mapping[str, float]) -> RewardTensors:
    """Scores each list by a weighted sum of the rewards in `TORCH_REWARDS`, as `score_lists` does."""
    parts = {name: rounded(TORCH_REWARDS[name](batch)) for name in weights}
    total = torch.zeros(batch.lists.shape[:2], dtype=reward_dtype(batch.lists.device), device=batch.lists.device)
    for name, weight in weights.items():
        total = total + weight * parts[name]
    return RewardTensors(rounded(total), parts)


@cache
def reward_dtype(device: torch.device) -> torch.dtype:
    """Returns float64 if the device supports it, else float32."""
    try:
        torch.zeros(1, dtype=torch.float64, device=device).add(1)
    except (TypeError, RuntimeError):
        return torch.float32
    return torch.float64


def rounded(values: Tensor) -> Tensor:
    """Rounds rewards to `DECIMALS` (in float32, to `DECIMALS_FLOAT32`), so that equally good lists have equal
    rewards."""
    return values.round(decimals=DECIMALS if values.dtype == torch.float64 else DECIMALS_FLOAT32)


def ndcg(batch: ListTensors) -> Tensor:
    """Computes NDCG over all ranks of each list, `(B, G)`."""
    hits, num_relevant = _hits(batch)
    num_ranks = hits.shape[-1]
    discounts = 1 / torch.arange(2, num_ranks + 2, device=hits.device).to(reward_dtype(hits.device)).log2()
    best = torch.cat([torch.zeros_like(discounts[:1]), discounts.cumsum(0)])  # (K + 1,), for 0 to K relevant items
    # For a user without targets, the ideal DCG is 0, so the quotient is NaN.
    return (hits * discounts).sum(-1) / best[num_relevant.clamp(max=num_ranks)].unsqueeze(1)


def recall(batch: ListTensors) -> Tensor:
    """Computes the share of the user's targets that each list contains, `(B, G)`."""
    hits, num_relevant = _hits(batch)
    return hits.sum(-1).to(reward_dtype(hits.device)) / num_relevant.unsqueeze(1)


def hit(batch: ListTensors) -> Tensor:
    """Returns 1 for lists that contain a target, else 0, `(B, G)`."""
    hits = _hits(batch)[0]
    return hits.any(-1).to(reward_dtype(hits.device))


def ild(batch: ListTensors) -> Tensor:
    """Computes the mean cosine distance over the pairs of items in each list, `(B, G)`; 0 for fewer than two items."""
    # |sum of units|^2 - sum of |unit|^2 is twice the sum of the cosines over all pairs.
    units = _rows_of(batch.units, batch.lists)  # (B, G, K, D)
    cosines = units.sum(2).square().sum(-1) - units.square().sum((2, 3))
    size = (batch.lists >= 0).sum(-1)
    return torch.where(size > 1, 1 - cosines / (size * (size - 1)).clamp(min=1), 0.0)


def mgu(batch: ListTensors) -> Tensor:
    """Computes -MGU, `(B, G)`. MGU is |share of a group in the list - share of the group in the user's history|,
    averaged over the groups."""
    recommended = _normalized(_rows_of(batch.shares, batch.lists).sum(-2))  # (B, G, D)
    consumed = _normalized(_rows_of(batch.shares, batch.histories).sum(-2))  # (B, D)
    return -(recommended - consumed.unsqueeze(1)).abs().mean(-1)


def _hits(batch: ListTensors) -> tuple[Tensor, Tensor]:
    """Returns whether each rank contains a target for the first time in its list, `(B, G, K)`, and the number of each
    user's distinct targets, `(B,)`."""
    # 1. Count distinct targets. In ascending order, repeats are adjacent, and padding comes first. A column of padding
    # is added, so that there is a column even if no user has a target.
    targets = pad(batch.targets.long(), (0, 1), value=-1).sort(1).values  # (B, T + 1)
    is_new = targets >= 0
    is_new[:, 1:] &= targets[:, 1:] != targets[:, :-1]

    # 2. Look up each item among the targets of its user.
    lists = batch.lists.long()
    flat = lists.flatten(1)  # (B, G * K)
    found = torch.searchsorted(targets, flat).clamp(max=targets.shape[1] - 1)
    is_target = (targets.gather(1, found) == flat).view_as(lists) & (lists >= 0)
    is_repeated = (lists.unsqueeze(-1) == lists.unsqueeze(-2)).tril(-1).any(-1)  # compares all pairs of ranks
    return is_target & ~is_repeated, is_new.sum(1)


def _rows_of(table: Tensor | None, items: Tensor) -> Tensor:
    """Looks up the row of each item in a table `(N, D)`. Returns `(..., D)`, with zeros for padding."""
    assert table is not None
    rows = table[items.clamp(min=0)].to(reward_dtype(items.device))
    return rows * (items >= 0).unsqueeze(-1)


def _normalized(mass: Tensor) -> Tensor:
    """Divides the masses of the groups by their sum. Masses that are all 0 stay 0."""
    return mass / mass.sum(-1, keepdim=True).clamp(min=torch.finfo(mass.dtype).tiny)


TORCH_REWARDS: dict[str, TorchReward] = {"ndcg": ndcg, "recall": recall, "hit": hit, "ild": ild, "mgu": mgu}
