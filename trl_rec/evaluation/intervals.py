"""Computes bootstrap intervals for means over users and seeds, and tests whether two recommenders differ.

A metric usually has few distinct values. A bootstrap resample therefore does not draw users one by one: it draws how
often each *distinct* value occurs. These counts follow a multinomial distribution. For 1,000 resamples of 100,000
users, this avoids 10^8 look-ups. The result has the same distribution as if users were drawn, and does not depend on
the order of the users.

Seeds are too few to be resampled. With three seeds, resampling understates the variance between seeds by a third, and
one resample in nine contains the same seed three times. Instead, a random error is added to the mean of each resample
of users. The variance of this error is itself drawn at random, because it can be estimated only roughly from a few
seeds ([`seed_errors`]). With one seed, no error is added, so the result does not cover the variation between seeds.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from trl_rec.ranges import COUNT, Range


LEVEL = Range(0, 1, above=True, below=True)
DRAWS_IN_MEMORY = 1 << 21  # maximum number of int64 counts drawn at a time: 16 MB


class PairedComparison(NamedTuple):
    """Result of comparing recommender a with recommender b over the same users.

    Args:
        difference (`float`): Mean of a - b.
        low (`float`): Lower end of the bootstrap interval of the difference.
        high (`float`): Upper end of the bootstrap interval of the difference.
        p_value (`float`): Two-sided p-value of the null hypothesis that the recommenders do not differ.
    """

    difference: float
    low: float
    high: float
    p_value: float


def bootstrap_interval(
    values: np.ndarray, *, num_resamples: int = 1000, level: float = 0.95, seed: int = 0
) -> tuple[float, float]:
    """Computes the percentile bootstrap interval of the mean.

    Args:
        values (`np.ndarray` of shape `(N,)` or `(S, N)`): One finite value per user, or per seed and user.
        num_resamples (`int`, *optional*, defaults to `1000`): Number of bootstrap resamples.
        level (`float`, *optional*, defaults to `0.95`): Confidence level of the interval.
        seed (`int`, *optional*, defaults to `0`): Seed of the bootstrap.

    Returns:
        `tuple[float, float]`: the lower and the upper end of the interval.
    """
    _check_settings(num_resamples, level)
    by_seed = _checked(values, "values")  # (S, N)
    distinct, counts = np.unique(by_seed.mean(0), return_counts=True)
    size = counts.sum()  # N

    # Resample the users, then add random errors for the variation between seeds.
    rng = np.random.default_rng(seed)
    means = [
        rng.multinomial(size, counts / size, chunk) @ distinct / size  # (chunk,)
        for chunk in _chunks(num_resamples, len(distinct))
    ]
    drawn = np.concatenate(means) + seed_errors(by_seed, num_resamples, rng)
    low, high = np.quantile(drawn, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def paired_comparison(
    a: np.ndarray, b: np.ndarray, *, num_resamples: int = 1000, level: float = 0.95, seed: int = 0
) -> PairedComparison:
    """Compares two recommenders user by user: mean difference, bootstrap interval, and p-value of a permutation test.

    The permutation test averages each user's difference over the seeds, and randomly flips the signs of the averages.
    With several seeds, a random error for the variation between seeds is added to the mean after each flip
    ([`seed_errors`]). The p-value is the share of the resulting means that are at least as far from 0 as the observed
    mean. The observed differences count as one of the flips, so the p-value is at least 1 / (num_resamples + 1). The
    p-value is 1 if the recommenders have equal values for every user.

    Args:
        a, b (`np.ndarray` of shape `(N,)` or `(S, N)`): One finite value per user, or per seed and user, with the same
            users in the same order. Seed s of a is paired with seed s of b. If a or b has a single row, this row is
            paired with every seed of the other array.
        num_resamples (`int`, *optional*, defaults to `1000`): Number of bootstrap resamples, and of sign flips.
        level (`float`, *optional*, defaults to `0.95`): Confidence level of the interval.
        seed (`int`, *optional*, defaults to `0`): Seed of the bootstrap and of the sign flips.
    """
    a = _checked(a, "a")
    b = _checked(b, "b")
    if a.shape[1] != b.shape[1]:
        raise ValueError(
            f"a has {a.shape[1]} users, but b has {b.shape[1]}; compare runs over the same users, in the same order"
        )
    if len(a) != len(b) and 1 not in (len(a), len(b)):
        raise ValueError(
            f"a has {len(a)} seeds, but b has {len(b)}; give the same seeds for both, or a single run for one of them"
        )

    differences = a - b  # (S, N)
    low, high = bootstrap_interval(differences, num_resamples=num_resamples, level=level, seed=seed)
    return PairedComparison(float(differences.mean()), low, high, _p_value(differences, num_resamples, seed))


def seed_errors(values: np.ndarray, num_resamples: int, rng: np.random.Generator) -> np.ndarray:
    """Draws random errors of the mean that represent the variation between seeds. They are 0 if there is one seed.

    The means of the seeds vary for two reasons: the seeds differ, and each mean is taken over a finite number of
    users. Resampling users covers the second reason. The variance due to the first reason is uncertain, so it is drawn
    for each error: max(0, observed * (S - 1) / chi2 - of_users). Here, observed and of_users are the results of
    [`seed_variances`], and chi2 is drawn from the chi-squared distribution with S - 1 degrees of freedom. If of_users
    is 0, for example because there is only one user, the errors follow a scaled t distribution with S - 1 degrees of
    freedom. The method follows Weerahandi, "Generalized Confidence Intervals", J. of the American Statistical
    Association 88, 1993.

    Args:
        values: One value per seed and user, `(S, N)`.
        num_resamples: Number R of errors.
        rng: Source of randomness.

    Returns:
        The errors, `(R,)`.
    """
    if len(values) == 1:
        return np.zeros(num_resamples)
    observed, of_users = seed_variances(values)
    degrees = len(values) - 1
    variances = np.maximum(0, observed * degrees / rng.chisquare(degrees, num_resamples) - of_users)
    errors: np.ndarray = np.sqrt(variances) * rng.standard_normal(num_resamples)
    return errors


def seed_variances(values: np.ndarray) -> tuple[float, float]:
    """Returns two numbers: the variance of the overall mean, estimated from the means of the seeds, and the part of
    this variance that is due to the finite number of users.

    The means of the seeds differ even if all seeds are equally good, because each is taken over a finite number of
    users. With one user, the second number cannot be estimated and is 0.

    Args:
        values: One value per seed and user, `(S, N)`, with at least two seeds.
    """
    num_seeds, num_users = values.shape
    observed = values.mean(1).var(ddof=1) / num_seeds
    if num_users == 1:
        return float(observed), 0.0
    residuals = values - values.mean(1, keepdims=True) - values.mean(0) + values.mean()  # (S, N)
    mean_square = np.square(residuals).sum() / ((num_seeds - 1) * (num_users - 1))
    return float(observed), float(mean_square / (num_seeds * num_users))


def _p_value(differences: np.ndarray, num_resamples: int, seed: int) -> float:
    """Returns the p-value of differences `(S, N)`, by the test that [`paired_comparison`] describes."""
    # Of c users with the same |difference|, the number with a plus sign after a flip follows Binomial(c, 1/2).
    means = differences.mean(0)  # (N,)
    sizes, counts = np.unique(np.abs(means), return_counts=True)
    observed = abs(means.sum())
    slack = 1e-9 * max(observed, sizes[-1])  # sums that differ only by rounding errors count as equal

    rng = np.random.default_rng(seed)
    # `seed_errors` returns errors of means. Multiplied by the number of users, they are errors of sums.
    errors = len(means) * seed_errors(differences, num_resamples, rng)  # (num_resamples,)
    num_as_far = 0
    start = 0
    for chunk in _chunks(num_resamples, len(sizes)):
        flipped = (2 * rng.binomial(counts, 0.5, (chunk, len(sizes))) - counts) @ sizes  # (chunk,)
        moved = flipped + errors[start : start + chunk]
        num_as_far += int((np.abs(moved) >= observed - slack).sum())
        start += chunk
    return (num_as_far + 1) / (num_resamples + 1)


def _chunks(num_resamples: int, width: int) -> list[int]:
    """Splits the resamples into chunks that draw at most `DRAWS_IN_MEMORY` counts each; returns the chunk sizes."""
    step = max(1, DRAWS_IN_MEMORY // width)
    return [min(step, num_resamples - start) for start in range(0, num_resamples, step)]


def _checked(values: np.ndarray, name: str) -> np.ndarray:
    """Returns the values as float64 `(S, N)`, after checking that there is one finite value per seed and user."""
    values = np.asarray(values, np.float64)
    if values.ndim not in (1, 2) or values.size == 0:
        raise ValueError(
            f"{name} has the shape {values.shape}; give an array (num_users,) or (num_seeds, num_users) of at least "
            "one user"
        )
    by_seed = np.atleast_2d(values)
    if not np.isfinite(by_seed).all():
        seed, row = np.argwhere(~np.isfinite(by_seed))[0]
        raise ValueError(
            f"{name}, row {row}: {by_seed[seed, row]} is not a finite number; check the run that produced it"
        )
    return by_seed


def _check_settings(num_resamples: int, level: float) -> None:
    COUNT.check("num_resamples", num_resamples)
    LEVEL.check("level", level)
