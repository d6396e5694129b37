"""Recommenders that were trained with several seeds each, beside each other and against one of them, as a table for
people.

Each user's values are averaged over the seeds first, so that intervals and p-values are over users. What another seed
would change they do not tell: that is what the values by seed are there for.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from trl_rec.evaluation.intervals import bootstrap_interval, paired_comparison
from trl_rec.evaluation.tables import aligned


Runs = Sequence[Mapping[str, np.ndarray]]


def seeds_table(
    runs: Mapping[str, Runs],
    *,
    metrics: Sequence[str],
    against: str,
    notes: Mapping[str, Mapping[str, float]] | None = None,
) -> str:
    """A line a recommender: its metrics with half the width of their intervals, its ratio to `against` in the last
    metric (the difference, where that is not above 0) with the p-value of a paired test, and that metric of each seed.

    Args:
        runs (`Mapping[str, Sequence[Mapping[str, np.ndarray]]]`): Name of a recommender to the `Evaluation.per_user`
            of each seed. All runs are over the same users in the same order; baselines have one.
        metrics (`Sequence[str]`): Metrics to show; the last one is compared.
        against (`str`): The recommender that the others are compared to.
        notes (`Mapping[str, Mapping[str, float]]`, *optional*): Further columns: heading to a number for each
            recommender that has one.
    """
    if against not in runs or not all(runs.values()):
        raise ValueError(f"runs of {', '.join(runs)}: there must be one of each at least, and {against!r} among them")
    notes, compared = notes or {}, metrics[-1]
    base = _over_seeds(runs[against], compared)
    rows = [["", *metrics, f"over {against}", "p", f"{compared} by seed", *notes]]
    for name, several in runs.items():
        values = _over_seeds(several, compared)
        p_value = "-" if name == against else f"{paired_comparison(values, base).p_value:.3f}"
        by_seed = " ".join(f"{one[compared].mean():.4f}" for one in several)
        cells = [_with_interval(_over_seeds(several, metric)) for metric in metrics]
        known = [f"{column[name]:.4f}" if name in column else "-" for column in notes.values()]
        mean = base.mean()  # a ratio to what is below 0 would turn better and worse around
        ratio = f"{values.mean() / mean:.3f}" if mean > 0 else f"{values.mean() - mean:+.4f}"
        rows.append([name, *cells, ratio, p_value, by_seed, *known])
    legend = [
        "±: half the width of the 95 % bootstrap interval over users of their mean over the seeds",
        f"p: paired test of {compared} against {against} over the same users; neither tells what another seed would change",
    ]
    return "\n".join([*aligned(rows), "", *legend])


def _over_seeds(several: Runs, metric: str) -> np.ndarray:
    """Each user's mean, `(num_users,)`."""
    return np.mean([one[metric] for one in several], 0)


def _with_interval(values: np.ndarray) -> str:
    low, high = bootstrap_interval(values)
    return f"{values.mean():.4f} ±{(high - low) / 2:.4f}"
