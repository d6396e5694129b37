"""Estimates, from a pilot, the smallest difference that a study with given numbers of users and seeds can detect.

The pilot consists of runs of two recommenders that have already been evaluated. If the pilot or the study has one
seed, the smallest difference is 2.8 times the paired standard error of the pilot, rescaled to the study's number of
users. The factor 2.8 is 1.96 + 0.84. An observed difference of 1.96 standard errors is significant at the level of
5 %. If the true difference is 0.84 standard errors larger than that, 80 % of studies observe a significant difference.

If the pilot and the study both have several seeds, 2.8 standard errors are usually too few, because a few seeds give
only a rough estimate of the variance between seeds. To account for this, the module simulates studies with variances
that agree with the pilot. As in [`verdict`], a study detects a difference only if the difference is significant and
has the same sign with every seed. The returned difference is at least 2.8 standard errors. It is also large enough
that 80 % of the simulated studies detect a true difference of this size, and that 90 % detect one twice as large.
"""

from __future__ import annotations

import numpy as np

from trl_rec.evaluation.comparison.pairing import Runs, paired_values
from trl_rec.evaluation.intervals import seed_variances
from trl_rec.ranges import COUNT


NUM_STUDIES = 4000  # number of simulated studies
NUM_DRAWS = 10_000  # number of draws from the null distribution, to find the thresholds of the studies
FACTOR = 2.8


def smallest_difference(
    pilot: Runs,
    reference: Runs,
    *,
    metric: str,
    num_seeds: int | None = None,
    num_users: int | None = None,
    num_comparisons: int = 1,
    alpha: float = 0.05,
    seed: int = 0,
) -> float:
    """Returns the smallest difference that a study can detect.

    If `pilot` and `reference` have one seed, or are baselines, they contain no variation between seeds. The returned
    difference is then too small for a study whose results vary between seeds.

    Args:
        pilot, reference (`Runs`): The runs of two recommenders, as given to [`compare`]. The difference between these
            two recommenders should vary over users and seeds about as much as the differences that the study measures.
        metric (`str`): The metric that the study compares.
        num_seeds (`int`, *optional*): Number of seeds of the study. Defaults to that of the pilot.
        num_users (`int`, *optional*): Number of users of the study's split. Defaults to that of the pilot.
        num_comparisons (`int`, *optional*, defaults to `1`): Number of comparisons that the study adjusts for. It
            has no effect if the pilot or the study has one seed.
        alpha (`float`, *optional*, defaults to `0.05`): Significance level of the verdicts. It has no effect if
            the pilot or the study has one seed.
        seed (`int`, *optional*, defaults to `0`): Seed of the random numbers of the simulation.
    """
    values, of_reference = paired_values(
        "the pilot", "the reference", {"the pilot": pilot, "the reference": reference}, metric
    )
    differences = values - of_reference  # (S, N): seeds, users
    COUNT.check("num_comparisons", num_comparisons)
    seeds_of_pilot, users_of_pilot = differences.shape
    num_seeds = seeds_of_pilot if num_seeds is None else num_seeds
    num_users = users_of_pilot if num_users is None else num_users
    COUNT.check("num_seeds", num_seeds)
    COUNT.check("num_users", num_users)
    if users_of_pilot < 2:
        raise ValueError("a pilot of one user has no standard error; measure the pilot on more users")

    # 1. If the pilot or the study has one seed, use only the variation between users.
    scale = users_of_pilot / num_users
    if seeds_of_pilot == 1 or num_seeds == 1:
        per_user = differences.var(1, ddof=1).mean() / users_of_pilot * scale
        return FACTOR * float(np.sqrt(per_user))

    # 2. Split the variance of the pilot's mean into three parts: due to the users, due to users and seeds together
    # (their interaction), and due to the seeds. The last part is uncertain, so a value is drawn for each study.
    rng = np.random.default_rng(seed)
    observed, both = seed_variances(differences)
    users = max(0.0, differences.mean(0).var(ddof=1) / users_of_pilot - both)
    degrees = seeds_of_pilot - 1
    seeds = np.maximum(0, observed * degrees / rng.chisquare(degrees, NUM_STUDIES) - both)  # (NUM_STUDIES,)

    # 3. Simulate studies of the planned size in which the true difference is 0. The result of a study is one
    # difference per seed.
    users *= scale
    both *= scale * seeds_of_pilot / num_seeds
    seeds *= seeds_of_pilot / num_seeds
    of_users = np.sqrt(users) * rng.standard_normal((NUM_STUDIES, 1))
    of_seeds = np.sqrt(num_seeds * (seeds + both))[:, None] * rng.standard_normal((NUM_STUDIES, num_seeds))
    found = of_users + of_seeds  # (NUM_STUDIES, num_seeds)

    # 4. Adding a true difference to `found` raises the values of all seeds. A study detects the difference if the mean
    # over its seeds is then above the threshold of the study, and the lowest value is above 0.
    thresholds = _thresholds(found, users + both, both, alpha / num_comparisons, rng)
    needed = np.maximum(thresholds - found.mean(1), -found.min(1))
    lowest = FACTOR * np.sqrt(users + both + max(0.0, (observed - both) * seeds_of_pilot / num_seeds))
    return float(max(lowest, np.quantile(needed, 0.8), np.quantile(needed, 0.9) / 2))


def _thresholds(found: np.ndarray, users: float, both: float, alpha: float, rng: np.random.Generator) -> np.ndarray:
    """Returns the threshold that the mean of each study must exceed to be significant, `(NUM_STUDIES,)`.

    Args:
        found: The difference in each study for each of its seeds, `(NUM_STUDIES, S)`.
        users: The part of the variance of the mean that is due to the users, including `both`.
        both: The part of the variance of the mean that is due to users and seeds together.
        alpha: Significance level of one comparison.
        rng: Source of randomness.
    """
    num_seeds = found.shape[1]
    observed = found.var(1, ddof=1) / num_seeds  # (NUM_STUDIES,)

    # The threshold depends on the observed variance between seeds. Compute it for 30 variances, and interpolate.
    grid = np.quantile(observed, np.linspace(0, 1, 30))
    inverse = (num_seeds - 1) / rng.chisquare(num_seeds - 1, NUM_DRAWS)
    from_users = np.sqrt(users) * rng.standard_normal(NUM_DRAWS)
    from_seeds = rng.standard_normal(NUM_DRAWS)
    drawn = from_users + np.sqrt(np.maximum(0, grid[:, None] * inverse - both)) * from_seeds  # (30, NUM_DRAWS)
    thresholds: np.ndarray = np.interp(observed, grid, np.quantile(np.abs(drawn), 1 - alpha, axis=1))
    return thresholds
