"""Writes `metrics.json`: the results of an evaluation, its settings, and the versions of the packages in use."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from trl_rec.evaluation.results import Evaluation
from trl_rec.files import write_json


PACKAGES = ("trl-rec", "trl", "transformers", "torch", "numpy")


def write_metrics(
    path: str | Path,
    results: Mapping[str, Evaluation],
    *,
    split: str,
    ks: Sequence[int],
    exclude_history: bool,
    settings: Mapping[str, Any] | None = None,
) -> None:
    """Writes results to a JSON file atomically.

    [`write_evaluation`] writes the same file together with the values per user and the ranked items.

    Args:
        path (`str` or `Path`): The file. Its folder is created if necessary. An existing file is replaced.
        results (`Mapping[str, Evaluation]`): Evaluation of each recommender by name. All must have the same number of
            users.
        split (`str`): The split that the recommenders were evaluated on.
        ks (`Sequence[int]`): The cutoffs k of the metrics.
        exclude_history (`bool`): Whether the items of a user's history were excluded from the recommendations.
        settings (`Mapping[str, Any]`, *optional*): Other settings that the metrics depend on, such as the number of
            beams, the length penalty, the dataset and the seed.
    """
    content = metrics_content(results, split=split, ks=ks, exclude_history=exclude_history, settings=settings)
    # JSON has no NaN. `_entry` has already rejected metrics that are not finite, with an error that names the metric.
    # `allow_nan=False` also rejects such numbers in the settings.
    write_json(path, content, ensure_ascii=False, allow_nan=False)


def metrics_content(
    results: Mapping[str, Evaluation],
    *,
    split: str,
    ks: Sequence[int],
    exclude_history: bool,
    settings: Mapping[str, Any] | None = None,
    identity: Mapping[str, str] | None = None,
    recommender: str | None = None,
    seed: int | None = None,
    num_rows: int | None = None,
) -> dict[str, Any]:
    """Returns the content of `metrics.json`.

    Raises `ValueError` if there are no results, if their numbers of users differ, or if a metric is not finite.

    Args:
        results, split, ks, exclude_history, settings: As in [`write_metrics`].
        identity (`Mapping[str, str]`, *optional*): Fingerprints of the catalogue and of the evaluated rows.
        recommender (`str`, *optional*): The recommender that the run trained or evaluated, by its name in `results`.
        seed (`int`, *optional*): Seed that the recommender was trained with.
        num_rows (`int`, *optional*): Number of rows of the split. If it is larger than the number of users in the
            results, only some of the rows were evaluated.
    """
    return {
        "split": split,
        "ks": list(ks),
        "exclude_history": exclude_history,
        "recommender": recommender,
        "seed": seed,
        "identity": None if identity is None else dict(identity),
        "num_users": _num_users(results),
        "num_rows": num_rows,
        "settings": dict(settings or {}),
        "versions": {package: package_version(package) for package in PACKAGES},
        "results": {name: _entry(name, evaluation) for name, evaluation in results.items()},
    }


def _num_users(results: Mapping[str, Evaluation]) -> int:
    if not results:
        raise ValueError("there are no results to write; pass at least one evaluation")
    counts = {name: int(evaluation.metrics["num_users"]) for name, evaluation in results.items()}
    if len(set(counts.values())) != 1:
        listed = ", ".join(f"{name} {count}" for name, count in counts.items())
        raise ValueError(
            f"the results in one file must cover the same users, but their numbers of users differ: {listed}"
        )
    return next(iter(counts.values()))


def _entry(name: str, evaluation: Evaluation) -> dict[str, Any]:
    for metric, value in evaluation.metrics.items():
        if not math.isfinite(value):
            raise ValueError(f"{metric} of {name} is {value}, so nothing was written; check the run that produced it")
    return {
        "metrics": dict(evaluation.metrics),
        "intervals": {metric: list(interval) for metric, interval in evaluation.intervals.items()},
    }


def package_version(package: str) -> str | None:
    """Returns the version of an installed package, or None if it is not installed."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:  # also raised for a source checkout that was not installed
        return None
