"""Searches a grid of settings of a prior for the best setting. The grid grows during the search.

The grid has an axis for the strength and, if the prior has an `eps` (the weight of item popularity), an axis for
`eps`. It also contains strength 0, which is the policy alone. The axes grow while the best setting is on an edge of
the grid, up to `STRENGTH_LIMITS` and `EPS_LIMITS`. While the policy alone is best, the grid grows towards weaker
priors.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple, TypeVar

from trl_rec.decoding.priors import SavedPrior


AnyPrior = TypeVar("AnyPrior", bound=SavedPrior)
# A step on an axis is a whole number n. At step n, the strength is 2 ** (n / 2), and eps is 10 ** (n / 2). Both are
# rounded to two significant digits.
STRENGTH_STEPS = range(-4, 4)  # 0.25 to 2.8
EPS_STEPS = range(-4, 3)  # 0.01 to 10
STRENGTH_LIMITS = (-10, 10)  # 0.031 to 32
EPS_LIMITS = (-8, 6)  # 0.0001 to 1000


class Setting(NamedTuple):
    """One setting of a prior.

    Args:
        strength (`float`): Exponent of the prior's item weights; 0 is the policy alone.
        eps (`float`, *optional*): Weight of the popularity. None if the prior has no such weight, or if the strength
            is 0.
    """

    strength: float
    eps: float | None


def search_grid(
    measure: Callable[[Sequence[Setting]], list[float]], *, has_eps: bool, one_axis_at_a_time: bool = False
) -> tuple[dict[Setting, float], bool]:
    """Measures a grid of settings, and extends it while the best setting is on an edge.

    Args:
        measure: Returns the metric of each setting.
        has_eps: Whether the grid has the axis `eps`.
        one_axis_at_a_time: Whether to measure only the strengths at the best eps, and the values of eps at the best
            strength, instead of all combinations.

    Returns:
        The metric of each setting, and whether the best setting is at a limit of the grid. The settings are in
        ascending order of strength, then of eps.
    """
    strengths = set(STRENGTH_STEPS)  # steps on the axis of the strength
    epsilons: set[int | None] = set(EPS_STEPS) if has_eps else {None}
    values: dict[Setting, float] = {}
    # The steps of each setting on both axes. Strength 0 is on neither axis.
    steps: dict[Setting, tuple[int | None, int | None]] = {Setting(0.0, None): (None, None)}
    # With `one_axis_at_a_time`, only settings with the strength or the eps of this centre are measured. The centre is
    # strength 1 with eps 1 at first. It moves to the best setting so far, unless this is the policy alone.
    centre = (0, 0 if has_eps else None)
    while True:
        # 1. Measure the settings that are new.
        wanted = [(strength, eps) for strength in strengths for eps in epsilons]
        if one_axis_at_a_time:
            wanted = [one for one in wanted if one[0] == centre[0] or one[1] == centre[1]]
        steps |= {_setting(*one): one for one in wanted}
        new = [one for one in sorted(steps, key=_order) if one not in values]
        if not new:
            in_order = {setting: values[setting] for setting in sorted(values, key=_order)}
            return in_order, _at_limit(steps[best_setting(values)])
        values |= dict(zip(new, measure(new), strict=True))

        # 2. If the best setting is on the edge of an axis, extend this axis by two steps. If the policy alone is best,
        #    extend the axis of the strength towards 0, because a weaker prior may still be better.
        strength, eps = steps[best_setting(values)]
        if strength is None:
            strengths |= _extension(min(strengths), strengths, STRENGTH_LIMITS)
        else:
            strengths |= _extension(strength, strengths, STRENGTH_LIMITS)
            if eps is not None:
                epsilons |= _extension(eps, {one for one in epsilons if one is not None}, EPS_LIMITS)
            centre = (strength, eps)


def best_setting(values: Mapping[Setting, float]) -> Setting:
    """Returns the setting with the highest value. Among equal values, the lowest strength is chosen, then the lowest
    eps."""
    return max(sorted(values, key=_order), key=lambda setting: values[setting])


def is_on_grid(strength: object, eps: object, *, has_eps: bool) -> bool:
    """Returns whether [`search_grid`] can measure this setting.

    Args:
        strength, eps: The values of the setting. They may have any type, because they are read from the file
            `choice.json` of an earlier search, which may have been edited.
        has_eps: Whether the grid has the axis `eps`.
    """
    epsilons = _steps_within(EPS_LIMITS) if has_eps else [None]
    settings = [_setting(step, eps_step) for step in _steps_within(STRENGTH_LIMITS) for eps_step in epsilons]
    return (strength, eps) in [Setting(0.0, None), *settings]


def with_setting(prior: AnyPrior, setting: Setting) -> AnyPrior:
    """Returns the prior with another setting. If the setting has no eps, the prior keeps its eps."""
    has_eps = setting.eps is not None and hasattr(prior, "eps")
    changed: dict[str, Any] = {"strength": setting.strength, **({"eps": setting.eps} if has_eps else {})}
    return replace(prior, **changed)


def _order(setting: Setting) -> tuple[float, float]:
    return setting.strength, setting.eps or 0.0


def _setting(strength: int | None, eps: int | None) -> Setting:
    """Returns the setting at the given steps of the axes."""
    if strength is None:
        return Setting(0.0, None)
    return Setting(float(f"{2 ** (strength / 2):.2g}"), None if eps is None else float(f"{10 ** (eps / 2):.2g}"))


def _extension(best: int, steps: set[int], limits: tuple[int, int]) -> set[int]:
    """Returns the next two steps beyond the edge that `best` is on, within the limits.

    The result is empty if `best` is on no edge.
    """
    further: set[int] = set()
    if best == max(steps):
        further |= {best + 1, best + 2}
    if best == min(steps):
        further |= {best - 1, best - 2}
    return {step for step in further if limits[0] <= step <= limits[1]}


def _at_limit(steps: tuple[int | None, int | None]) -> bool:
    strength, eps = steps
    return strength in STRENGTH_LIMITS or eps in EPS_LIMITS


def _steps_within(limits: tuple[int, int]) -> range:
    return range(limits[0], limits[1] + 1)
