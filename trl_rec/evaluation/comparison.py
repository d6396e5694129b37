"""Compares recommenders, each trained with one or several seeds, with a reference over the same users.

Differences are paired by user and by seed. Their intervals and p-values cover the variation between users and, given
several seeds, between seeds. The p-values are adjusted by Holm's method over all comparisons that are made together.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TypeAlias

import numpy as np

from trl_rec.evaluation.intervals import bootstrap_interval, paired_comparison
from trl_rec.evaluation.tables import aligned
from trl_rec.evaluation.verdicts import verdict
from trl_rec.ranges import Range


PerUser: TypeAlias = Mapping[str, np.ndarray]
Runs: TypeAlias = Sequence[PerUser] | Mapping[int | None, PerUser]
ALPHA = Range(0, 1, above=True, below=True)


@dataclass(frozen=True)
class Comparison:
    """Result of comparing a recommender with a reference.

    Args:
        name (`str`): Name of the recommender.
        against (`str`): Name of the reference.
        metric (`str`): The metric.
        mean (`float`): Mean of the recommender over users and seeds.
        reference (`float`): Mean of the reference.
        difference (`float`): `mean - reference`.
        low (`float`): Lower end of the 95 % interval of the difference.
        high (`float`): Upper end of the 95 % interval of the difference.
        p_value (`float`): Two-sided p-value of the null hypothesis that the recommenders do not differ.
        adjusted_p (`float`): The p-value, adjusted for the number of comparisons.
        num_users (`int`): Number of users compared.
        num_seeds (`int`): Number of seeds compared.
        same_sign (`bool`): Whether the difference has the same sign with every seed.
        verdict (`str`): The result in words, as returned by [`verdict`].
        by_seed (`tuple[float, ...]`): Mean of the recommender for each seed compared.
    """

    name: str
    against: str
    metric: str
    mean: float
    reference: float
    difference: float
    low: float
    high: float
    p_value: float
    adjusted_p: float
    num_users: int
    num_seeds: int
    same_sign: bool
    verdict: str
    by_seed: tuple[float, ...]


def compare(
    runs: Mapping[str, Runs],
    *,
    against: str,
    metric: str,
    alpha: float = 0.05,
    num_resamples: int = 5000,
    seed: int = 0,
) -> list[Comparison]:
    """Compares every other recommender with `against`. All runs must have the same users in the same order.

    A user for whom one of two compared recommenders has no value (NaN) is left out of that comparison.

    Args:
        runs (`Mapping[str, Runs]`): Maps the name of each recommender to the `Evaluation.per_user` of its runs: a
            mapping from seeds, or a sequence in the order of the seeds. Runs with the same seed are paired. If two
            recommenders have no seed in common, their runs are paired in order. A recommender without seeds, such as
            a baseline, has a single run, either with the seed `None` or alone in a sequence. This run is paired with
            all runs of the other recommender.
        against (`str`): Name of the reference.
        metric (`str`): The metric to compare.
        alpha (`float`, *optional*, defaults to `0.05`): Level of the verdicts.
        num_resamples (`int`, *optional*, defaults to `5000`): Number of bootstrap resamples, and of sign flips.
        seed (`int`, *optional*, defaults to `0`): Seed of the bootstrap and of the sign flips.
    """
    if against not in runs or not all(len(of_name) for of_name in runs.values()):
        raise ValueError(
            f"there are runs of {', '.join(runs)}; give at least one run of each recommender, including {against!r}"
        )
    compared = [
        _compare_pair(name, against, runs, metric, num_resamples=num_resamples, seed=seed)
        for name in runs
        if name != against
    ]
    return adjust(compared, alpha)


def adjust(comparisons: Sequence[Comparison], alpha: float = 0.05) -> list[Comparison]:
    """Adjusts the p-values of comparisons that are made together by Holm's method, and updates the verdicts.

    If no recommender differs from its reference, at most a share `alpha` of such families of comparisons has any
    adjusted p-value below `alpha`.
    """
    ALPHA.check("alpha", alpha)
    adjusted = holm([comparison.p_value for comparison in comparisons])
    return [
        replace(
            comparison,
            adjusted_p=p_value,
            verdict=verdict(
                comparison.metric,
                comparison.difference,
                p_value,
                num_seeds=comparison.num_seeds,
                same_sign=comparison.same_sign,
                alpha=alpha,
            ),
        )
        for comparison, p_value in zip(comparisons, adjusted, strict=True)
    ]


def holm(p_values: Sequence[float]) -> list[float]:
    """Returns p-values adjusted by Holm's method, in the order given.

    The smallest of n p-values is multiplied by n, the next by n - 1, and so on. An adjusted p-value is at most 1, and
    at least that of every smaller p-value.
    """
    order = np.argsort(p_values, kind="stable")
    factors = len(p_values) - np.arange(len(p_values))
    scaled = np.minimum(1, factors * np.asarray(p_values, float)[order])
    adjusted = np.empty(len(p_values))
    adjusted[order] = np.maximum.accumulate(scaled)
    return [float(value) for value in adjusted]


def comparison_table(
    runs: Mapping[str, Runs],
    comparisons: Sequence[Comparison],
    *,
    metrics: Sequence[str] = (),
    notes: Mapping[str, Mapping[str, float]] | None = None,
    legend: bool = True,
) -> str:
    """Makes a table of comparisons with one reference: one row per recommender, the reference first, and a legend.

    Args:
        runs (`Mapping[str, Runs]`): The runs, as given to [`compare`].
        comparisons (`Sequence[Comparison]`): What [`compare`] returned, at least one comparison.
        metrics (`Sequence[str]`, *optional*): Metrics to show beside the one that was compared.
        notes (`Mapping[str, Mapping[str, float]]`, *optional*): Additional columns. Maps each heading to a number for
            some or all recommenders by name.
        legend (`bool`, *optional*, defaults to `True`): Whether to explain the columns below the table.
    """
    if not comparisons:
        raise ValueError("there are no comparisons to show; give at least one recommender besides the reference")
    notes = notes or {}
    first = comparisons[0]
    shown = [*(metric for metric in metrics if metric != first.metric), first.metric]
    by_name = {comparison.name: comparison for comparison in comparisons}

    # Write one row per recommender below the headings.
    width = max(len("reference"), *(len(comparison.verdict) for comparison in comparisons))
    headings = ["difference", "95 % interval", "p", "adjusted p", f"{first.metric} by seed"]
    rows = [["", *shown, *headings, *notes, "verdict".ljust(width)]]
    for name in (first.against, *by_name):
        of_seeds = list(_by_seed(runs[name]).values())
        cells = [_with_interval(of_seeds, metric) for metric in shown]
        noted = [f"{column[name]:.4f}" if name in column else "-" for column in notes.values()]
        by_seed = " ".join(f"{np.nanmean(per_user[first.metric]):.4f}" for per_user in of_seeds)
        words = by_name[name].verdict if name in by_name else "reference"
        compared = _comparison_cells(by_name[name]) if name in by_name else ["-"] * 4
        rows.append([name, *cells, *compared, by_seed, *noted, words.ljust(width)])
    return "\n".join([*aligned(rows), *(["", *_legend(first)] if legend else [])])


def _legend(comparison: Comparison) -> list[str]:
    seeds = "seeds and " if comparison.num_seeds > 1 else ""
    return [
        f"{comparison.num_users:,} users; {comparison.metric} is compared with {comparison.against}, paired by user"
        + (" and by seed" if seeds else ""),
        f"±, 95 % interval: bootstrap over {seeds}users; p: random sign flips of the users' differences"
        + (", plus an error of the seeds" if seeds else ""),
        "adjusted p: p by Holm's method over the comparisons made together",
        "better, worse: adjusted p below .05, and the same sign with every seed",
    ]


def _comparison_cells(comparison: Comparison) -> list[str]:
    return [
        f"{comparison.difference:+.4f}",
        f"{comparison.low:+.4f} to {comparison.high:+.4f}",
        f"{comparison.p_value:.4f}",
        f"{comparison.adjusted_p:.4f}",
    ]


def _with_interval(of_seeds: Sequence[PerUser], metric: str) -> str:
    """Returns the mean of a metric and half the width of its interval, or "-" if a run lacks the metric."""
    if any(metric not in per_user for per_user in of_seeds):
        return "-"
    values = np.stack([per_user[metric] for per_user in of_seeds])  # (S, N)
    values = values[:, np.isfinite(values).all(0)]
    if values.size == 0:
        return "-"
    low, high = bootstrap_interval(values)
    return f"{values.mean():.4f} ±{(high - low) / 2:.4f}"


def _compare_pair(
    name: str, against: str, runs: Mapping[str, Runs], metric: str, *, num_resamples: int, seed: int
) -> Comparison:
    """Compares one recommender with the reference. The p-value is not adjusted, and there is no verdict yet."""
    values, reference = paired_values(name, against, runs, metric)  # (S, N) or (1, N) each
    result = paired_comparison(values, reference, num_resamples=num_resamples, seed=seed)
    signs = np.sign((values - reference).mean(1))  # (S,)
    return Comparison(
        name=name,
        against=against,
        metric=metric,
        mean=float(values.mean()),
        reference=float(reference.mean()),
        **result._asdict(),
        adjusted_p=result.p_value,
        num_users=values.shape[1],
        num_seeds=len(signs),
        same_sign=bool((signs == signs[0]).all()),
        verdict="",
        by_seed=tuple(float(mean) for mean in values.mean(1)),
    )


def paired_values(name: str, against: str, runs: Mapping[str, Runs], metric: str) -> tuple[np.ndarray, np.ndarray]:
    """Returns the values of two recommenders, for the runs that are paired and for users with values on both sides.

    The shapes are `(S, N)`, or `(1, N)` for a single run that is paired with all runs of the other recommender.
    """
    first, second = _paired_runs(_by_seed(runs[name]), _by_seed(runs[against]))
    values = _values(first, name, metric)
    reference = _values(second, against, metric)
    if values.shape[1] != reference.shape[1]:
        raise ValueError(
            f"{name} has {values.shape[1]} users, but {against} has {reference.shape[1]}; compare recommenders over "
            "the same users, in the same order"
        )

    # Keep the users who have a value on both sides, with every seed.
    known = np.isfinite(values).all(0) & np.isfinite(reference).all(0)
    if not known.any():
        raise ValueError(f"no user has a value of {metric} for both {name} and {against}; compare another metric")
    return values[:, known], reference[:, known]


def _by_seed(runs: Runs) -> dict[int | None, PerUser]:
    if isinstance(runs, Mapping):
        return dict(runs)
    return {None: runs[0]} if len(runs) == 1 else dict(enumerate(runs))


def _paired_runs(
    first: Mapping[int | None, PerUser], second: Mapping[int | None, PerUser]
) -> tuple[list[PerUser], list[PerUser]]:
    """Returns the runs of both sides that are paired, in the same order, or a single run and all runs of the other."""
    if None in first or None in second:
        return list(first.values()), list(second.values())
    common = [seed for seed in first if seed in second]
    if common:
        return [first[seed] for seed in common], [second[seed] for seed in common]
    count = min(len(first), len(second))
    return list(first.values())[:count], list(second.values())[:count]


def _values(of_seeds: Iterable[PerUser], name: str, metric: str) -> np.ndarray:
    """Returns one value per seed and user, `(S, N)`."""
    rows = []
    for per_user in of_seeds:
        if metric not in per_user:
            raise ValueError(f"{name} has no {metric} per user; choose one of {', '.join(per_user) or 'none'}")
        rows.append(np.asarray(per_user[metric], np.float64))
    counts = {len(row) for row in rows}
    if len(counts) > 1:
        listed = " and ".join(map(str, sorted(counts)))
        raise ValueError(
            f"the runs of {name} have {listed} users; compare runs over the same users, in the same order"
        )
    return np.stack(rows)
