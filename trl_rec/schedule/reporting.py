"""How a schedule ends: the last policy, and the one it began with, are measured on the test split beside the
baselines, and what each stage did is told."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from accelerate import PartialState

from trl_rec.data.prompts import PromptFormat
from trl_rec.evaluation import Evaluation, evaluate_baselines, evaluate_split, metrics_table, rank_split, write_metrics
from trl_rec.evaluation.tables import aligned
from trl_rec.models.loading import load_model, load_tokenizer
from trl_rec.schedule.checks import check_not_sharded
from trl_rec.schedule.settings import Schedule
from trl_rec.trainer.base.reporting import write_run


def conclude_stages(reports: Sequence[dict[str, Any]], start: str | Path, schedule: Schedule) -> dict[str, Evaluation]:
    """Prints two tables, makes `output_dir` a run folder, and returns results on the test split by name.

    Args:
        reports: What `run_stages` returned.
        start: The policy that the first stage began with.
        schedule: What all stages shared.
    """
    config, dataset = schedule.config, schedule.dataset
    check_not_sharded(config)
    measured: dict[str, Any] = {"split": "test", "ks": config.eval_ks}
    results = evaluate_baselines(dataset, exclude_history=config.eval_exclude_history, **measured)
    for name, folder in (("before", start), ("after", schedule.output)):
        results[name] = evaluate_split(_rank(folder, schedule), dataset, **measured)
    if PartialState().is_main_process:
        settings = {"start": str(start), "keep": schedule.keep, "stages": [report["name"] for report in reports]}
        write_metrics(
            schedule.output / "metrics.json",
            results,
            exclude_history=config.eval_exclude_history,
            settings=settings,
            **measured,
        )
        write_run(schedule.output, config, _recipe(start, schedule), _logged(reports, schedule))
        (schedule.output / "stages.json").write_text(json.dumps(list(reports), indent=2) + "\n", encoding="utf-8")
        history = "excluded" if config.eval_exclude_history else "not excluded"
        print(stage_table(reports, schedule.metric), end="\n\n")  # noqa: T201
        print(metrics_table(results, caption=f"{dataset.path}, test split, history {history}"))  # noqa: T201
        print(f"\nthe model, metrics.json and what was logged are in {schedule.output}")  # noqa: T201
    PartialState().wait_for_everyone()  # a process that ends while another writes takes it along
    return results


def stage_table(reports: Sequence[dict[str, Any]], metric: str) -> str:
    """A line a stage: its prompts, their negatives, and the validation metric before and after."""
    rows = [["stage", "prompts", "none", "negatives", "easy / medium / hard", "before", "after", "kept"]]
    for report in reports:
        sizes = [f"{bucket['mean']:.1f}" for bucket in report.get("buckets", {}).values()]
        values = [f"{report[when][metric]:.4f}" if metric in report[when] else "-" for when in ("before", "after")]
        rows.append(
            [
                f"{report['stage']} {report['name']}",
                f"{report['num_prompts']:,}",
                f"{report['without_negatives']:.0%}",
                f"{report['mean_negatives']:.1f}",
                " / ".join(sizes) or "-",
                *values,
                "yes" if report["kept"] else "no",
            ]
        )
    legend = [
        "none: prompts without a negative, which are left out; negatives: mean number of a prompt",
        "easy / medium / hard: how many of the policy's beams were such, mean of a prompt",
        f"before, after: {metric.removeprefix('eval_')} on the validation split; kept: handed on to the next stage",
    ]
    return "\n".join([*aligned(rows), "", *legend])


def _recipe(start: str | Path, schedule: Schedule) -> dict[str, Any]:
    """What a recipe says besides the trainer's configuration."""
    dataset, plan = schedule.dataset, json.loads((schedule.output / "plan.json").read_text(encoding="utf-8"))
    stages = [stage for name, stage in plan.items() if name.startswith("stage ")]
    told = {"dataset": str(dataset.path), "surface": dataset.catalog.surface, "model_name_or_path": str(start)}
    return {**told, "keep": schedule.keep, "stages": stages}


def _logged(reports: Sequence[dict[str, Any]], schedule: Schedule) -> list[dict[str, Any]]:
    """What the stages logged, one after the other; a stage that was passed over logged nothing."""
    entries: list[dict[str, Any]] = []
    for report in reports:
        path = schedule.output / f"{report['stage']}-{report['name']}" / "eval.jsonl"
        lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
        entries += [{"stage": report["stage"], **json.loads(line)} for line in lines]
    return entries


def _rank(folder: str | Path, schedule: Schedule) -> Any:
    config, tokenizer = schedule.config, load_tokenizer(folder)
    model = load_model(folder, **(schedule.model_options or {}))
    return rank_split(
        model if "quantization_config" in (schedule.model_options or {}) else model.to(PartialState().device),
        tokenizer,
        schedule.dataset,
        prompt_format=PromptFormat.for_catalog(schedule.dataset.catalog, tokenizer, **config.prompt_options),
        top_k=max(config.eval_ks),
        num_beams=config.eval_num_beams,
        exclude_history=config.eval_exclude_history,
        renormalize=config.normalize == "catalogue",
        length_penalty=config.eval_length_penalty,
        batch_size=config.per_device_eval_batch_size,
        max_length=config.max_length,
    )
