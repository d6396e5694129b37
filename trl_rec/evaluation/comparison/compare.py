"""Compares recommenders with a reference over the same users. A recommender may have been trained with several seeds.

Differences are paired by user and by seed. The intervals and p-values account for the variation between users. If
there are several seeds, they also account for the variation between seeds. The p-values are adjusted by Holm's method
over all comparisons that are made together.

The verdict is "better" or "worse" only if the adjusted p-value is below the significance level `alpha` and the
difference has the same sign with every seed. If there is only one seed, the verdict ends in "one seed". Such a verdict
holds only for the trained models that were compared, and another seed may reverse it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from trl_rec.evaluation.comparison.pairing import Runs, paired_values
from trl_rec.evaluation.intervals import paired_comparison
from trl_rec.evaluation.tables import direction_of
from trl_rec.ranges import Range


ALPHA = Range(0, 1, above=True, below=True)
NOT_SIGNIFICANT = "no significant difference"
DISAGREEING = "the seeds disagree on the direction"
# The verdicts for a value above the reference and for a value below it. The key is 1 if higher values of the metric
# are better, -1 if lower values are better, and 0 otherwise.
WORDS = {1: ("better", "worse"), -1: ("worse", "better"), 0: ("higher", "lower")}


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
        by_seed (`tuple[float, ...]`): Mean of the recommender over users, for each of its runs that were compared.
        alpha (`float`, *optional*, defaults to `0.05`): Significance level of the verdict.
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
    alpha: float = 0.05


def compare(
    runs: Mapping[str, Runs],
    *,
    against: str,
    metric: str,
    alpha: float = 0.05,
    num_resamples: int = 5000,
    seed: int = 0,
) -> list[Comparison]:
    """Compares recommenders with one of them, the reference `against`.

    All runs must have the same users in the same order. A user for whom one of two compared recommenders has no value
    (NaN) is left out of that comparison.

    Args:
        runs (`Mapping[str, Runs]`): Maps the name of each recommender to the `Evaluation.per_user` of its runs, given
            as a mapping from seeds or as a sequence in the order of the seeds. Runs with the same seed are paired. If
            two recommenders have no seed in common, their runs are paired in order. Runs that have no partner are left
            out. A recommender without seeds, such as a baseline, has a single run, given with the seed `None` or as a
            sequence with one element. This run is paired with every run of the other recommender.
        against (`str`): Name of the reference.
        metric (`str`): The metric to compare.
        alpha (`float`, *optional*, defaults to `0.05`): Significance level of the verdicts.
        num_resamples (`int`, *optional*, defaults to `5000`): Number of bootstrap resamples, and of sign flips in the
            permutation test (see [`paired_comparison`]).
        seed (`int`, *optional*, defaults to `0`): Seed of the bootstrap and of the sign flips.
    """
    if not runs:
        raise ValueError(f"there are no runs; give at least one run of each recommender, and of {against!r}")
    if against not in runs:
        raise ValueError(
            f"against is {against!r}, but there are runs only of {', '.join(runs)}; add the runs of {against!r}"
        )
    for name, of_name in runs.items():
        if not len(of_name):
            raise ValueError(f"there are no runs of {name!r}; give at least one run of each recommender")
    compared = [
        _compare_pair(name, against, runs, metric, num_resamples=num_resamples, seed=seed)
        for name in runs
        if name != against
    ]
    return adjust(compared, alpha)


def adjust(comparisons: Sequence[Comparison], alpha: float = 0.05) -> list[Comparison]:
    """Adjusts the p-values of several comparisons for their number, by Holm's method, and updates the verdicts.

    If no recommender differs from its reference, the probability that any adjusted p-value is below `alpha` is at most
    `alpha`.
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
            alpha=alpha,
        )
        for comparison, p_value in zip(comparisons, adjusted, strict=True)
    ]


def verdict(
    metric: str, difference: float, adjusted_p: float, *, num_seeds: int, same_sign: bool, alpha: float = 0.05
) -> str:
    """Returns the verdict on one recommender compared with a reference.

    Args:
        metric (`str`): The metric. It determines whether higher or lower values are better. For a metric such as
            `popularity@k`, neither is better, and the verdict is "higher" or "lower" instead of "better" or "worse".
        difference (`float`): Mean of the recommender minus that of the reference.
        adjusted_p (`float`): The p-value, adjusted for the number of comparisons.
        num_seeds (`int`): Number of seeds compared.
        same_sign (`bool`): Whether the difference has the same sign with every seed.
        alpha (`float`, *optional*, defaults to `0.05`): Significance level. If no recommender differs from the
            reference, the probability that any of them is called better or worse is at most `alpha`.
    """
    if adjusted_p >= alpha:
        words = NOT_SIGNIFICANT
    elif not same_sign:
        words = DISAGREEING
    else:
        above, below = WORDS[direction_of(metric)]
        words = above if difference > 0 else below
    return f"{words}, one seed" if num_seeds == 1 else words


def holm(p_values: Sequence[float]) -> list[float]:
    """Returns p-values adjusted by Holm's method, in the order given.

    The smallest of n p-values is multiplied by n, the next by n - 1, and so on. An adjusted p-value is at most 1, and
    never below the adjusted p-value of a smaller p-value.
    """
    order = np.argsort(p_values, kind="stable")
    factors = len(p_values) - np.arange(len(p_values))
    scaled = np.minimum(1, factors * np.asarray(p_values, float)[order])
    adjusted = np.empty(len(p_values))
    adjusted[order] = np.maximum.accumulate(scaled)
    return [float(value) for value in adjusted]


def _compare_pair(
    name: str, against: str, runs: Mapping[str, Runs], metric: str, *, num_resamples: int, seed: int
) -> Comparison:
    """Compares one recommender with the reference. The p-value is not adjusted, and there is no verdict yet."""
    # Each array is `(S, N)` for S seeds and N users, or `(1, N)` for a recommender with a single run without a seed.
    values, reference = paired_values(name, against, runs, metric)
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
