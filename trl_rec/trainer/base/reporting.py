"""How a run ends: the model is saved, its lists for the test split are measured beside the baselines, and all of it is
written down."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from transformers import TrainingArguments

from trl_rec.data.dataset import RecDataset
from trl_rec.evaluation import Evaluation, evaluate_baselines, evaluate_split, metrics_table, write_metrics
from trl_rec.evaluation.rewards import ListReward
from trl_rec.files import write_json, write_text
from trl_rec.trainer.base.catalog_ranking import CatalogRankingMixin
from trl_rec.trainer.base.trainer import RecTrainerMixin


logger = logging.getLogger(__name__)


def conclude(
    trainer: CatalogRankingMixin,
    dataset: RecDataset,
    settings: dict[str, Any],
    *,
    rewards: Mapping[str, float] | None = None,
    reward_functions: Mapping[str, ListReward] | None = None,
) -> dict[str, Evaluation]:
    """Saves the run folder, prints the table, and returns the baselines' results and the model's, by name.

    Args:
        trainer: A trainer of this package, trained.
        dataset: The data it was trained on; the test split is measured.
        settings: What else the run depends on, for `metrics.json` and `recipe.json`.
        rewards, reward_functions (*optional*): As in [`evaluate_split`].
    """
    save_run(trainer, settings)
    if trainer.is_fsdp_enabled:
        logger.warning("%s is saved; under FSDP it is not ranked here: run trl-rec evaluate", trainer.args.output_dir)
        return {}
    measured: dict[str, Any] = {"split": "test", "ks": trainer.args.eval_ks}
    rewarded = {"rewards": rewards, "reward_functions": reward_functions}
    ranked = trainer.rank(dataset.test)
    results = evaluate_baselines(dataset, exclude_history=trainer.args.eval_exclude_history, **measured, **rewarded)
    results[trainer.display_name] = evaluate_split(ranked, dataset, **measured, **rewarded)
    if trainer.is_world_process_zero():
        write_metrics(
            Path(trainer.args.output_dir) / "metrics.json",
            results,
            exclude_history=trainer.args.eval_exclude_history,
            settings=settings,
            **measured,
        )
        history = "excluded" if trainer.args.eval_exclude_history else "not excluded"
        print(metrics_table(results, caption=f"{dataset.path}, test split, history {history}"))  # noqa: T201
        print(f"\nthe model, metrics.json and what was logged are in {trainer.args.output_dir}")  # noqa: T201
    trainer.accelerator.wait_for_everyone()  # a process that ends while another writes takes it along
    return results


def save_run(trainer: RecTrainerMixin, settings: dict[str, Any]) -> None:
    """Saves a trained model with what it was trained by and what was logged; no process goes on before all is
    written."""
    trainer.save_model()
    if trainer.is_world_process_zero():
        write_run(trainer.args.output_dir, trainer.args, settings, trainer.state.log_history)
    trainer.accelerator.wait_for_everyone()


def write_run(
    folder: str | Path, args: TrainingArguments, settings: dict[str, Any], log_history: Sequence[dict[str, Any]]
) -> None:
    """Writes `recipe.json` and `eval.jsonl`; one process is to call it.

    Args:
        folder: The run folder.
        args: A trainer's configuration.
        settings: What else the run depends on. A value that is no text, number, list or None is left out.
        log_history: What was logged, a line each.
    """
    recipe = {name: value for name, value in {**settings, **args.to_dict()}.items() if _is_plain(value)}
    write_json(Path(folder) / "recipe.json", recipe)
    write_text(Path(folder) / "eval.jsonl", "".join(f"{json.dumps(entry)}\n" for entry in log_history))


def _is_plain(value: object) -> bool:
    return value is None or isinstance(value, str | int | float | bool | list)
