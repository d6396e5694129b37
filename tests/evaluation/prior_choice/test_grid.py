"""Tests the search for the best setting (strength and eps) of a prior: when the grid of settings is extended, and
which setting is chosen."""

from collections.abc import Sequence

import numpy as np
import pytest

from trl_rec.evaluation.prior_choice import Setting, best_setting, is_on_grid, search_grid


@pytest.mark.parametrize(
    ("best", "has_eps", "at_limit"),
    [((1.0, 0.1), True, False), ((11.0, 0.0003), True, False), ((0.05, 60.0), True, False), ((1e9, 1e9), True, True),
     ((0.06, None), False, False)],
)  # fmt: skip
def test_the_grid_is_extended_until_the_best_setting_is_inside(best, has_eps: bool, at_limit: bool) -> None:
    def measure(settings: Sequence[Setting]) -> list[float]:
        return [
            -abs(np.log((one.strength or 1e-9) / best[0])) - (abs(np.log(one.eps / best[1])) if one.eps else 0)
            for one in settings
        ]

    values, limited = search_grid(measure, has_eps=has_eps)
    found = best_setting(values)
    assert limited == at_limit
    assert list(values) == sorted(values, key=lambda one: (one.strength, one.eps or 0))
    assert all(is_on_grid(*one, has_eps=has_eps) for one in values)
    if not at_limit:
        strengths = sorted({one.strength for one in values if one.strength})
        assert strengths[0] < found.strength < strengths[-1] and abs(np.log2(found.strength / best[0])) < 0.3
    if has_eps and not at_limit:
        epsilons = sorted({one.eps for one in values if one.eps})
        assert epsilons[0] < found.eps < epsilons[-1]


def test_strength_zero_is_chosen_if_the_prior_does_not_help() -> None:
    """Before strength 0 is chosen, the grid is extended to the smallest strength that is allowed."""
    values, limited = search_grid(lambda settings: [-one.strength for one in settings], has_eps=True)
    assert best_setting(values) == Setting(0.0, None) and not limited
    assert min(one.strength for one in values if one.strength) == 0.031


@pytest.mark.parametrize("one_axis", [False, True])
def test_a_weak_prior_is_found_even_if_strength_zero_is_best_in_the_first_grid(one_axis: bool) -> None:
    def measure(settings: Sequence[Setting]) -> list[float]:
        """Returns the value of each setting. The value is highest at strength 0.06 and eps 1, where it is 0.0101
        higher than at strength 0. On the grid, the closest strength is 0.062."""
        far = [abs(np.log(one.strength / 0.06)) + abs(np.log(one.eps)) if one.eps else 1.01 for one in settings]
        return [-one / 100 for one in far]

    values, limited = search_grid(measure, has_eps=True, one_axis_at_a_time=one_axis)
    assert best_setting(values).strength == 0.062 and not limited


@pytest.mark.parametrize(
    ("strength", "eps"),
    [(1.5, 0.1), (2.0, 0.5), (2.0, None), (0.0, 0.1), (45.0, 0.1), (None, None), ("2", []), ({}, 1)],
)
def test_other_settings_are_not_on_the_grid(strength: object, eps: object) -> None:
    assert not is_on_grid(strength, eps, has_eps=True)
    assert is_on_grid(strength, None, has_eps=False) == (strength in (2.0, 0.0))
