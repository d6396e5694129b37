"""Compares BLADE's estimates, rewards, advantages and loss with loops and with figures from a separate simulation. For
a policy over five lists, also compares the expected gradient of the loss with the gradient of the objective, by
enumerating all groups of three rollouts."""

import math
from fractions import Fraction
from itertools import product
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.testing import assert_close

from tests.losses.batches import picked
from tests.oracles import blade as oracle
from trl_rec.losses.blade import best_of_n_reward, leave_one_out, list_policy_loss, posterior_cdf, standardized
from trl_rec.losses.output import LossOutput


def doubles(values: Any) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def target(rewards: Tensor, references: Tensor, *, tau: float, best_of: float = 8, prior: float = 0.5) -> Tensor:
    """Returns the reward R as the trainer computes it: `posterior_cdf`, then `best_of_n_reward`.

    The tests call R the target. With tau 0, the target is static: it does not depend on the other rollouts of the
    prompt. With tau above 0, the target is moving: it also depends on them.
    """
    cdf = posterior_cdf(rewards, references, dynamic_coefficient=tau, prior=prior)
    return best_of_n_reward(*cdf, best_of=best_of)


def gradient(logps: Tensor, old_logps: Tensor | None, advantages: Tensor, clip: float) -> tuple[LossOutput, Tensor]:
    logps = logps.detach().clone().requires_grad_()
    output = list_policy_loss(logps, old_logps, advantages, clip=clip)
    return output, torch.autograd.grad(output.loss.sum(), logps)[0]


# The estimate


def test_cdf_worked_by_hand() -> None:
    """Rollouts have the rewards 0, 1/2 and 1, and references have 0, 0, 1/2 and 7/10. With tau (`dynamic_coefficient`)
    1/4 and prior 1/2, the estimated CDF at the reward of a rollout is 3/4 (S_ref + 1/2) / 5 + 1/4 S_on / 3. S_ref and
    S_on are the numbers of references and of rollouts whose reward is at most that of this rollout (for `at_most`) or
    below it (for `below`).

    S_ref at most: 2, 3, 4    S_on at most: 1, 2, 3    at_most = 11/24, 83/120, 37/40
    S_ref below:   0, 2, 4    S_on below:   0, 1, 2    below   = 3/40, 11/24, 101/120
    """
    found = posterior_cdf(doubles([[0, 0.5, 1]]), doubles([[0, 0, 0.5, 0.7]]), dynamic_coefficient=0.25)
    assert_close(found[0], doubles([[11 / 24, 83 / 120, 37 / 40]]))
    assert_close(found[1], doubles([[3 / 40, 11 / 24, 101 / 120]]))


def test_reward_worked_by_hand() -> None:
    """A list hits with probability 1/20. The best of 8 lists misses only if all of them miss. The Best-of-8
    rewards of a hit and of a miss differ by 2.27. With F = `at_most`, the formula 7 log F, which ignores ties, gives a
    difference of only 0.36."""
    found = best_of_n_reward(doubles([1, 0.95]), doubles([0.95, 0]), best_of=8)
    assert_close(found, doubles([math.log((1 - 0.95**8) / 0.05), 7 * math.log(0.95)]))
    assert (found[0] - found[1]).item() == pytest.approx(2.27, abs=0.005)
    assert -7 * math.log(0.95) == pytest.approx(0.36, abs=0.005)


@st.composite
def groups(draw: st.DrawFn) -> tuple[Tensor, Tensor]:
    """Draws rewards of rollouts and references for some prompts. The rewards are multiples of 1/4, so that many are
    equal."""
    num_rows, num_rollouts, num_references = draw(st.integers(0, 3)), draw(st.integers(2, 6)), draw(st.integers(0, 7))
    values = st.integers(-2, 4).map(lambda quarter: quarter / 4)
    parts = []
    for width in (num_rollouts, num_references):
        row = st.lists(values, min_size=width, max_size=width)
        parts.append(doubles(draw(st.lists(row, min_size=num_rows, max_size=num_rows))).view(num_rows, width))
    return parts[0], parts[1]


COEFFICIENTS = st.sampled_from([0.0, 0.125, 0.5, 1.0])  # exact in binary


