"""BLADE: the reward of a list turned into its Best-of-N tilt, by a distribution of rewards that moves with the policy.

What is learned from is how a reward ranks, never how large it is: how many reference lists of the starting policy, and
how many rollouts of the same step, earn no more. Only `list_policy_loss` has a gradient. Its KL term is not here: it
is part of the advantage, as minus beta times the difference of log-probabilities, held constant.

Legend: B prompts, G rollouts a prompt, M reference lists a prompt, N the `best_of`.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from trl_rec.losses.output import LossOutput, at_least_float32


LARGEST_LOG_RATIO = 20.0  # a ratio of 5e8; beyond 88 float32 overflows, and 0 * inf would make the gradient NaN


def posterior_cdf(
    rewards: Tensor, reference_rewards: Tensor, *, dynamic_coefficient: float, prior: float = 0.5
) -> tuple[Tensor, Tensor]:
    r"""Estimates of how probable a list with at most, and with less than, each rollout's reward is (arXiv 2605.04559).

    With $S(t)$ the number of rewards up to $t$ among references or rollouts:

    $$ F_\tau(t) = (1 - \tau) \frac{S_{ref}(t) + a}{M + 2a} + \tau \frac{S_{on}(t)}{G} $$

    the mean of a Beta posterior: the references are trials from the prior Beta(a, a), the rollouts are evidence that
    has the share tau in the mean. Coefficient 0 is the static estimate, 1 the rank within the group alone.

    Reconstruction: the paper's body was not at hand; that a Beta model with static prior, on-policy evidence and a
    dynamic coefficient is used is told by notes on it, the formula is ours.

    Args:
        rewards: `(B, G)`, finite. The scale plays no part, but ties do: equal lists must have equal rewards to the
            last bit.
        reference_rewards: `(B, M)`, of the same dtype, since a float32 and a float64 of one reward would not tie.
        dynamic_coefficient: The paper's tau, from 0 to 1.
        prior: The a of the prior Beta(a, a), positive: no estimate is 0, then. 0.5 is Jeffreys'.

    Returns:
        `at_most` and `below`, `(B, G)`: $F_\tau$ with rewards up to, and with rewards strictly below, each rollout's
        own.
    """
    _check_estimate(rewards, reference_rewards, dynamic_coefficient, prior)
    rewards, reference_rewards = at_least_float32(rewards), at_least_float32(reference_rewards)

    def fused(inclusive: bool) -> Tensor:
        offline = (_count(rewards, reference_rewards, inclusive) + prior) / (reference_rewards.shape[-1] + 2 * prior)
        online = _count(rewards, rewards, inclusive) / rewards.shape[-1]
        return (1 - dynamic_coefficient) * offline + dynamic_coefficient * online

    return fused(True), fused(False)


def best_of_n_reward(at_most: Tensor, below: Tensor, *, best_of: float) -> Tensor:
    r"""The logarithm of how much likelier the best of N lists is than a single one, `(B, G)`, ties counted exactly:

    $$ R = \log \frac{F^N - F_-^N}{F - F_-} $$

    With $F_- = F$, where nothing ties, its limit $\log N + (N - 1) \log F$. The policy that maximises $E[R] - KL$ is
    the starting policy times $\exp R$: Best-of-N itself where F is exact, so the KL's coefficient is 1. N = 1 gives 0.

    Args:
        at_most: F, above 0 and up to 1.
        below: F with a minus, from 0 to `at_most`.
        best_of: N, at least 1; in the hundreds, and between whole numbers, too.
    """
    if best_of < 1:
        raise ValueError(
            f"`best_of` is {best_of}, but the best is chosen from at least 1 list: give a number such as 8."
        )
    share = (at_most - below) / at_most
    ties = (-torch.expm1(best_of * torch.log1p(-share))).log() - share.log()
    return (best_of - 1) * at_most.log() + ties.where(share > 0, math.log(best_of))


def leave_one_out(rewards: Tensor) -> Tensor:
    """Advantages: each reward `(B, G)` minus the mean of the *others* of its prompt; exactly 0 where all are equal.

    The mean of all G would shrink every advantage by (G - 1) / G. G is at least 2. The policy gradient is unbiased
    where a reward does not depend on the other rollouts. With a dynamic coefficient above 0 it does: a list that ranks
    high lowers the estimate of the others, and so the gradient of E[R] comes out too long, the less so the larger G.
    """
    num_rollouts = rewards.shape[-1]
    if num_rollouts < 2:
        raise ValueError(
            f"`rewards` has {num_rollouts} rollout a prompt, but one is compared with others: sample at least 2."
        )
    rewards = at_least_float32(rewards)
    return (rewards.unsqueeze(-1) - rewards.unsqueeze(-2)).sum(-1) / (num_rollouts - 1)


def standardized(rewards: Tensor, *, eps: float = 1e-4) -> Tensor:
    """GRPO's advantages, as TRL has them: each reward `(B, G)` minus the mean, over the sample standard deviation plus
    `eps`.

    Exactly 0 where all are equal, at `eps` 0 as well. The scale of the rewards is lost, and so is N but for R's shape:
    where a group has two levels of reward, every target that tells them apart gives the same advantages.
    """
    num_rollouts = rewards.shape[-1]
    centred = leave_one_out(rewards) * ((num_rollouts - 1) / num_rollouts)
    deviation = (centred.square().sum(-1, keepdim=True) / (num_rollouts - 1)).sqrt()
    return torch.where(deviation > 0, centred / (deviation + eps), 0.0)


def list_policy_loss(logps: Tensor, old_logps: Tensor | None, advantages: Tensor, *, clip: float = 0.2) -> LossOutput:
    r"""The clipped policy gradient of whole lists, one value a list, with $\rho = \pi(y) / \pi_{old}(y)$:

    $$ L = -\min(\rho A, \mathrm{clip}(\rho, 1 - c, 1 + c) A) $$

    Deviation: the logarithm of the ratio is held at 20 at most, so that value and gradient stay finite.

    Args:
        logps: `(B, G)`: log-probabilities of the sampled lists, over the legal tokens. bfloat16 and float16 are
            computed in float32.
        old_logps: `(B, G)`: the same under the policy that sampled them, or `None` where it is the present one: rho is
            1, then.
        advantages: `(B, G)`, held constant. Advantage 0 contributes nothing.
        clip: The c, positive.

    Returns:
        The loss, `(B, G)`, and the metrics `ratio`, and `clipped`: 1 where the clip takes the list's gradient away.
    """
    if clip <= 0:
        raise ValueError(
            f"`clip` is {clip}, but it is how far the ratio may leave 1: give a positive number, such as 0.2."
        )
    old_logps = logps if old_logps is None else old_logps
    if not logps.shape == old_logps.shape == advantages.shape:
        shapes = f"{tuple(logps.shape)}, {tuple(old_logps.shape)} and {tuple(advantages.shape)}"
        raise ValueError(
            f"`logps`, `old_logps` and `advantages` have the shapes {shapes}: give one value a list in each."
        )
    advantages = advantages.detach()
    ratio = (at_least_float32(logps) - at_least_float32(old_logps).detach()).clamp(max=LARGEST_LOG_RATIO).exp()
    loss = -torch.minimum(ratio * advantages, ratio.clamp(1 - clip, 1 + clip) * advantages)
    ratio = ratio.detach()
    clipped = ((ratio > 1 + clip) & (advantages > 0)) | ((ratio < 1 - clip) & (advantages < 0))
    return LossOutput(loss, {"ratio": ratio, "clipped": clipped.to(ratio.dtype)})


def _count(thresholds: Tensor, rewards: Tensor, inclusive: bool) -> Tensor:
    """How many `rewards` of the row are up to, or below, each threshold."""
    counts = torch.searchsorted(rewards.sort(-1).values, thresholds.contiguous(), right=inclusive)
    return counts.to(thresholds.dtype)  # an integer divided would become the default dtype, float64 or not


def _check_estimate(rewards: Tensor, reference_rewards: Tensor, dynamic_coefficient: float, prior: float) -> None:
    if not 0 <= dynamic_coefficient <= 1:
        raise ValueError(
            f"`dynamic_coefficient` is {dynamic_coefficient}, but it is the rollouts' share of the evidence: give 0 to 1."
        )
    if prior <= 0:
        raise ValueError(
            f"`prior` is {prior}, but an estimate of 0 has no logarithm: give a positive number, such as 0.5."
        )
    same_rows = rewards.ndim == reference_rewards.ndim == 2 and len(rewards) == len(reference_rewards)
    if not same_rows or rewards.dtype != reference_rewards.dtype:
        raise ValueError(
            f"`rewards` is {rewards.dtype} {tuple(rewards.shape)} and `reference_rewards` is {reference_rewards.dtype} "
            f"{tuple(reference_rewards.shape)}: give both for the same prompts, a row each, and in one dtype."
        )
    for name, values in (("rewards", rewards), ("reference_rewards", reference_rewards)):
        if not values.isfinite().all():
            row, column = values.isfinite().logical_not().nonzero()[0].tolist()
            raise ValueError(f"`{name}`, row {row}, list {column} is {values[row, column]}: give finite rewards.")
