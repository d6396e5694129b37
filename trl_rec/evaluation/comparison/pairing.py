"""Pairs the runs of two recommenders by seed, and their values by user, to compute differences."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TypeAlias

import numpy as np


PerUser: TypeAlias = Mapping[str, np.ndarray]
Runs: TypeAlias = Sequence[PerUser] | Mapping[int | None, PerUser]


def paired_values(name: str, against: str, runs: Mapping[str, Runs], metric: str) -> tuple[np.ndarray, np.ndarray]:
    """Returns the values of a metric for the paired runs of two recommenders.

    Only users for whom each of these runs has a value are kept. Each array has the shape `(S, N)`, with one row per
    run and one column per user, or `(1, N)` for a single run that is paired with all runs of the other recommender.
    """
    first, second = _paired_runs(by_seed(runs[name]), by_seed(runs[against]))
    values = _values(first, name, metric)
    reference = _values(second, against, metric)
    if values.shape[1] != reference.shape[1]:
        raise ValueError(
            f"{name} has {values.shape[1]} users, but {against} has {reference.shape[1]}; compare recommenders over "
            "the same users, in the same order"
        )

    # Keep only the users who have a value in every run of both recommenders.
    known = np.isfinite(values).all(0) & np.isfinite(reference).all(0)
    if not known.any():
        raise ValueError(f"no user has a value of {metric} for both {name} and {against}; compare another metric")
    return values[:, known], reference[:, known]


def by_seed(runs: Runs) -> dict[int | None, PerUser]:
    """Returns a mapping from the seed of each run to its values per user.

    In a sequence of several runs, the position of a run is used as its seed. A run that is alone in a sequence gets
    the seed None.
    """
    if isinstance(runs, Mapping):
        return dict(runs)
    return {None: runs[0]} if len(runs) == 1 else dict(enumerate(runs))


def _paired_runs(
    first: Mapping[int | None, PerUser], second: Mapping[int | None, PerUser]
) -> tuple[list[PerUser], list[PerUser]]:
    """Returns the paired runs of two recommenders, in the same order.

    Runs with the same seed are paired. If the two recommenders have no seed in common, their runs are paired in order.
    Runs that have no partner are left out. If one recommender has a single run without a seed, that run and all runs
    of the other recommender are returned, to be paired by NumPy's broadcasting.
    """
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
            known = ", ".join(per_user) or "none"
            raise ValueError(f"{name} has no values of {metric} per user; choose one of {known}")
        rows.append(np.asarray(per_user[metric], np.float64))
    counts = {len(row) for row in rows}
    if len(counts) > 1:
        listed = " and ".join(map(str, sorted(counts)))
        raise ValueError(
            f"the runs of {name} have {listed} users; compare runs over the same users, in the same order"
        )
    return np.stack(rows)