@given(groups(), COEFFICIENTS, st.sampled_from([0.5, 0.25, 2.0]), st.sampled_from([1, 2, 8, 300]))
def test_estimate_and_reward_agree_with_exact_fractions(
    batch: tuple[Tensor, Tensor], tau: float, prior: float, best_of: int
) -> None:
    rows = zip(batch[0].tolist(), batch[1].tolist(), strict=True)
    wanted = [oracle.posterior_cdf(*row, Fraction(tau), Fraction(prior)) for row in rows]
    found = posterior_cdf(*batch, dynamic_coefficient=tau, prior=prior)
    for part in (0, 1):
        exact = doubles([[float(pair[part]) for pair in row] for row in wanted]).view_as(batch[0])
        assert_close(found[part], exact, rtol=1e-13, atol=1e-15)
    rewards = doubles([[oracle.best_of_n_reward(*pair, best_of) for pair in row] for row in wanted]).view_as(batch[0])
    assert_close(best_of_n_reward(*found, best_of=best_of), rewards, rtol=1e-11, atol=1e-11)


@given(groups(), st.sampled_from([1, 8, 40]))
def test_coefficient_0_gives_the_static_reward_that_counts_ties(batch: tuple[Tensor, Tensor], best_of: int) -> None:
    rows = zip(batch[0].tolist(), batch[1].tolist(), strict=True)
    wanted = [[oracle.static_reward(own, others, best_of, Fraction(1, 2)) for own in row] for row, others in rows]
    found = target(*batch, tau=0.0, best_of=best_of)
    assert_close(found, doubles(wanted).view_as(found), rtol=1e-12, atol=1e-12)


def test_without_ties_the_static_reward_is_n_minus_1_times_log_f_plus_log_n() -> None:
    references, rewards = normal(5, 16), normal(5, 8, seed=1)
    at_most, below = posterior_cdf(rewards, references, dynamic_coefficient=0.0)
    assert at_most.equal(below)
    assert_close(best_of_n_reward(at_most, below, best_of=8), 7 * at_most.log() + math.log(8))


def test_the_tilt_of_a_known_distribution_is_best_of_n() -> None:
    """The starting policy has six equally likely lists, of which three are tied. Its probabilities times exp(R) are
    the distribution of the best of 3 draws."""
    rewards = [0.0, 0.4, 0.4, 0.4, 0.9, 1.3]
    at_most = doubles([sum(other <= own for other in rewards) / 6 for own in rewards])
    below = doubles([sum(other < own for other in rewards) / 6 for own in rewards])
    law = best_of_n_reward(at_most, below, best_of=3).exp() / 6
    assert_close(law, doubles([float(share) for share in oracle.best_of_n_law(rewards, 3)]))


def test_at_coefficients_0_and_1_only_one_kind_of_evidence_counts() -> None:
    rewards, references, others = normal(2, 4), normal(2, 16, seed=1), normal(2, 16, seed=2)
    rank = posterior_cdf(rewards, references, dynamic_coefficient=1.0)
    assert_close(rank, posterior_cdf(rewards, others, dynamic_coefficient=1.0), rtol=0, atol=0)
    assert_close(rank[0], (1 + rewards.argsort(-1).argsort(-1)).double() / 4)
    assert_close(rank[0] - rank[1], torch.full_like(rewards, 0.25))
    alone = posterior_cdf(rewards[:, :1], references, dynamic_coefficient=0.0)
    together = posterior_cdf(rewards, references, dynamic_coefficient=0.0)
    assert_close(alone[0], together[0][:, :1], rtol=0, atol=0)


def test_only_ranks_within_a_prompt_count() -> None:
    rewards, references = normal(3, 6), normal(3, 16, seed=1)
    references[:, ::4] = rewards[:, :4]
    wanted = posterior_cdf(rewards, references, dynamic_coefficient=0.3)
    scaled = posterior_cdf((3 * rewards).exp(), (3 * references).exp(), dynamic_coefficient=0.3)
    assert_close(scaled, wanted, rtol=0, atol=0)
    rows, columns, order = torch.tensor([2, 0]), torch.tensor([5, 0, 3, 1, 4, 2]), torch.arange(16).flip(0)
    moved = posterior_cdf(rewards[rows][:, columns], references[rows][:, order], dynamic_coefficient=0.3)
    assert_close(moved, tuple(part[rows][:, columns] for part in wanted), rtol=0, atol=0)


