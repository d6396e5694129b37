"""Makes a table that compares recommenders, each trained with several seeds, with a reference recommender.

The values of each user are first averaged over the seeds. So intervals and p-values describe the variation between
users, not between seeds. To show the variation between seeds, the table lists the value of every seed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TypeAlias

import numpy as np

from trl_rec.evaluation.intervals import bootstrap_interval, paired_comparison
from trl_rec.evaluation.tables import aligned


Runs: TypeAlias = Sequence[Mapping[str, np.ndarray]]  # `Evaluation.per_user` of one recommender for each seed


def seeds_table(
    runs: Mapping[str, Runs],
    *,
    metrics: Sequence[str],
    against: str,
    notes: Mapping[str, Mapping[str, float]] | None = None,
) -> str:
    """Makes a table with one row per recommender. The last metric is compared with the reference `against`.

    The columns are:

    - each metric, with half the width of its interval;
    - the ratio of the last metric to its value for the reference, or the difference if that value is not above 0;
    - the p-value of a paired test against the reference;
    - the last metric for each seed.

    Args:
        runs (`Mapping[str, Sequence[Mapping[str, np.ndarray]]]`): Maps the name of each recommender to the
            `Evaluation.per_user` of each of its seeds. Baselines have one. All runs must have the same users in the
            same order.
        metrics (`Sequence[str]`): Metrics to show. The last metric is used for the comparison.
        against (`str`): Name of the reference recommender.
        notes (`Mapping[str, Mapping[str, float]]`, *optional*): Additional columns. Maps each heading to a number for
            some or all recommenders by name.
    """
    if against not in runs or not all(runs.values()):
        raise ValueError(
            f"there are runs of {', '.join(runs)}; give at least one run of each recommender, including {against!r}"
        )
    notes = notes or {}
    compared = metrics[-1]
    reference = _mean_over_seeds(runs[against], compared)
    reference_mean = reference.mean()

    # Write one row per recommender below the headings.
    rows = [["", *metrics, f"over {against}", "p", f"{compared} by seed", *notes]]
    for name, seeds in runs.items():
        values = _mean_over_seeds(seeds, compared)
        cells = [_with_interval(_mean_over_seeds(seeds, metric)) for metric in metrics]

        # If the reference value is negative, a higher ratio would mean a worse recommender; show the difference.
        if reference_mean > 0:
            ratio = f"{values.mean() / reference_mean:.3f}"
        else:
            ratio = f"{values.mean() - reference_mean:+.4f}"
        p_value = "-" if name == against else f"{paired_comparison(values, reference).p_value:.3f}"
        by_seed = " ".join(f"{seed[compared].mean():.4f}" for seed in seeds)
        noted = [f"{column[name]:.4f}" if name in column else "-" for column in notes.values()]
        rows.append([name, *cells, ratio, p_value, by_seed, *noted])

    legend = [
        "±: half the width of the 95 % bootstrap interval over users, of the mean over seeds",
        (
            f"p: paired test of {compared} against {against} over the same users; neither includes the variation "
            "between seeds"
        ),
    ]
    return "\n".join([*aligned(rows), "", *legend])


def _mean_over_seeds(seeds: Runs, metric: str) -> np.ndarray:
    """Returns the metric of each user, averaged over the seeds, `(num_users,)`."""
    means: np.ndarray = np.mean([seed[metric] for seed in seeds], 0)
    return means


def _with_interval(values: np.ndarray) -> str:
    low, high = bootstrap_interval(values)
    return f"{values.mean():.4f} ±{(high - low) / 2:.4f}"
