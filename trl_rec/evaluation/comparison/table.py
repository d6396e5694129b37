"""Formats comparisons with one reference as a text table, with one row per recommender."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from trl_rec.evaluation.comparison.compare import Comparison
from trl_rec.evaluation.comparison.pairing import PerUser, Runs, by_seed
from trl_rec.evaluation.intervals import bootstrap_interval
from trl_rec.evaluation.tables import aligned


def comparison_table(
    runs: Mapping[str, Runs],
    comparisons: Sequence[Comparison],
    *,
    metrics: Sequence[str] = (),
    notes: Mapping[str, Mapping[str, float]] | None = None,
    legend: bool = True,
) -> str:
    """Makes a text table of comparisons with one reference. It has one row per recommender; the reference is first.

    Args:
        runs (`Mapping[str, Runs]`): The runs, as given to [`compare`].
        comparisons (`Sequence[Comparison]`): The comparisons that [`compare`] returned, at least one.
        metrics (`Sequence[str]`, *optional*): Metrics to show beside the one that was compared.
        notes (`Mapping[str, Mapping[str, float]]`, *optional*): Additional columns. Maps the heading of each column to
            a mapping from names of recommenders to numbers. A recommender without a number gets "-".
        legend (`bool`, *optional*, defaults to `True`): Whether to add a legend below the table.
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
        of_seeds = list(by_seed(runs[name]).values())
        cells = [_with_interval(of_seeds, metric) for metric in shown]
        noted = [f"{column[name]:.4f}" if name in column else "-" for column in notes.values()]
        means = " ".join(f"{np.nanmean(per_user[first.metric]):.4f}" for per_user in of_seeds)
        words = by_name[name].verdict if name in by_name else "reference"
        compared = _comparison_cells(by_name[name]) if name in by_name else ["-"] * 4
        rows.append([name, *cells, *compared, means, *noted, words.ljust(width)])
    return "\n".join([*aligned(rows), *(["", *_legend(first)] if legend else [])])


def _legend(comparison: Comparison) -> list[str]:
    seeds = "; the intervals and p also account for the variation between seeds"
    several = comparison.num_seeds > 1
    alpha = f"{comparison.alpha:g}".removeprefix("0")
    return [
        f"{comparison.num_users:,} users; {comparison.metric} of each recommender is compared with that of "
        f"{comparison.against}, paired by user" + (" and by seed" if several else ""),
        "±: half the width of the 95 % interval of the mean; the intervals are from a bootstrap over users",
        "p: from random sign flips of the users' differences" + (seeds if several else ""),
        "adjusted p: p adjusted by Holm's method for the comparisons that are made together",
        f"better, worse: the adjusted p is below {alpha}, and the difference has the same sign with every seed",
    ]


def _comparison_cells(comparison: Comparison) -> list[str]:
    return [
        f"{comparison.difference:+.4f}",
        f"{comparison.low:+.4f} to {comparison.high:+.4f}",
        f"{comparison.p_value:.4f}",
        f"{comparison.adjusted_p:.4f}",
    ]


def _with_interval(of_seeds: Sequence[PerUser], metric: str) -> str:
    """Returns the mean of a metric and half the width of the mean's interval.

    Only users with a value in every run are included. Returns "-" if a run lacks the metric, or if there are no such
    users.
    """
    if any(metric not in per_user for per_user in of_seeds):
        return "-"
    values = np.stack([per_user[metric] for per_user in of_seeds])  # (S, N): seeds, users
    values = values[:, np.isfinite(values).all(0)]
    if values.size == 0:
        return "-"
    low, high = bootstrap_interval(values)
    return f"{values.mean():.4f} ±{(high - low) / 2:.4f}"
