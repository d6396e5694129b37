"""Writes the results of [`evaluate_with_baselines`], and chooses the name of the evaluated model or of the
evaluated lists in these results."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from trl_rec.data.dataset import RecDataset, spread
from trl_rec.evaluation.beam_gap import write_beam_gaps
from trl_rec.evaluation.kept.files import METRICS
from trl_rec.evaluation.kept.finished_rows import discard_finished
from trl_rec.evaluation.kept.writing import write_evaluation
from trl_rec.evaluation.results import Evaluation, held_out
from trl_rec.evaluation.saved_model.config import EvaluationConfig


def write_results(
    folder: str | Path, results: Mapping[str, Evaluation], dataset: RecDataset, config: EvaluationConfig
) -> None:
    """Writes the results of [`evaluate_with_baselines`] to a folder, as described in [`write_evaluation`] and
    [`write_beam_gaps`].

    Args:
        folder: The folder. It is created if necessary.
        results: The evaluation of each recommender by name.
        dataset: The dataset that was passed to [`evaluate_with_baselines`].
        config: The settings that were passed to [`evaluate_with_baselines`].
    """
    write_evaluation(
        folder,
        results,
        dataset=dataset,
        split=config.split,
        ks=config.ks,
        exclude_history=config.exclude_history,
        settings=vars(config),
        recommender=recommender_name(config),
        seed=seed_of_run(config.folder),
        rows=spread(config.max_users, len(held_out(dataset, config.split))),
    )
    write_beam_gaps(folder, results)
    discard_finished(folder)


def recommender_name(config: EvaluationConfig) -> str | None:
    """Returns the name of the model or of the lists in the results, or None if there are only baselines."""
    if config.model is not None:
        return model_row(config.model)
    if config.lists is not None:
        return config.name or f"lists {Path(config.lists).name.split('.')[0]}"
    return None


def model_row(model: str) -> str:
    """Returns the name of a model in the results."""
    return f"model {Path(model).name}"


def seed_of_run(model: str | None) -> int | None:
    """Returns the seed that the model in a run folder was trained with, or None if it is unknown."""
    path = Path(model or "") / METRICS
    if model is None or not path.is_file():
        return None
    try:
        seed = json.loads(path.read_text(encoding="utf-8"))["seed"]
    except (ValueError, KeyError, TypeError, RecursionError):
        return None
    return seed if isinstance(seed, int) else None
