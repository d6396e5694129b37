"""BLADE: turns the reward of a list into the Best-of-N reward of its rank, and that into a policy gradient.

Training depends only on how a reward ranks, never on its size. The rank is counted among the reference lists of the
starting policy and among the rollouts of the same step, so it moves with the policy. The four steps are
`posterior_cdf` (the rank as a probability), `best_of_n_reward` (the reward of that rank), `leave_one_out` or
`standardized` (the advantage), and `list_policy_loss`, the only step with a gradient. There is no KL term here: the
caller adds it to the advantage, as minus beta times the difference of log-probabilities, held constant.

Legend: B prompts, G rollouts per prompt, M reference lists per prompt, N the `best_of`.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from trl_rec.losses.output import LossOutput, at_least_float32


LARGEST_LOG_RATIO = 20.0  # a ratio of 5e8; above 88 float32 overflows, and 0 * inf would make the gradient NaN


def posterior_cdf(
    rewards: Tensor, reference_rewards: Tensor, *, dynamic_coefficient: float, prior: float = 0.5
) -> tuple[Tensor, Tensor]:
    r"""Estimates the probability that a list's reward is at most, or less than, that of each rollout.

    BLADE, arXiv 2605.04559. With $S(t)$ the number of rewards up to $t$ among references or rollouts:

    $$ F_\tau(t) = (1 - \tau) \frac{S_{ref}(t) + a}{M + 2a} + \tau \frac{S_{on}(t)}{G} $$

    This is the mean of a Beta posterior. The references are trials under the prior Beta(a, a); the rollouts are
    further evidence, whose share in the mean is tau. With coefficient 0 the estimate is static, with 1 it is the rank
    within the group of rollouts alone.

    Reconstruction: the paper's body was not available. Notes on it mention a Beta model with a static prior, on-policy
    evidence and a dynamic coefficient; the formula is ours.

    Args:
        rewards (`torch.Tensor` of shape `(B, G)`): Finite rewards of the rollouts. Their scale has no effect, but ties
            do: equal lists must have exactly equal rewards.
        reference_rewards (`torch.Tensor` of shape `(B, M)`): Rewards of the reference lists, in the same dtype, since
            the same reward in float32 and in float64 would not tie.
        dynamic_coefficient (`float`): The paper's tau, from 0 to 1.
        prior (`float`, *optional*, defaults to `0.5`): The a of the prior Beta(a, a). It must be positive, so that no
            estimate is 0; 0.5 is Jeffreys' prior.

    Returns:
        `at_most` and `below`, `(B, G)` each: $F_\tau$ counting the rewards up to each rollout's own, and those
        strictly below it.
    """
    _check_estimate(rewards, reference_rewards, dynamic_coefficient, prior)
    rewards = at_least_float32(rewards)
    reference_rewards = at_least_float32(reference_rewards)

    at_most = _posterior_mean(rewards, reference_rewards, dynamic_coefficient, prior, inclusive=True)
    below = _posterior_mean(rewards, reference_rewards, dynamic_coefficient, prior, inclusive=False)
    return at_most, below


def best_of_n_reward(at_most: Tensor, below: Tensor, *, best_of: float) -> Tensor:
    r"""The logarithm of how much likelier a list is as the best of N lists than as a single list; exact under ties.

    $$ R = \log \frac{F^N - F_-^N}{F - F_-} $$

    If nothing ties, so that $F_- = F$, its limit is $\log N + (N - 1) \log F$. The policy that maximises $E[R] - KL$
    is the starting policy times $\exp R$. If F is exact, that is Best-of-N itself, so the coefficient of the KL is 1.
    N = 1 gives 0.

    Args:
        at_most (`torch.Tensor` of shape `(B, G)`): $F$, above 0 and up to 1.
        below (`torch.Tensor` of shape `(B, G)`): $F_-$, from 0 to `at_most`.
        best_of (`float`): N, at least 1. It may be in the hundreds, and need not be a whole number.

    Returns:
        `torch.Tensor` of shape `(B, G)`: R, finite.
    """
    if best_of < 1:
        raise ValueError(
            f"`best_of` is {best_of}, but the best is chosen from at least 1 list: give a number such as 8."
        )

    # R = (N - 1) log F + log(-expm1(N log x)) - log(1 - x) with x = F_- / F = 1 - share: finite for N in the hundreds.
    share = (at_most - below) / at_most
    ties = (-torch.expm1(best_of * torch.log1p(-share))).log() - share.log()
    return (best_of - 1) * at_most.log() + ties.where(share > 0, math.log(best_of))


def leave_one_out(rewards: Tensor) -> Tensor:
    """Advantages `(B, G)`: each reward minus the mean of the *other* rewards of its prompt.

    They are exactly 0 if all rewards are equal. Subtracting the mean of all G would shrink every advantage by
    (G - 1) / G. G must be at least 2.

    The policy gradient is unbiased if a reward does not depend on the other rollouts. With a dynamic coefficient above
    0 it does depend on them: a list that ranks high lowers the estimate of the others, so the gradient of E[R] is
    overestimated, by less the larger G is.
    """
    num_rollouts = rewards.shape[-1]
    if num_rollouts < 2:
        raise ValueError(
            f"`rewards` has {num_rollouts} rollout per prompt, but rollouts are compared: sample at least 2."
        )

    rewards = at_least_float32(rewards)
    return (rewards.unsqueeze(-1) - rewards.unsqueeze(-2)).sum(-1) / (num_rollouts - 1)


def standardized(rewards: Tensor, *, eps: float = 1e-4) -> Tensor:
    """GRPO's advantages `(B, G)`, as in TRL: each reward minus the mean, divided by the standard deviation plus `eps`.

    The standard deviation is that of a sample, with G - 1 in the denominator. The advantages are exactly 0 if all
    rewards of a prompt are equal, even with `eps` 0. The scale of the rewards is lost, and of N only its influence on
    the shape of R remains: in a group with two levels of reward, every target that separates the levels gives the same
    advantages.
    """
    num_rollouts = rewards.shape[-1]
    centred = leave_one_out(rewards) * ((num_rollouts - 1) / num_rollouts)
    deviation = (centred.square().sum(-1, keepdim=True) / (num_rollouts - 1)).sqrt()
    return torch.where(deviation > 0, centred / (deviation + eps), 0.0)


def list_policy_loss(logps: Tensor, old_logps: Tensor | None, advantages: Tensor, *, clip: float = 0.2) -> LossOutput:
    r"""The clipped policy gradient of whole lists, one value per list.

    With $\rho = \pi(y) / \pi_{old}(y)$:

    $$ L = -\min(\rho A, \mathrm{clip}(\rho, 1 - c, 1 + c) A) $$

    Deviation: the logarithm of the ratio is clamped at 20, so that value and gradient stay finite.

    Args:
        logps (`torch.Tensor` of shape `(B, G)`): Log-probabilities of the sampled lists over the legal tokens.
            bfloat16 and float16 are computed in float32.
        old_logps (`torch.Tensor` of shape `(B, G)` or `None`): The same under the policy that sampled the lists;
            `None` if that is the current policy, so that rho is 1.
        advantages (`torch.Tensor` of shape `(B, G)`): Held constant. Advantage 0 contributes nothing.
        clip (`float`, *optional*, defaults to `0.2`): c, positive.

    Returns:
        [`LossOutput`]: The loss, `(B, G)`, and the metrics `ratio`, and `clipped`: 1 where clipping removes the list's
        gradient.
    """
    if clip <= 0:
        raise ValueError(
            f"`clip` is {clip}, but it is how far the ratio may leave 1: give a positive number, such as 0.2."
        )
    old_logps = logps if old_logps is None else old_logps
    if not logps.shape == old_logps.shape == advantages.shape:
        shapes = f"{tuple(logps.shape)}, {tuple(old_logps.shape)} and {tuple(advantages.shape)}"
        raise ValueError(
            f"`logps`, `old_logps` and `advantages` have the shapes {shapes}: give one value per list in each."
        )

    # The ratio, and its clipped product with the advantage.
    advantages = advantages.detach()
    ratio = (at_least_float32(logps) - at_least_float32(old_logps).detach()).clamp(max=LARGEST_LOG_RATIO).exp()
    loss = -torch.minimum(ratio * advantages, ratio.clamp(1 - clip, 1 + clip) * advantages)

    # The minimum takes the clipped side only where the ratio has moved beyond the clip in the advantage's direction.
    ratio = ratio.detach()
    clipped = ((ratio > 1 + clip) & (advantages > 0)) | ((ratio < 1 - clip) & (advantages < 0))
    return LossOutput(loss, {"ratio": ratio, "clipped": clipped.to(ratio.dtype)})


def _posterior_mean(
    rewards: Tensor, reference_rewards: Tensor, dynamic_coefficient: float, prior: float, *, inclusive: bool
) -> Tensor:
    """F, `(B, G)`, counting rewards equal to the rollout's own if `inclusive`."""
    offline = (_count(rewards, reference_rewards, inclusive) + prior) / (reference_rewards.shape[-1] + 2 * prior)
    online = _count(rewards, rewards, inclusive) / rewards.shape[-1]
    return (1 - dynamic_coefficient) * offline + dynamic_coefficient * online


