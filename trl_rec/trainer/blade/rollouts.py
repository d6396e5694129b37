"""What a policy drew in a step, and what is told of it.

Legend: B prompts, G rollouts a prompt, M reference lists a prompt, K items a list.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from trl_rec.evaluation.rewards import ListRewards


class Rollouts(NamedTuple):
    """The lists drawn for a batch, and all that a step on them needs but the policy's gradient.

    Args:
        items (`torch.Tensor` of shape `(B, G, K)`): The lists.
        rewards (`ListRewards`): Their rewards, `(B, G)` each.
        reference_rewards (`np.ndarray` of shape `(B, M)`): Those of the reference lists; M is 0 where there are none.
        targets (`torch.Tensor` of shape `(B, G)`): What is learned from, before the KL.
        ref_logps (`torch.Tensor` of shape `(B, G)`): Log-probability under the reference.
        old_logps (`torch.Tensor` of shape `(B, G)`): The same under the policy that drew them.
        advantages (`torch.Tensor` of shape `(B, G)`): What the gradient is weighted by.
    """

    items: Tensor
    rewards: ListRewards
    reference_rewards: np.ndarray
    targets: Tensor
    ref_logps: Tensor
    old_logps: Tensor
    advantages: Tensor


def rollout_metrics(rollouts: Rollouts, num_items: int) -> dict[str, Tensor]:
    """One value a prompt, `(B,)` each.

    `kl` is the mean log-ratio to the reference, `kl_k3` its estimate that is never negative. `quantile` is the mean
    share of references that a rollout beats, ties counted half: 0.5 for the reference policy itself. `saturated` is
    the share of rollouts that no reference beats, `tied_pairs` that of pairs which the target does not tell apart,
    `dead_groups` that of prompts without any difference. `invalid` and `duplicates` count items, and are always 0.
    """
    metrics = {"reward": _mean(rollouts.rewards.total)}
    metrics |= {f"rewards/{name}": _mean(values) for name, values in rollouts.rewards.parts.items()}
    log_ratio = rollouts.old_logps - rollouts.ref_logps
    metrics["kl"] = log_ratio.mean(1)
    metrics["blade/kl_k3"] = (torch.expm1(-log_ratio) + log_ratio).mean(1)
    metrics["blade/logps"] = rollouts.old_logps.mean(1)
    metrics["blade/target_std"] = rollouts.targets.std(1, correction=0)
    num_rollouts = rollouts.targets.shape[1]
    tied = rollouts.targets.unsqueeze(1) == rollouts.targets.unsqueeze(2)
    metrics["blade/tied_pairs"] = (tied.sum((1, 2)) - num_rollouts) / (num_rollouts * (num_rollouts - 1))
    metrics["blade/dead_groups"] = tied.all(-1).all(-1)
    if rollouts.reference_rewards.shape[1]:
        metrics |= _against_references(rollouts.rewards.total, rollouts.reference_rewards)
    ordered = rollouts.items.sort(-1).values
    metrics["blade/invalid"] = ((ordered < 0) | (ordered >= num_items)).sum((1, 2))
    metrics["blade/duplicates"] = (ordered[..., 1:] == ordered[..., :-1]).sum((1, 2))
    return metrics


def _against_references(rewards: np.ndarray, references: np.ndarray) -> dict[str, Tensor]:
    lower = references[:, None] < rewards[..., None]
    equal = references[:, None] == rewards[..., None]
    quantile = (lower + equal / 2).mean(-1)
    return {"blade/quantile": _mean(quantile), "blade/saturated": _mean(rewards >= references.max(1, keepdims=True))}


def _mean(values: np.ndarray) -> Tensor:
    return torch.from_numpy(values.mean(1))