@pytest.mark.parametrize("best_of", [8, 500, 900.5])
@pytest.mark.parametrize("tau", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_the_reward_is_finite_and_increasing_for_n_in_the_hundreds(
    best_of: float, tau: float, dtype: torch.dtype
) -> None:
    """The rewards lie below, among and above those of 300 references. In float32, the error is about `best_of` times
    the precision of float32."""
    rewards = torch.linspace(-0.5, 1.5, 9).expand(2, -1).to(dtype)
    references = torch.linspace(0, 1, 300).expand(2, -1).to(dtype)
    found = target(rewards, references, tau=tau, best_of=best_of)
    exact = target(rewards.double(), references.double(), tau=tau, best_of=best_of)
    assert found.dtype == torch.promote_types(dtype, torch.float32)
    assert found.isfinite().all()
    assert_close(found.double(), exact, rtol=1e-5, atol=2e-4)
    steps = exact.diff(dim=-1)
    assert (steps[:, 2:-2] > 0).all()
    assert (steps >= 0).all()


@pytest.mark.parametrize("best_of", [2, 8, 500])
def test_a_narrow_tie_is_close_to_no_tie(best_of: int) -> None:
    """If the dynamic coefficient is tiny, such as 1e-6, and no reference has the same reward as the rollout, `at_most`
    and `below` differ only in the last digits of float32. As they become equal, the Best-of-N reward tends to
    log N + (N - 1) log F, where F is `at_most`."""
    for gap in (0, 2**-24, 2**-22, 2**-20):
        found = best_of_n_reward(torch.tensor(0.9), torch.tensor(0.9 - gap), best_of=best_of)
        assert found.item() == pytest.approx(
            math.log(best_of) + (best_of - 1) * math.log(0.9), rel=1e-5, abs=best_of * 1e-6
        )


def test_n_need_not_be_whole_and_1_gives_no_reward() -> None:
    at_most, below = doubles([0.2, 0.7, 1.0]), doubles([0.0, 0.7, 0.9])
    between = [best_of_n_reward(at_most, below, best_of=best_of) for best_of in (7, 7.5, 8)]
    assert ((between[0] < between[1]) ^ (between[1] > between[2])).all()
    assert_close(best_of_n_reward(at_most, below, best_of=1), torch.zeros(3, dtype=torch.float64))
    assert_close(best_of_n_reward(at_most, below, best_of=1 + 1e-12), torch.zeros(3, dtype=torch.float64))


# Advantages


@given(groups(), st.sampled_from([0.0, 1e-4, 0.1]))
def test_advantages_agree_with_loops(batch: tuple[Tensor, Tensor], eps: float) -> None:
    rewards = batch[0] / 3  # thirds are not exact, so the mean of equal values may differ from the value
    wanted = doubles([oracle.leave_one_out(row) for row in rewards.tolist()]).view_as(rewards)
    assert_close(leave_one_out(rewards), wanted, rtol=1e-12, atol=1e-12)
    wanted = doubles([oracle.standardized(row, eps) for row in rewards.tolist()]).view_as(rewards)
    assert_close(standardized(rewards, eps=eps), wanted, rtol=1e-12, atol=1e-12)


def test_advantages_worked_by_hand() -> None:
    """The rewards are 1, 2 and 6. Leave-one-out gives 1 - 4, 2 - 3.5 and 6 - 1.5. The differences from the mean 3 are
    -2, -1 and 3, with sample variance (4 + 1 + 9) / 2 = 7."""
    rewards = doubles([[1, 2, 6]])
    assert_close(leave_one_out(rewards), doubles([[-3, -1.5, 4.5]]))
    assert_close(standardized(rewards, eps=0.0), doubles([[-2, -1, 3]]) / math.sqrt(7))
    assert_close(standardized(rewards), doubles([[-2, -1, 3]]) / (math.sqrt(7) + 1e-4))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_equal_rewards_give_advantages_of_exactly_0(dtype: torch.dtype) -> None:
    rewards = torch.tensor([[0.1] * 7, [-389.12] * 7], dtype=dtype)
    for advantages in (leave_one_out(rewards), standardized(rewards), standardized(rewards, eps=0.0)):
        assert advantages.eq(0).all()
        assert advantages.dtype == torch.promote_types(dtype, torch.float32)


@pytest.mark.parametrize("references", [[0, 0, 0, 1], [0, 0, 0, 0], [1, 1, 1, 1], [0.5, 0.5, 0.5, 0.5], [0, 1, 1, 1]])
@pytest.mark.parametrize("best_of", [2, 8, 100])
def test_two_levels_give_every_target_the_same_standardized_advantages(references: list[float], best_of: int) -> None:
    """If the rewards of a prompt have only two distinct values, and these values have different ranks among the
    references, the standardized advantages depend neither on tau nor on N."""
    rewards = doubles([[0, 1, 0, 0, 1, 0, 0, 0], [1, 1, 1, 0, 1, 1, 1, 1], [0, 0, 0, 0, 0, 0, 0, 0]])
    reference_rewards = doubles(references).expand(3, -1)
    wanted = standardized(rewards, eps=0.0)
    assert wanted.count_nonzero(-1).tolist() == [8, 8, 0]
    for tau in (0.0, 0.3, 1.0):
        found = standardized(target(rewards, reference_rewards, tau=tau, best_of=best_of), eps=0.0)
        assert_close(found, wanted, rtol=1e-9, atol=1e-9)


def test_the_static_target_has_no_signal_if_the_references_do_not_separate_two_levels() -> None:
    """Both reward values are below all references, so their ranks among the references are equal. With tau 0, only
    these ranks count. With tau 0.3, the ranks among the rollouts count too."""
    rewards, references = doubles([[0, 1, 1, 0]]), doubles([[2, 3, 4]])
    assert standardized(target(rewards, references, tau=0.0), eps=0.0).eq(0).all()
    found = standardized(target(rewards, references, tau=0.3), eps=0.0)
    assert_close(found, standardized(rewards, eps=0.0))


def test_with_saturated_references_blade_has_a_signal_and_best_of_n_has_none() -> None:
    """The references are saturated: every rollout has a higher reward than all references. Best-of-N is the case
    tau 0."""
    rewards, references = doubles([[1.4, 1.1, 1.3, 1.2]]), doubles([[0.2, 0.5, 0.9, 1.0]])
    static, blade = (leave_one_out(target(rewards, references, tau=tau)) for tau in (0.0, 0.3))
    assert static.eq(0).all()
    assert blade.unique().numel() == 4
    assert blade.argsort().equal(rewards.argsort())


# In the next two tests, the reward of a list is its quantile among the lists of the reference policy, from 0 to 1. If
# a policy is as good as the best of k lists of the reference policy, the rewards of its lists are k-th roots of
# uniform random numbers. The figures that the first of these tests expects are from a separate simulation of 500,000
# groups.


@pytest.mark.parametrize(
    ("strength", "tau", "figures"),
    [
        (1, 0.0, ".767 .111 .00003"),
        (4, 0.0, ".220 .223 .0035"),
        (16, 0.0, ".0579 .508 .127"),
        (64, 0.0, ".0156 .801 .546"),
        (1, 0.3, ".684 0 0"),
        (4, 0.3, ".295 0 0"),
        (16, 0.3, ".151 0 0"),
        (64, 0.3, ".114 0 0"),
    ],
)
def test_signal_within_a_group_as_the_policy_improves(strength: int, tau: float, figures: str) -> None:
    """A group has 8 rollouts and 16 references, and `strength` is k. The figures are:

    - the standard deviation of log `at_most` within a group, averaged over the groups,
    - the share of pairs of rollouts with equal Best-of-8 rewards,
    - the share of groups in which all Best-of-8 rewards are equal.

    A measured value may differ from its figure by up to four standard errors plus the rounding of the figure. The
    figure 0 is exact, so its rounding is 0.
    """
    generator = torch.Generator().manual_seed(strength)
    rewards = torch.rand(20_000, 8, generator=generator, dtype=torch.float64) ** (1 / strength)
    references = torch.rand(20_000, 16, generator=generator, dtype=torch.float64)
    cdf = posterior_cdf(rewards, references, dynamic_coefficient=tau)
    learned = best_of_n_reward(*cdf, best_of=8)
    equal = (learned[:, :, None] == learned[:, None, :]).double()
    measured = (cdf[0].log().std(-1, correction=0), (equal.sum((1, 2)) - 8) / 56, equal.amin((1, 2)))
    for values, figure in zip(measured, figures.split(), strict=True):
        wanted = float(figure)
        rounding = 0.5 * 10.0 ** -len(figure[1:]) if wanted else 0.0
        # An event with a probability below 0.001 may be missing from the sample, so its variance is also computed from
        # the figure.
        variance = max(values.var().item(), wanted * (1 - wanted) if wanted < 0.001 else 0.0)
        assert values.mean().item() == pytest.approx(wanted, abs=4 * math.sqrt(variance / len(values)) + rounding)


def test_the_probability_of_saturation_equals_its_closed_form() -> None:
    """A rollout is saturated if its reward is above those of all M references of its prompt. The policy is as good as
    the best of k lists of the reference policy.

    One rollout is saturated with probability k / (M + k). All G rollouts of a prompt are saturated with probability
    (M / k) B(M / k, G + 1), where B is the beta function. This is .11 at M = G = k = 8.
    """
    generator = torch.Generator().manual_seed(0)
    rewards = torch.rand(20_000, 8, generator=generator, dtype=torch.float64) ** (1 / 8)
    references = torch.rand(20_000, 8, generator=generator, dtype=torch.float64)
    saturated = posterior_cdf(rewards, references, dynamic_coefficient=0.0)[0] == 8.5 / 9
    assert saturated.double().mean().item() == pytest.approx(0.5, abs=0.01)
    assert saturated.all(-1).double().mean().item() == pytest.approx(1 / 9, abs=4 * math.sqrt(0.11 * 0.89 / 20_000))


@pytest.mark.parametrize(
    ("best_of", "effective"),
    [(4, (4.0, 4.4, 5.4, 7.2, 11.3)), (8, (8.0, 9.7, 15.6, 28.6, 63)), (16, (16, 24, 58, 133, 313))],
)
def test_the_oracle_reproduces_known_fixed_points(best_of: int, effective: tuple[float, ...]) -> None:
    """At the fixed point, BLADE no longer changes the policy. `effective` contains the effective N of this policy, for
    each tau. An effective N of 8 means that the policy is as good as the best of 8 lists of the starting policy. The
    values were computed without the oracle, so the next test can rely on the oracle."""
    for tau, wanted in zip((0.0, 0.1, 0.3, 0.5, 0.7), effective, strict=True):
        found, _ = oracle.fixed_point(best_of, tau)
        assert found == pytest.approx(wanted, abs=0.05 if wanted < 60 and wanted != round(wanted) else 0.5)


@pytest.mark.parametrize(("best_of", "tau"), [(4, 0.0), (8, 0.0), (4, 0.3), (8, 0.1), (8, 0.3), (8, 0.5), (16, 0.3)])
def test_the_estimator_leads_to_the_fixed_point(best_of: int, tau: float) -> None:
    """The policy has 4000 lists, which are equally likely at the start. The reward of a list is its quantile among
    them. Each step computes R from rollouts of the latest policy. It then moves the log-probabilities of the policy
    halfway to the sum of R and the log-probabilities of the starting policy.

    In the end, the effective N of the policy and its KL to the starting policy must agree with the oracle. With tau 0,
    the effective N equals N.
    """
    num_levels, num_rollouts = 4000, 1000
    quantiles = (np.arange(num_levels) + 0.5) / num_levels
    log_policy = np.zeros(num_levels)
    for _ in range(60):
        policy = np.exp(log_policy) / np.exp(log_policy).sum()
        rewards = np.interp(
            (np.arange(num_rollouts) + 0.5) / num_rollouts, policy.cumsum(), quantiles + 0.5 / num_levels
        )
        learned = target(torch.from_numpy(rewards)[None], torch.from_numpy(quantiles)[None], tau=tau, best_of=best_of)
        log_policy = (log_policy + np.interp(quantiles, rewards, learned[0].numpy())) / 2
    mean = policy @ quantiles
    kl = policy @ np.log(policy * num_levels)
    effective, wanted_kl = oracle.fixed_point(best_of, tau)
    assert mean / (1 - mean) == pytest.approx(effective, rel=0.03)
    assert kl == pytest.approx(wanted_kl, abs=0.02)


# The loss


def test_loss_and_gradient_worked_by_hand() -> None:
    """The ratios are 1.5, 1.5, 0.5, 0.5 and 1.1, the advantages are 2, -2, 2, -2 and 2, and clip is 0.2."""
    logps = doubles([[1.5, 1.5, 0.5, 0.5, 1.1]]).log()
    advantages = doubles([[2, -2, 2, -2, 2]])
    output, found = gradient(logps, torch.zeros_like(logps), advantages, 0.2)
    assert_close(output.loss, doubles([[-2.4, 3.0, -1.0, 1.6, -2.2]]))
    assert_close(found, doubles([[0, 3.0, -1.0, 0, -2.2]]))
    assert_close(output.metrics["ratio"], logps.exp())
    assert output.metrics["clipped"].tolist() == [[1, 0, 0, 1, 0]]


@given(
    st.lists(st.tuples(st.floats(-30, 30), st.floats(-30, 30), st.floats(-3, 3)), max_size=8),
    st.sampled_from([0.05, 0.2, 0.9, 3.0]),
)
def test_loss_gradient_and_metrics_agree_with_a_loop(rows: list[tuple[float, float, float]], clip: float) -> None:
    logps, old_logps, advantages = doubles(rows).view(-1, 3, 1).unbind(1)
    output, found = gradient(logps, old_logps, advantages, clip)
    wanted = doubles([oracle.list_loss(*row, clip) for row in rows]).view(-1, 4, 1).unbind(1)
    close = {"rtol": 1e-12, "atol": 1e-12}
    assert_close((output.loss, found, *output.metrics.values()), wanted, **close)


def test_gradcheck() -> None:
    """The advantages and the old log-probabilities are constants, so detaching them changes nothing. The gradient is 0
    only where the ratio is clipped."""
    logps, advantages = normal(3, 4), normal(3, 4, seed=2)
    old_logps = logps + 0.5 * normal(3, 4, seed=1)

    def loss(values: Tensor) -> Tensor:
        return list_policy_loss(values, old_logps, advantages).loss

    assert 0 < list_policy_loss(logps, old_logps, advantages).metrics["clipped"].sum() < 12
    assert torch.autograd.gradcheck(loss, logps.requires_grad_())


def test_on_policy_the_gradient_is_that_of_advantage_times_log_probability() -> None:
    logps, advantages = normal(2, 4), normal(2, 4, seed=1)
    for old_logps in (None, logps):
        output, found = gradient(logps, old_logps, advantages, 0.2)
        assert_close(output.loss, -advantages)
        assert_close(found, -advantages)
        assert output.metrics["ratio"].eq(1).all()
        assert output.metrics["clipped"].eq(0).all()


def test_advantage_0_contributes_nothing() -> None:
    logps, old_logps = doubles([[3.0, -3.0, 0.0, 1e4]]), torch.zeros(1, 4, dtype=torch.float64)
    output, found = gradient(logps, old_logps, torch.zeros_like(logps), 0.2)
    assert output.loss.eq(0).all()
    assert found.eq(0).all()
    assert output.metrics["clipped"].eq(0).all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_the_loss_is_finite_at_huge_differences(dtype: torch.dtype) -> None:
    logps = torch.tensor([[1e4, 1e4, -1e4, -1e4, 0.0]], dtype=dtype)
    advantages = torch.tensor([[2.0, -2.0, 2.0, -2.0, -2.0]])
    output, found = gradient(logps, -logps, advantages, 0.2)
    assert output.loss.isfinite().all()
    assert found.isfinite().all()
    assert_close(output.loss, torch.tensor([[-2.4, 2 * math.exp(20), 0.0, 1.6, 2.0]]))
    assert found.tolist() == [[0, 0, 0, 0, 2]]


@pytest.mark.parametrize(
    ("dtype", "computed"),
    [(torch.float64, torch.float64), (torch.bfloat16, torch.float32), (torch.float16, torch.float32)],
)
def test_half_precision_is_computed_in_float32(dtype: torch.dtype, computed: torch.dtype) -> None:
    logps, old_logps = normal(2, 4).to(dtype), normal(2, 4, seed=1).to(dtype)
    advantages = normal(2, 4, seed=2).to(computed)
    output, found = gradient(logps, old_logps, advantages, 0.2)
    assert {output.loss.dtype, *(metric.dtype for metric in output.metrics.values())} == {computed}
    assert found.dtype == dtype
    wanted, _ = gradient(logps.double(), old_logps.double(), advantages.double(), 0.2)
    assert_close(output.loss.double(), wanted.loss, rtol=1e-6, atol=1e-6)


def test_order_and_chunks_do_not_matter() -> None:
    logps, old_logps, advantages = normal(5, 4), normal(5, 4, seed=1), normal(5, 4, seed=2)
    whole, found = gradient(logps, old_logps, advantages, 0.2)
    for rows in (torch.tensor([3, 0, 4, 1, 2]), torch.tensor([2]), torch.tensor([], dtype=torch.int64)):
        part, part_found = gradient(logps[rows], old_logps[rows], advantages[rows], 0.2)
        assert_close((part, part_found), (picked(whole, rows), found[rows]), rtol=0, atol=0)


def test_metrics_are_detached_and_constants_get_no_gradient() -> None:
    logps, old_logps, advantages = (normal(2, 3, seed=seed).requires_grad_() for seed in range(3))
    before = logps.detach().clone()
    output = list_policy_loss(logps, old_logps, advantages)
    output.loss.sum().backward()
    assert list(output.metrics) == ["ratio", "clipped"]
    assert not any(metric.requires_grad for metric in output.metrics.values())
    assert old_logps.grad is None
    assert advantages.grad is None
    assert logps.grad is not None
    assert logps.detach().equal(before)


# A policy over five lists, for which all groups of three rollouts are enumerated


PREFERENCES = doubles([0.3, -0.4, 1.1, 0.0, -1.5])
START = doubles([0.0, 0.5, -0.5, 0.2, 0.4]).log_softmax(-1)
ITEM_REWARDS = doubles([0.2, 0.7, 0.2, 0.4, 0.9])  # the first and the third list are tied
GROUPS = torch.tensor(list(product(range(5), repeat=3)))


def expected_gradient(
    learned: Tensor, beta: float, old_preferences: Tensor | None = None, clip: float = 0.2
) -> Tensor:
    """Returns the gradient of the expected loss over all groups with respect to the policy's logits, `PREFERENCES`.
    `learned` contains the rewards of each group."""
    preferences = PREFERENCES.clone().requires_grad_()
    logps = preferences.log_softmax(-1)
    sampled_by = logps.detach() if old_preferences is None else old_preferences.log_softmax(-1)
    advantages = leave_one_out(learned - beta * (sampled_by - START)[GROUPS])
    old_logps = None if old_preferences is None else sampled_by[GROUPS]
    losses = list_policy_loss(logps[GROUPS], old_logps, advantages, clip=clip).loss
    return torch.autograd.grad((sampled_by[GROUPS].sum(-1).exp() * losses.mean(-1)).sum(), preferences)[0]


def objective_gradient(learned: Tensor, beta: float) -> Tensor:
    """Returns the gradient of -(E[R] - beta KL(policy || start)) over the five lists."""
    preferences = PREFERENCES.clone().requires_grad_()
    logps = preferences.log_softmax(-1)
    return torch.autograd.grad(-(logps.exp() * (learned - beta * (logps - START))).sum(), preferences)[0]


@pytest.mark.parametrize("beta", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("kind", ["reward", "best_of_n"])
def test_the_gradient_equals_that_of_reward_minus_kl(beta: float, kind: str) -> None:
    learned = ITEM_REWARDS
    if kind == "best_of_n":
        references = doubles([[0.2, 0.4, 0.4, 0.7, 0.1]])
        learned = target(ITEM_REWARDS[None], references, tau=0.0)[0]
        by_group = target(ITEM_REWARDS[GROUPS], references.expand(len(GROUPS), -1), tau=0.0)
        assert by_group.equal(learned[GROUPS])
    wanted = objective_gradient(learned, beta)
    assert wanted.abs().max() > 0.05
    assert_close(expected_gradient(learned[GROUPS], beta), wanted, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("tau", [0.1, 0.3, 0.5])
def test_a_moving_target_overestimates_the_gradient_of_the_reward(tau: float) -> None:
    """With tau above 0, the reward R of a list also depends on the other rollouts of its group. The test compares the
    expected gradient of the loss with the gradient of E[R] if each list has a constant R. This constant is the
    expected R of the list over all groups whose first rollout is the list. Both gradients have almost the same
    direction, but that of the loss is up to 1.5 times as long."""
    references = doubles([[0.2, 0.4, 0.4, 0.7, 0.1] * 3]).expand(len(GROUPS), -1)
    learned = target(ITEM_REWARDS[GROUPS], references, tau=tau)
    others = PREFERENCES.log_softmax(-1)[GROUPS[:, 1:]].sum(-1).exp()
    field = torch.zeros(5, dtype=torch.float64).index_add(0, GROUPS[:, 0], others * learned[:, 0])
    found, wanted = expected_gradient(learned, 0.0), objective_gradient(field, 0.0)
    assert torch.cosine_similarity(found, wanted, dim=0).item() > 0.999
    assert 1.02 < (found.norm() / wanted.norm()).item() < 1.5


def test_rollouts_of_an_old_policy_are_importance_weighted() -> None:
    """Without clipping and KL, the expected gradient does not depend on the policy that sampled the rollouts."""
    found = expected_gradient(ITEM_REWARDS[GROUPS], 0.0, PREFERENCES + normal(5) / 2, clip=1e6)
    assert_close(found, objective_gradient(ITEM_REWARDS, 0.0), rtol=1e-12, atol=1e-12)


def test_at_the_optimum_every_advantage_vanishes() -> None:
    learned = target(ITEM_REWARDS[None], doubles([[0.2, 0.4, 0.4, 0.7, 0.1]]), tau=0.0)[0]
    tilt = (START + learned).log_softmax(-1)
    advantages = leave_one_out((learned - (tilt - START))[GROUPS])
    assert_close(advantages, torch.zeros_like(advantages), rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"dynamic_coefficient": 1.5}, "`dynamic_coefficient` must be between 0 and 1, but is 1.5"),
        ({"dynamic_coefficient": math.nan}, "`dynamic_coefficient` must be .* but is nan"),
        ({"prior": 0.0}, "`prior` must be positive, but is 0.0"),
        ({"reference_rewards": torch.zeros(3, 5)}, r"torch.float32 \(2, 4\) and .* torch.float32 \(3, 5\)"),
        ({"rewards": torch.zeros(4), "reference_rewards": torch.zeros(4)}, "one row per prompt and the same dtype"),
        ({"reference_rewards": doubles([[0.0], [0.0]])}, "torch.float32 .* torch.float64 .* the same dtype"),
        (
            {"reference_rewards": torch.tensor([[0.0, 0], [1, math.nan]])},
            "`reference_rewards` must be finite, but is nan at row 1, list 1",
        ),
        (
            {"rewards": torch.tensor([[0.0, 0], [math.inf, 0]])},
            "`rewards` must be finite, but is inf at row 1, list 0",
        ),
    ],
)
def test_invalid_estimates_are_refused(changed: dict[str, Any], message: str) -> None:
    settings = {"rewards": torch.zeros(2, 4), "reference_rewards": torch.zeros(2, 5), "dynamic_coefficient": 0.3}
    posterior_cdf(**settings)
    with pytest.raises(ValueError, match=message):
        posterior_cdf(**{**settings, **changed})


def test_invalid_settings_are_refused() -> None:
    values = torch.zeros(2, 4)
    with pytest.raises(ValueError, match="`best_of` must be at least 1, but is 0.5"):
        best_of_n_reward(values + 1, values, best_of=0.5)
    for advantages in (leave_one_out, standardized):
        with pytest.raises(ValueError, match="`rewards` must have at least 2 rollouts per prompt, but has 1"):
            advantages(values[:, :1])
    with pytest.raises(ValueError, match="`clip` must be positive, but is 0"):
        list_policy_loss(values, None, values, clip=0)
    for old_logps, advantages in ((None, values[:, :1]), (values[:, 0], values)):
        with pytest.raises(ValueError, match="must have the same shape, but have .*"):
            list_policy_loss(values, old_logps, advantages)
