"""How a run ends: the model is saved, its lists for the test split are measured beside the floors, and all of it is written
down."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

from trl_rec.data.dataset import RecDataset
from trl_rec.evaluation import Evaluation, evaluate_floors, evaluate_split, metrics_table, write_metrics


logger = logging.getLogger(__name__)


def conclude(trainer: Any, dataset: RecDataset, settings: dict[str, Any]) -> dict[str, Evaluation]:
    """Saves the run folder, prints the table, and returns the floors' results and the model's, by name.

    Args:
        trainer: A trainer of this package, trained.
        dataset: The data it was trained on; the test split is measured.
        settings: What else the run depends on, for `metrics.json` and `recipe.json`.
    """
    trainer.save_model()
    if trainer.is_fsdp_enabled:
        logger.warning("%s is saved; under FSDP it is not ranked here: run trl-rec evaluate", trainer.args.output_dir)
        return {}
    measured = {"split": "test", "ks": trainer.args.eval_ks}
    ranked = trainer.rank(dataset.test)
    results = evaluate_floors(dataset, exclude_history=trainer.args.eval_exclude_history, **measured)
    results[trainer._name] = evaluate_split(ranked, dataset, **measured)
    if trainer.is_world_process_zero():
        folder = Path(trainer.args.output_dir)
        own = {name: value for name, value in {**settings, **trainer.args.to_dict()}.items() if _is_plain(value)}
        write_metrics(
            folder / "metrics.json", results, exclude_history=trainer.args.eval_exclude_history, settings=settings, **measured
        )
        (folder / "recipe.json").write_text(json.dumps(own, indent=2) + "\n", encoding="utf-8")
        lines = [json.dumps(entry) for entry in trainer.state.log_history]
        (folder / "eval.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
        history = "excluded" if trainer.args.eval_exclude_history else "not excluded"
        print(metrics_table(results, caption=f"{dataset.path}, test split, history {history}"))  # noqa: T201
    trainer.accelerator.wait_for_everyone()  # a process that ends while another writes takes it along
    return results


def _is_plain(value: Any) -> bool:
    return value is None or isinstance(value, str | int | float | bool | list)
