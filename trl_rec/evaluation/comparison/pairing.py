"""Pairs the runs of two recommenders by seed and by user, so that their values can be subtracted."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TypeAlias

import numpy as np


PerUser: TypeAlias = Mapping[str, np.ndarray]
Runs: TypeAlias = Sequence[PerUser] | Mapping[int | None, PerUser]


def paired_values(name: str, against: str, runs: Mapping[str, Runs], metric: str) -> tuple[np.ndarray, np.ndarray]:
    """Returns the values of two recommenders, for the runs that are paired and for users with values on both sides.

    The shapes are `(S, N)`, or `(1, N)` for a single run that is paired with all runs of the other recommender.
    """
    first, second = _paired_runs(by_seed(runs[name]), by_seed(runs[against]))
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


def by_seed(runs: Runs) -> dict[int | None, PerUser]:
    """Returns the values per user of each run by its seed. The seed of a run given alone is None; the seeds of a list
    of runs are their positions."""
    if isinstance(runs, Mapping):
        return dict(runs)
    return {None: runs[0]} if len(runs) == 1 else dict(enumerate(runs))


def _paired_runs(
    first: Mapping[int | None, PerUser], second: Mapping[int | None, PerUser]
) -> tuple[list[PerUser], list[PerUser]]:
    """Returns the runs of both sides that are paired, in the same order. If one side has a single run without a seed,
    returns all runs of both sides."""
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
