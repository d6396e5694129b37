"""Compares bootstrap intervals and paired tests with direct resampling and enumeration, and checks their statistical
properties."""

import numpy as np
import pytest

from trl_rec.evaluation import intervals
from trl_rec.evaluation.intervals import bootstrap_interval, paired_comparison, seed_errors, seed_variances


def resampled_by_index(values, num_resamples, seed):
    rng = np.random.default_rng(seed)
    return np.array([values[rng.integers(0, len(values), len(values))].mean() for _ in range(num_resamples)])


def test_the_interval_equals_that_of_resampling_users():
    values = np.random.default_rng(1).choice([0, 0.3, 0.6, 1.0], 300)
    expected = np.quantile(resampled_by_index(values, 4000, 2), [0.025, 0.975])
    np.testing.assert_allclose(bootstrap_interval(values, num_resamples=4000), expected, atol=0.004)


def test_intervals_cover_the_true_mean_at_their_level():
    rng, covered = np.random.default_rng(3), 0
    for seed in range(200):
        low, high = bootstrap_interval(rng.random(80) < 0.3, num_resamples=300, level=0.8, seed=seed)
        covered += low <= 0.3 <= high
    assert 0.7 <= covered / 200 <= 0.9


def test_the_interval_depends_on_the_seed_but_not_on_the_order_of_users(monkeypatch):
    values = np.random.default_rng(4).random(50)
    interval = bootstrap_interval(values, seed=5)
    assert bootstrap_interval(values[::-1], seed=5) == interval
    assert bootstrap_interval(values, seed=6) != interval
    monkeypatch.setattr(intervals, "DRAWS_IN_MEMORY", 500)  # chunks of ten resamples draw the same numbers
    assert bootstrap_interval(values, seed=5) == pytest.approx(interval)


def test_equal_values_give_an_interval_of_zero_width():
    assert bootstrap_interval(np.full(10, 0.25)) == (0.25, 0.25)


def test_paired_comparison_with_and_without_a_difference():
    rng = np.random.default_rng(7)
    base, noise = rng.random(400), rng.normal(0, 0.1, 400)
    better = paired_comparison(base + 0.03 + noise, base)
    assert better.low < better.difference < better.high and better.low > 0 and better.p_value < 0.01
    assert paired_comparison(base + noise - noise.mean(), base).p_value > 0.9
    assert paired_comparison(base, base) == (0, 0, 0, 1)


def test_paired_comparison_is_symmetric():
    rng = np.random.default_rng(8)
    a, b = rng.integers(0, 3, 200) / 2, rng.integers(0, 3, 200) / 2
    one, other = paired_comparison(a, b, num_resamples=4000), paired_comparison(b, a, num_resamples=4000)
    assert one.p_value == other.p_value
    assert one.difference == -other.difference
    assert (one.low, one.high) == pytest.approx((-other.high, -other.low), abs=0.01)


def test_the_p_value_equals_that_of_all_sign_flips():
    differences = np.array([0.5, 0.25, 0.25, -0.25, 1.0, 0.5, 0.0, 0.5])
    signs = 1 - 2 * ((np.arange(256)[:, None] >> np.arange(8)) & 1)
    exact = (np.abs(signs @ differences) >= abs(differences.sum()) - 1e-12).mean()
    assert paired_comparison(differences, np.zeros(8), num_resamples=20000).p_value == pytest.approx(exact, abs=0.01)


def test_p_values_are_uniform_under_no_difference():
    rng = np.random.default_rng(9)
    p = np.array(
        [paired_comparison(rng.normal(size=40), rng.normal(size=40), num_resamples=200).p_value for _ in range(200)]
    )
    assert 0.02 <= (p <= 0.1).mean() <= 0.2


def by_seed(rng, num_seeds, num_users, seed_sd, both_sd=1.0):
    """Returns values that vary between users, between seeds, and between the combinations of users and seeds."""
    of_users = rng.normal(size=num_users)
    of_seeds = seed_sd * rng.normal(size=(num_seeds, 1))
    return of_users + of_seeds + both_sd * rng.normal(size=(num_seeds, num_users))


def test_one_seed_has_no_error_of_seeds():
    """`seed_errors` draws random errors of the mean, which represent the variation between seeds."""
    values = np.random.default_rng(10).normal(0.1, 1, 60)
    assert not seed_errors(values[None], 5, np.random.default_rng(0)).any()
    assert bootstrap_interval(values[None]) == bootstrap_interval(values)
    assert paired_comparison(values[None], np.zeros(60)) == paired_comparison(values, np.zeros(60))


def test_if_users_do_not_differ_the_errors_of_seeds_have_a_t_distribution():
    values = np.repeat([[0.1], [0.2], [0.6]], 8, axis=1)  # for each seed, all users have the same value
    drawn = seed_errors(values, 200_000, np.random.default_rng(11))
    standard_error = np.std([0.1, 0.2, 0.6], ddof=1) / np.sqrt(3)
    np.testing.assert_allclose(np.quantile(drawn, [0.9, 0.975]), standard_error * np.array([1.886, 4.303]), rtol=0.03)


def test_the_variances_of_seeds_are_estimated_without_bias():
    rng = np.random.default_rng(12)
    drawn = np.array([seed_variances(by_seed(rng, 3, 40, seed_sd=0.5, both_sd=2)) for _ in range(2000)])
    expected = [(0.5**2 + 2**2 / 40) / 3, 2**2 / 40 / 3]
    np.testing.assert_allclose(drawn.mean(0), expected, rtol=0.06)
    assert seed_variances(np.array([[0.0], [2.0]])) == (1, 0)


@pytest.mark.parametrize(("num_seeds", "seed_sd"), [(3, 0.0), (3, 0.2), (6, 1.0)])
def test_intervals_and_p_values_cover_the_variation_between_seeds(num_seeds, seed_sd):
    rng = np.random.default_rng(13)
    zeros = np.zeros(50)
    results = [
        paired_comparison(by_seed(rng, num_seeds, 50, seed_sd), zeros, num_resamples=199, seed=seed)
        for seed in range(200)
    ]
    assert np.mean([one.low <= 0 <= one.high for one in results]) >= 0.91
    assert np.mean([one.p_value < 0.05 for one in results]) <= 0.08


def test_a_single_run_is_paired_with_every_seed():
    rng = np.random.default_rng(14)
    a, b = rng.random((3, 40)), rng.random(40)
    assert paired_comparison(a, b) == paired_comparison(a, np.tile(b, (3, 1)))
    with pytest.raises(ValueError, match="a has 3 seeds, but b has 2; give the same seeds"):
        paired_comparison(a, rng.random((2, 40)))


@pytest.mark.parametrize(
    ("values", "settings", "message"),
    [
        ([0.1, np.nan], {}, "values, row 1: nan is not a finite number"),
        ([[0.1, 0.2], [0.1, np.inf]], {}, "values, row 1: inf is not a finite number"),
        ([], {}, r"values has the shape \(0,\)"),
        ([[[0.1]]], {}, r"values has the shape \(1, 1, 1\)"),
        ([0.1], {"level": 1.0}, "level must be"),
        ([0.1], {"num_resamples": 0}, "num_resamples must be at least 1, not 0"),
    ],
)
def test_bad_input_is_an_error(values, settings, message):
    with pytest.raises(ValueError, match=message):
        bootstrap_interval(np.array(values), **settings)


def test_runs_over_different_users_are_an_error():
    with pytest.raises(ValueError, match="a has 2 users, but b has 3"):
        paired_comparison(np.zeros(2), np.zeros(3))
