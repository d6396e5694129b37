"""Bootstrap intervals for means over users, and a paired test of whether two runs differ.

A metric has few distinct values over the users. So a bootstrap resample only draws how often each *distinct* value
occurs, which follows a multinomial distribution. 1,000 resamples of 100,000 users then take milliseconds instead of
10^8 look-ups. The result has the same distribution as if users were resampled one by one, and does not depend on the
order of the users.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from trl_rec.ranges import COUNT, Range


LEVEL = Range(0, 1, above=True, below=True)
DRAWS_IN_MEMORY = 1 << 21  # maximum number of int64 counts drawn at a time: 16 MB


class PairedComparison(NamedTuple):
    """Result of comparing run a with run b over the same users.

    Args:
        difference (`float`): Mean of a - b.
        low (`float`): Lower end of the bootstrap interval of the difference.
        high (`float`): Upper end of the bootstrap interval of the difference.
        p_value (`float`): Two-sided p-value of the null hypothesis that the runs do not differ.
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
        values (`np.ndarray` of shape `(N,)`): One finite value per user.
        num_resamples (`int`, *optional*, defaults to `1000`): Number of bootstrap resamples of the N users.
        level (`float`, *optional*, defaults to `0.95`): Confidence level of the interval.
        seed (`int`, *optional*, defaults to `0`): Seed of the bootstrap.

    Returns:
        `tuple[float, float]`: the lower and the upper end of the interval.
    """
    _check_settings(num_resamples, level)
    distinct, counts = np.unique(_checked(values, "values"), return_counts=True)
    size = counts.sum()  # N

    rng = np.random.default_rng(seed)
    means = [
        rng.multinomial(size, counts / size, chunk) @ distinct / size  # (chunk,)
        for chunk in _chunks(num_resamples, len(distinct))
    ]
    low, high = np.quantile(np.concatenate(means), [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def paired_comparison(
    a: np.ndarray, b: np.ndarray, *, num_resamples: int = 1000, level: float = 0.95, seed: int = 0
) -> PairedComparison:
    """Compares two runs user by user: mean difference, its bootstrap interval, and the p-value of a permutation test.

    The permutation test randomly flips the signs of the users' differences. The p-value is the share of flips with a
    mean that is at least as far from 0 as the observed mean. The observed differences count as one of the flips, so
    the p-value is at least 1 / (num_resamples + 1). It is 1 if the runs agree for every user.

    Args:
        a, b (`np.ndarray` of shape `(N,)`): One finite value per user, with the same users in the same order.
        num_resamples (`int`, *optional*, defaults to `1000`): Number of bootstrap resamples, and of sign flips.
        level (`float`, *optional*, defaults to `0.95`): Confidence level of the interval.
        seed (`int`, *optional*, defaults to `0`): Seed of the bootstrap and of the sign flips.
    """
    a = _checked(a, "a")
    b = _checked(b, "b")
    if len(a) != len(b):
        raise ValueError(
            f"a has {len(a)} users, but b has {len(b)}; compare runs over the same users, in the same order"
        )
    low, high = bootstrap_interval(a - b, num_resamples=num_resamples, level=level, seed=seed)
    return PairedComparison(float((a - b).mean()), low, high, _sign_flip_p_value(a - b, num_resamples, seed))


def _sign_flip_p_value(differences: np.ndarray, num_resamples: int, seed: int) -> float:
    # Of c users with the same |difference|, the number with a plus sign after a flip follows Binomial(c, 1/2).
    sizes, counts = np.unique(np.abs(differences), return_counts=True)
    observed = abs(differences.sum())
    slack = 1e-9 * max(observed, sizes[-1])  # sums that differ only by rounding errors count as ties

    rng = np.random.default_rng(seed)
    num_as_far = 0
    for chunk in _chunks(num_resamples, len(sizes)):
        flipped = (2 * rng.binomial(counts, 0.5, (chunk, len(sizes))) - counts) @ sizes  # (chunk,)
        num_as_far += int((np.abs(flipped) >= observed - slack).sum())
    return (num_as_far + 1) / (num_resamples + 1)


def _chunks(num_resamples: int, width: int) -> list[int]:
    """Splits the resamples into chunks that draw at most `DRAWS_IN_MEMORY` counts each; returns the chunk sizes."""
    step = max(1, DRAWS_IN_MEMORY // width)
    return [min(step, num_resamples - start) for start in range(0, num_resamples, step)]


def _checked(values: np.ndarray, name: str) -> np.ndarray:
    """Returns the values as float64, after checking that there is one finite value per user."""
    values = np.asarray(values, np.float64)
    if values.ndim != 1 or len(values) == 0:
        raise ValueError(
            f"{name} has the shape {values.shape}; give at least one user, with one value per user: (num_users,)"
        )
    if not np.isfinite(values).all():
        row = int(np.flatnonzero(~np.isfinite(values))[0])
        raise ValueError(f"{name}, row {row}: {values[row]} is not a finite number; check the run that produced it")
    return values


def _check_settings(num_resamples: int, level: float) -> None:
    COUNT.check("num_resamples", num_resamples)
    LEVEL.check("level", level)
