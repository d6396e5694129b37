"""Implements BLADE: converts the rewards of lists to Best-of-N rewards, and computes the policy gradient loss.

Best-of-N sampling keeps the best of N sampled lists. The Best-of-N reward of a list estimates the log of the factor by
which this makes the list more likely. It depends only on the rank of the list's reward, not on the scale of the
rewards. The rank is computed among the reference lists, which are sampled from the reference policy by default. With a
positive `dynamic_coefficient`, the rollouts of the same prompt count too, so the rank changes with the policy.

There are four steps: `posterior_cdf` estimates the rank as a probability, `best_of_n_reward` converts it to a
Best-of-N reward, `leave_one_out` or `standardized` computes advantages, and `list_policy_loss` computes the loss. Only
the last step has a gradient. The KL penalty is left to the caller. The penalty is beta times the log-ratio between the
policy and the reference, without a gradient. It has to be subtracted from the Best-of-N rewards before the advantages
are computed.

Legend: B prompts, G rollouts per prompt, M reference lists per prompt, N the `best_of`.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from trl_rec.losses.output import LossOutput, at_least_float32


LARGEST_LOG_RATIO = 20.0  # a ratio of 5e8; a log-ratio above 88 overflows in float32, and the gradient would be NaN


def posterior_cdf(
    rewards: Tensor, reference_rewards: Tensor, *, dynamic_coefficient: float, prior: float = 0.5
) -> tuple[Tensor, Tensor]:
    r"""Estimates two probabilities for each rollout: that another list has at most the rollout's reward, and that
    another list has a lower reward than the rollout.

    The estimate follows BLADE (arXiv 2605.04559). Let $S_{ref}(t)$ be the number of reference lists, and $S_{on}(t)$
    the number of rollouts, with a reward of at most $t$:

    $$ F_\tau(t) = (1 - \tau) \frac{S_{ref}(t) + a}{M + 2a} + \tau \frac{S_{on}(t)}{G} $$

    The first fraction is the mean of a Beta posterior: the reference lists are trials under the prior Beta(a, a). The
    rollouts are further evidence, with the weight tau, which is the argument `dynamic_coefficient`. With 0, the
    estimate depends only on the reference lists. With 1, it depends only on the rollouts of the prompt.

    Reconstruction: the full text of the paper was not available. Notes on the paper mention a Beta model with a static
    prior, on-policy evidence and a dynamic coefficient; the formula is ours.

    Args:
        rewards (`torch.Tensor` of shape `(B, G)`): Finite rewards of the rollouts. Only the order of the rewards
            matters, so equally good lists must have exactly equal rewards, without rounding errors.
        reference_rewards (`torch.Tensor` of shape `(B, M)`): Rewards of the reference lists, in the same dtype as
            `rewards`. Otherwise, equal rewards could compare as unequal, because they are rounded differently.
        dynamic_coefficient (`float`): Weight of the rollouts in the estimate, from 0 to 1; the paper's tau.
        prior (`float`, *optional*, defaults to `0.5`): Parameter a of the prior Beta(a, a). It must be positive, so
            that the returned `at_most` is never 0. The value 0.5 gives Jeffreys' prior.

    Returns:
        `at_most` and `below`, `(B, G)` each: the estimates $F_\tau$ at the reward of each rollout. For `at_most`, $S$
        counts the rewards that are at most the reward of the rollout. For `below`, $S$ counts only lower rewards.
    """
    _check_estimate(rewards, reference_rewards, dynamic_coefficient, prior)
    rewards = at_least_float32(rewards)
    reference_rewards = at_least_float32(reference_rewards)

    at_most = _posterior_mean(rewards, reference_rewards, dynamic_coefficient, prior, inclusive=True)
    below = _posterior_mean(rewards, reference_rewards, dynamic_coefficient, prior, inclusive=False)
    return at_most, below


def best_of_n_reward(at_most: Tensor, below: Tensor, *, best_of: float) -> Tensor:
    r"""Computes the Best-of-N reward R: the log of a list's probability under Best-of-N sampling from a policy, minus
    the log of its probability under that policy.

    Let $F$ and $F_-$ be the two estimates of [`posterior_cdf`], `at_most` and `below`:

    $$ R = \log \frac{F^N - F_-^N}{F - F_-} $$

    $F - F_-$ is the probability of a list with the same reward. If $F_-$ equals $F$, R is the limit
    $\log N + (N - 1) \log F$. The policy that maximises $E[R] - KL$ is proportional to the reference policy times
    $\exp R$. If F is exact, that policy is Best-of-N sampling. This requires the KL coefficient 1: with a coefficient
    $\beta$, the optimum is proportional to the reference policy times $\exp(R / \beta)$. With N = 1, R is 0 for every
    list.

    Args:
        at_most (`torch.Tensor` of shape `(B, G)`): $F$, greater than 0 and at most 1.
        below (`torch.Tensor` of shape `(B, G)`): $F_-$, from 0 to `at_most`.
        best_of (`float`): N, at least 1. It may be in the hundreds and need not be an integer.

    Returns:
        `torch.Tensor` of shape `(B, G)`: The rewards R, which are finite.
    """
    if best_of < 1:
        raise ValueError(
            f"`best_of` must be at least 1, but is {best_of}; it is a number of lists. Set it to 8, for example."
        )

    # With x = F_- / F = 1 - share, R = (N - 1) log F + log(-expm1(N log x)) - log(1 - x). This form stays finite even
    # if N is in the hundreds.
    share = (at_most - below) / at_most
    ties = (-torch.expm1(best_of * torch.log1p(-share))).log() - share.log()
    return (best_of - 1) * at_most.log() + ties.where(share > 0, math.log(best_of))


def leave_one_out(rewards: Tensor) -> Tensor:
    """Computes advantages `(B, G)`: each reward minus the mean of the *other* rewards of its prompt.

    The advantages are exactly 0 if all rewards are equal. Subtracting the mean of all G rewards would scale every
    advantage by (G - 1) / G. G must be at least 2.

    The policy gradient is unbiased if a reward does not depend on the other rollouts. With a positive
    `dynamic_coefficient`, rewards depend on the other rollouts: a list with a high reward lowers the ranks of the
    other lists, and thereby the mean that is subtracted from its own reward. Therefore the advantage of the list, and
    thus the gradient of E[R], is overestimated. This bias shrinks as G grows.
    """
    num_rollouts = rewards.shape[-1]
    if num_rollouts < 2:
        raise ValueError(
            f"`rewards` must have at least 2 rollouts per prompt, but has {num_rollouts}; sample more rollouts."
        )

    rewards = at_least_float32(rewards)
    return (rewards.unsqueeze(-1) - rewards.unsqueeze(-2)).sum(-1) / (num_rollouts - 1)


def standardized(rewards: Tensor, *, eps: float = 1e-4) -> Tensor:
    """Computes GRPO's advantages `(B, G)` as TRL does: rewards minus their mean, divided by their standard deviation
    plus `eps`.

    The standard deviation is the sample standard deviation, with G - 1 in the denominator. The advantages are exactly
    0 if all rewards of a prompt are equal, even with `eps` 0. Standardizing removes the scale of the rewards, so N
    affects only their relative distances. If the rewards of a prompt have only two distinct values, N has no effect
    except through `eps`.
    """
    num_rollouts = rewards.shape[-1]
    centred = leave_one_out(rewards) * ((num_rollouts - 1) / num_rollouts)
    deviation = (centred.square().sum(-1, keepdim=True) / (num_rollouts - 1)).sqrt()
    return torch.where(deviation > 0, centred / (deviation + eps), 0.0)


def list_policy_loss(logps: Tensor, old_logps: Tensor | None, advantages: Tensor, *, clip: float = 0.2) -> LossOutput:
    r"""Computes the clipped policy gradient loss of whole lists, one value per list.

    Let $\rho = \pi(y) / \pi_{old}(y)$ for a list $y$ with the advantage $A$:

    $$ L = -\min(\rho A, \mathrm{clip}(\rho, 1 - c, 1 + c) A) $$

    Deviation: $\log \rho$ is clamped to at most 20, so that the loss and its gradient stay finite.

    Args:
        logps (`torch.Tensor` of shape `(B, G)`): Log-probabilities of the sampled lists, normalised over the legal
            tokens. bfloat16 and float16 inputs are computed in float32.
        old_logps (`torch.Tensor` of shape `(B, G)` or `None`): Log-probabilities of the lists under the policy that
            sampled them. `None` if that was the current policy, so that rho is 1.
        advantages (`torch.Tensor` of shape `(B, G)`): Advantages, which are treated as constants. Lists with
            advantage 0 do not contribute.
        clip (`float`, *optional*, defaults to `0.2`): Clip range c, which must be positive.

    Returns:
        [`LossOutput`]: The loss, `(B, G)`, and the metrics `ratio` and `clipped` (1 where clipping makes the gradient
        of the list zero).
    """
    if clip <= 0:
        raise ValueError(
            f"`clip` must be positive, but is {clip}; it bounds the distance of the ratio from 1. Set it to 0.2, for "
            "example."
        )
    old_logps = logps if old_logps is None else old_logps
    if not logps.shape == old_logps.shape == advantages.shape:
        shapes = f"{tuple(logps.shape)}, {tuple(old_logps.shape)} and {tuple(advantages.shape)}"
        raise ValueError(f"`logps`, `old_logps` and `advantages` must have the same shape, but have {shapes}.")

    # Compute the ratio and the clipped loss.
    advantages = advantages.detach()
    ratio = (at_least_float32(logps) - at_least_float32(old_logps).detach()).clamp(max=LARGEST_LOG_RATIO).exp()
    loss = -torch.minimum(ratio * advantages, ratio.clamp(1 - clip, 1 + clip) * advantages)

    # The minimum selects the clipped term only if the ratio is above the clip range and the advantage is positive, or
    # the ratio is below it and the advantage is negative.
    ratio = ratio.detach()
    clipped = ((ratio > 1 + clip) & (advantages > 0)) | ((ratio < 1 - clip) & (advantages < 0))
    return LossOutput(loss, {"ratio": ratio, "clipped": clipped.to(ratio.dtype)})


def _posterior_mean(
    rewards: Tensor, reference_rewards: Tensor, dynamic_coefficient: float, prior: float, *, inclusive: bool
) -> Tensor:
    """Computes F, `(B, G)`. Counts rewards below the reward of the rollout, and equal rewards too if `inclusive`."""
    offline = (_count(rewards, reference_rewards, inclusive) + prior) / (reference_rewards.shape[-1] + 2 * prior)
    online = _count(rewards, rewards, inclusive) / rewards.shape[-1]
    return (1 - dynamic_coefficient) * offline + dynamic_coefficient * online


def _count(thresholds: Tensor, rewards: Tensor, inclusive: bool) -> Tensor:
    """Returns how many `rewards` of the same row are below each threshold, `(B, G)`. If `inclusive`, rewards equal to
    the threshold are counted too."""
    counts = torch.searchsorted(rewards.sort(-1).values, thresholds.contiguous(), right=inclusive)
    return counts.to(thresholds.dtype)  # otherwise, the division would convert the integers to torch's default dtype


def _check_estimate(rewards: Tensor, reference_rewards: Tensor, dynamic_coefficient: float, prior: float) -> None:
    if not 0 <= dynamic_coefficient <= 1:
        raise ValueError(
            f"`dynamic_coefficient` must be between 0 and 1, but is {dynamic_coefficient}; it is the weight of the "
            "rollouts in the estimate."
        )
    if prior <= 0:
        raise ValueError(
            f"`prior` must be positive, but is {prior}; otherwise an estimate could be 0, which has no logarithm. "
            "Set it to 0.5, for example."
        )

    same_rows = rewards.ndim == reference_rewards.ndim == 2 and len(rewards) == len(reference_rewards)
    if not same_rows or rewards.dtype != reference_rewards.dtype:
        raise ValueError(
            f"`rewards` is {rewards.dtype} {tuple(rewards.shape)} and `reference_rewards` is "
            f"{reference_rewards.dtype} {tuple(reference_rewards.shape)}; both must have one row per prompt and the "
            "same dtype."
        )

    if bool(rewards.isfinite().all() & reference_rewards.isfinite().all()):
        return
    for name, values in (("rewards", rewards), ("reference_rewards", reference_rewards)):
        if not values.isfinite().all():
            row, column = values.isfinite().logical_not().nonzero()[0].tolist()
            raise ValueError(f"`{name}` must be finite, but is {values[row, column]} at row {row}, list {column}.")
