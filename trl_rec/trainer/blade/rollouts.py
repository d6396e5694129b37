"""Stores the rollouts (the sampled lists) of a training step, and computes their metrics.

Legend: B prompts, G rollouts per prompt, M reference lists per prompt, K items per list.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from trl_rec.evaluation.torch_rewards import RewardTensors
from trl_rec.losses.blade import leave_one_out


class Rollouts(NamedTuple):
    """The lists sampled for a batch, and everything else that the loss needs except the current log-probabilities.

    Args:
        items (`torch.Tensor` of shape `(B, G, K)`): The sampled lists.
        rewards (`RewardTensors`): The rewards of the lists. Each tensor has the shape `(B, G)`.
        reference_rewards (`torch.Tensor` of shape `(B, M)`): Rewards of the reference lists; M is 0 if there are none.
        targets (`torch.Tensor` of shape `(B, G)`): Learning targets, which the policy learns to maximise. They are
            computed from the rewards, without the KL penalty.
        ref_logps (`torch.Tensor` of shape `(B, G)`): Log-probabilities of the lists under the reference policy.
        old_logps (`torch.Tensor` of shape `(B, G)`): Log-probabilities of the lists under the policy that sampled the
            lists.
        advantages (`torch.Tensor` of shape `(B, G)`): Advantages, computed from the targets minus the KL penalty.
    """

    items: Tensor
    rewards: RewardTensors
    reference_rewards: Tensor
    targets: Tensor
    ref_logps: Tensor
    old_logps: Tensor
    advantages: Tensor


def rollout_metrics(rollouts: Rollouts, num_items: int) -> dict[str, Tensor]:
    """Computes the metrics of a step, one value per prompt, `(B,)` each.

    "Target" means the learning target, and "policy" the policy that sampled the rollouts.

    - `reward` and `rewards/NAME`: The weighted sum of the rewards, and each single reward. Both are averaged over the
      rollouts of the prompt.
    - `kl`: Log-probability of a rollout under the policy minus its log-probability under the reference, averaged over
      the rollouts.
    - `blade/kl_k3`: The k3 estimate of the KL divergence, which is never negative.
    - `blade/logps`: Log-probability of a rollout under the policy, averaged over the rollouts.
    - `blade/target_std`: Standard deviation of the target over the rollouts of the prompt.
    - `blade/tied_pairs`: Fraction of the pairs of rollouts in which both rollouts have the same target.
    - `blade/dead_groups`: 1 if all rollouts of the prompt have the same target, otherwise 0. With equal targets, the
      advantages depend only on the KL penalty.
    - `blade/zero_advantages`: Fraction of rollouts whose target equals the mean target of the prompt's other rollouts.
      Without the KL penalty, the advantages of these rollouts would be 0.
    - `blade/quantile`, only with reference lists: Fraction of the prompt's reference lists that have a lower reward
      than a rollout, averaged over the rollouts. A reference list that has the same reward as the rollout is counted
      as one half. If rollouts and reference lists come from the same policy, the expected value is therefore 0.5.
    - `blade/saturated`, only with reference lists: Fraction of rollouts whose reward is at least as high as that of
      every reference list.
    - `blade/invalid` and `blade/duplicates`: Numbers of invalid and of repeated items in the rollouts. They are 0
      unless decoding has a bug.
    """
    rewards = rollouts.rewards
    metrics = {"reward": rewards.total.mean(1)}
    metrics.update({f"rewards/{name}": values.mean(1) for name, values in rewards.parts.items()})

    # Divergence from the reference.
    log_ratio = rollouts.old_logps - rollouts.ref_logps  # (B, G)
    metrics["kl"] = log_ratio.mean(1)
    metrics["blade/kl_k3"] = (torch.expm1(-log_ratio) + log_ratio).mean(1)
    metrics["blade/logps"] = rollouts.old_logps.mean(1)

    # Spread of the target within a group (the rollouts of one prompt).
    metrics["blade/target_std"] = rollouts.targets.std(1, correction=0)
    num_rollouts = rollouts.targets.shape[1]
    tied = rollouts.targets.unsqueeze(1) == rollouts.targets.unsqueeze(2)  # (B, G, G)
    num_pairs = num_rollouts * (num_rollouts - 1)
    metrics["blade/tied_pairs"] = (tied.sum((1, 2)) - num_rollouts) / num_pairs
    metrics["blade/dead_groups"] = tied.all(-1).all(-1)
    metrics["blade/zero_advantages"] = (leave_one_out(rollouts.targets) == 0).float().mean(1)
    if rollouts.reference_rewards.shape[1]:
        metrics.update(_against_references(rewards.total, rollouts.reference_rewards))

    # Errors that constrained decoding should prevent.
    ordered = rollouts.items.sort(-1).values
    metrics["blade/invalid"] = ((ordered < 0) | (ordered >= num_items)).sum((1, 2))
    metrics["blade/duplicates"] = (ordered[..., 1:] == ordered[..., :-1]).sum((1, 2))
    return metrics


def _against_references(rewards: Tensor, references: Tensor) -> dict[str, Tensor]:
    """Compares the rewards of rollouts, `(B, G)`, with those of reference lists, `(B, M)`."""
    lower = references.unsqueeze(1) < rewards.unsqueeze(2)  # (B, G, M)
    equal = references.unsqueeze(1) == rewards.unsqueeze(2)
    quantile = (lower.to(rewards.dtype) + equal.to(rewards.dtype) / 2).mean((1, 2))
    saturated = rewards >= references.amax(1, keepdim=True)
    return {"blade/quantile": quantile, "blade/saturated": saturated.to(rewards.dtype).mean(1)}