def _count(thresholds: Tensor, rewards: Tensor, inclusive: bool) -> Tensor:
    """`(B, G)`: how many `rewards` of the row are below each threshold, or up to it if `inclusive`."""
    counts = torch.searchsorted(rewards.sort(-1).values, thresholds.contiguous(), right=inclusive)
    return counts.to(thresholds.dtype)  # dividing integers would give the default dtype, which may differ


def _check_estimate(rewards: Tensor, reference_rewards: Tensor, dynamic_coefficient: float, prior: float) -> None:
    if not 0 <= dynamic_coefficient <= 1:
        raise ValueError(
            f"`dynamic_coefficient` is {dynamic_coefficient}, but it is the rollouts' share of the evidence: give 0 "
            "to 1."
        )
    if prior <= 0:
        raise ValueError(
            f"`prior` is {prior}, but an estimate of 0 has no logarithm: give a positive number, such as 0.5."
        )

    same_rows = rewards.ndim == reference_rewards.ndim == 2 and len(rewards) == len(reference_rewards)
    if not same_rows or rewards.dtype != reference_rewards.dtype:
        raise ValueError(
            f"`rewards` is {rewards.dtype} {tuple(rewards.shape)} and `reference_rewards` is "
            f"{reference_rewards.dtype} {tuple(reference_rewards.shape)}: give both for the same prompts, one row per "
            "prompt, and in one dtype."
        )

    for name, values in (("rewards", rewards), ("reference_rewards", reference_rewards)):
        if not values.isfinite().all():
            row, column = values.isfinite().logical_not().nonzero()[0].tolist()
            raise ValueError(f"`{name}`, row {row}, list {column} is {values[row, column]}: give finite rewards.")
