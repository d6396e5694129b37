"""Tests the smallest difference that a study can detect, as estimated from the results of a pilot.

A pilot consists of runs of two recommenders that have already been evaluated. If the pilot or the study has one seed,
the smallest difference equals 2.8 standard errors of the mean difference between these two recommenders, rescaled to
the study's number of users. A true difference of this size is significant (at the level of 5 %) in 80 % of studies. If
the pilot and the study both have several seeds, the smallest difference is usually larger, and also depends on the
numbers of seeds and comparisons.
"""

import numpy as np
import pytest

from trl_rec.evaluation import smallest_difference


RNG = np.random.default_rng(0)
BASE = [{"m": RNG.random(80)}]
PILOT = [{"m": BASE[0]["m"] + RNG.normal(0, 0.3, 80)} for _ in range(3)]


def resolved(pilot: list[dict[str, np.ndarray]] = PILOT, **options: float) -> float:
    return smallest_difference(pilot, BASE, metric="m", **options)


def test_one_seed_gives_two_point_eight_standard_errors() -> None:
    differences = PILOT[0]["m"] - BASE[0]["m"]
    standard_error = differences.std(ddof=1) / np.sqrt(80)
    assert resolved(PILOT[:1]) == pytest.approx(2.8 * standard_error)
    assert resolved(PILOT[:1], num_users=320) == pytest.approx(1.4 * standard_error)
    assert resolved(PILOT[:1], num_seeds=3) == resolved(PILOT[:1])  # one seed does not show how much seeds differ


def test_equal_seeds_give_two_point_eight_standard_errors() -> None:
    assert resolved(PILOT[:1] * 6) == pytest.approx(resolved(PILOT[:1]), rel=0.05)


def test_more_seeds_and_users_resolve_smaller_differences_and_more_comparisons_only_larger_ones() -> None:
    three = resolved()
    assert resolved(num_seeds=5) < three
    assert resolved(num_users=800) < three < resolved(num_comparisons=4)


def test_seeds_that_differ_more_resolve_only_larger_differences() -> None:
    shifted = [{"m": run["m"] + shift} for run, shift in zip(PILOT, [0.0, 0.2, 0.4], strict=True)]
    assert resolved(shifted) > 2 * resolved()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_seeds": 0}, "num_seeds must be"),
        ({"num_users": 0}, "num_users must be"),
        ({"num_comparisons": 0}, "num_c"),
    ],
)
def test_bad_sizes_are_an_error(options: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        resolved(**options)
    with pytest.raises(ValueError, match="a pilot of one user has no standard error"):
        smallest_difference([{"m": np.ones(1)}], [{"m": np.zeros(1)}], metric="m")
