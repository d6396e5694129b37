"""The rollouts of one training step, and the metrics logged about them.

Legend: B prompts, G rollouts per prompt, M reference lists per prompt, K items per list.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from trl_rec.evaluation.rewards import ListRewards


class Rollouts(NamedTuple):
    """The lists drawn for a batch, and everything that a step on them needs except the policy's gradient.

    Args:
        items (`torch.Tensor` of shape `(B, G, K)`): The lists.
        rewards (`ListRewards`): Their rewards, `(B, G)` each.
        reference_rewards (`np.ndarray` of shape `(B, M)`): Rewards of the reference lists; M is 0 if there are none.
        targets (`torch.Tensor` of shape `(B, G)`): What the policy learns from, before the KL.
        ref_logps (`torch.Tensor` of shape `(B, G)`): Log-probabilities under the reference.
        old_logps (`torch.Tensor` of shape `(B, G)`): Log-probabilities under the policy that drew the lists.
        advantages (`torch.Tensor` of shape `(B, G)`): Weights of the gradient.
    """

    items: Tensor
    rewards: ListRewards
    reference_rewards: np.ndarray
    targets: Tensor
    ref_logps: Tensor
    old_logps: Tensor
    advantages: Tensor


def rollout_metrics(rollouts: Rollouts, num_items: int) -> dict[str, Tensor]:
    """Metrics of a step, one value per prompt, `(B,)` each.

    - `reward` and `rewards/NAME`: means over the prompt's rollouts.
    - `kl`: mean log-ratio to the reference; `blade/kl_k3`: an estimate of it that is never negative.
    - `blade/logps`: mean log-probability of a list; `blade/target_std`: deviation of the target within the group.
    - `blade/tied_pairs`: share of pairs that the target does not tell apart; `blade/dead_groups`: share of prompts
      whose rollouts all have one target, which teach nothing.
    - `blade/quantile`: mean share of references that a rollout beats, ties counted half, so 0.5 for the reference
      policy itself; `blade/saturated`: share of rollouts that no reference beats.
    - `blade/invalid` and `blade/duplicates`: number of such items. Always 0.
    """
    rewards = rollouts.rewards
    metrics = {"reward": _mean(rewards.total)}
    metrics.update({f"rewards/{name}": _mean(values) for name, values in rewards.parts.items()})

    # How far the policy is from the reference.
    log_ratio = rollouts.old_logps - rollouts.ref_logps  # (B, G)
    metrics["kl"] = log_ratio.mean(1)
    metrics["blade/kl_k3"] = (torch.expm1(-log_ratio) + log_ratio).mean(1)
    metrics["blade/logps"] = rollouts.old_logps.mean(1)

    # How well the target tells the rollouts of a prompt apart.
    metrics["blade/target_std"] = rollouts.targets.std(1, correction=0)
    num_rollouts = rollouts.targets.shape[1]
    tied = rollouts.targets.unsqueeze(1) == rollouts.targets.unsqueeze(2)  # (B, G, G)
    num_pairs = num_rollouts * (num_rollouts - 1)
    metrics["blade/tied_pairs"] = (tied.sum((1, 2)) - num_rollouts) / num_pairs
    metrics["blade/dead_groups"] = tied.all(-1).all(-1)
    if rollouts.reference_rewards.shape[1]:
        metrics.update(_against_references(rewards.total, rollouts.reference_rewards))

    # What decoding under the trie rules out.
    ordered = rollouts.items.sort(-1).values
    metrics["blade/invalid"] = ((ordered < 0) | (ordered >= num_items)).sum((1, 2))
    metrics["blade/duplicates"] = (ordered[..., 1:] == ordered[..., :-1]).sum((1, 2))
    return metrics


def _against_references(rewards: np.ndarray, references: np.ndarray) -> dict[str, Tensor]:
    """Where rollouts `(B, G)` stand among references `(B, M)`."""
    lower = references[:, None] < rewards[..., None]  # (B, G, M)
    equal = references[:, None] == rewards[..., None]
    quantile = (lower + equal / 2).mean(-1)  # (B, G)
    saturated = rewards >= references.max(1, keepdims=True)
    return {"blade/quantile": _mean(quantile), "blade/saturated": _mean(saturated)}


def _mean(values: np.ndarray) -> Tensor:
    """The mean over the rollouts of each prompt."""
    return torch.from_numpy(values.mean(1))
