"""Ends a schedule (a sequence of preference stages): evaluates two policies and the baselines, and reports on stages.

The first policy is the one that the first stage started from. The last policy is the one that the schedule ends with:
the policy of the last stage that was kept, or the first policy if no stage was kept.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from accelerate import PartialState

from trl_rec.data.dataset import spread
from trl_rec.data.prompts import PromptFormat
from trl_rec.decoding.run_folder import SETTINGS, save_recommender
from trl_rec.evaluation import (
    Evaluation,
    Policy,
    closing_verdict,
    evaluate_baselines,
    evaluate_policy,
    evaluate_product,
    metrics_table,
    write_evaluation,
)
from trl_rec.evaluation.cost import say_cost
from trl_rec.evaluation.kept.finished_rows import FinishedRows, discard_finished
from trl_rec.evaluation.policy import ranking_passes
from trl_rec.evaluation.results import held_out
from trl_rec.evaluation.tables import aligned
from trl_rec.files import write_json
from trl_rec.items import TokenTrie
from trl_rec.models.loading import load_model, load_tokenizer
from trl_rec.schedule.checks import check_not_sharded
from trl_rec.schedule.settings import Schedule, load_on_device
from trl_rec.schedule.stages import read_stages
from trl_rec.trainer.base.catalog_ranking import recommender_settings
from trl_rec.trainer.base.prior import make_prior
from trl_rec.trainer.base.processes import on_main_process
from trl_rec.trainer.base.reporting import REMEDY, describe_split, final_rows, write_run
from trl_rec.trainer.base.saving.recipe import given_values


def conclude_stages(reports: Sequence[dict[str, Any]], start: str | Path, schedule: Schedule) -> dict[str, Evaluation]:
    """Evaluates the first and the last policy on a held-out split, prints two tables, and completes the run folder.

    The split is `schedule.config.final_split`. With `"none"`, nothing is evaluated, and only the table of the stages
    is printed. In either case, a prior for the last policy is made if `schedule.config` asks for one.

    Args:
        reports: The reports returned by `run_stages`.
        start: Folder of the policy that the first stage started from.
        schedule: The settings that all stages share.

    Returns:
        The results by name: each baseline, the first policy (`before`), the last policy (`after`) and, if there is a
        prior, the prior alone (`prior`) and its product with the last policy (`after x prior`).
    """
    config = schedule.config
    dataset = schedule.dataset
    check_not_sharded(config)

    # 1. Make the prior that the last policy is multiplied by, then evaluate on every process.
    split = config.final_split
    after = _policy(schedule.output, schedule)
    on_main_process(lambda: _complete_run_folder(schedule))
    prior = make_prior(after, dataset, config, schedule.output)
    results: dict[str, Evaluation] = {}
    if split != "none":
        some = final_rows(dataset, config)
        after = _keeping(after, schedule)
        rows = held_out(some, split)
        passes = ranking_passes(after, config.eval_ks, config.eval_recall_at, len(dataset.catalog))
        num_rankings = 2 if prior is None else 3
        seconds = num_rankings * len(rows) * sum(after.seconds_per_user(rows, passes))
        say_cost(len(rows), seconds, name="final evaluation", remedy=REMEDY)

        measured: dict[str, Any] = {"split": split, "ks": config.eval_ks, "recall_at": config.eval_recall_at}
        results = evaluate_baselines(some, exclude_history=config.eval_exclude_history, **measured)
        results["before"] = evaluate_policy(_keeping(_policy(start, schedule), schedule), some, **measured)
        results["after"] = evaluate_policy(after, some, **measured)
        if prior is not None:
            results |= evaluate_product(after, prior, some, "after", **measured)

    # 2. Write and print the results on the main process. The other processes wait until everything is written. Without
    # the wait, they would exit earlier, and if one of them crashed on exit, the launcher would end the main process
    # before it has written everything.
    if PartialState().is_main_process:
        _write_run_folder(reports, results, start, schedule)
        history = "excluded" if config.eval_exclude_history else "not excluded"
        print(stage_table(reports, schedule.metric), end="\n\n")  # noqa: T201
        if results:
            caption = f"{dataset.path}, {describe_split(dataset, config)}, history {history}"
            print(metrics_table(results, caption=caption))  # noqa: T201
            print(f"\n{closing_verdict(results, 'after', start='before')}")  # noqa: T201
        written = "the model, metrics.json and the training log" if results else "the model and the training log"
        print(f"\n{written} are in {schedule.output}")  # noqa: T201
    PartialState().wait_for_everyone()
    discard_finished(schedule.output)
    return results


def stage_table(reports: Sequence[dict[str, Any]], metric: str) -> str:
    """Makes a text table with one line per stage: prompts, negatives, and the validation metric before and after.

    Args:
        reports: The reports returned by `run_stages`.
        metric: Name of the metric in the reports, such as `eval_ndcg@10`.
    """
    # 1. Make one line per stage.
    rows = [["stage", "prompts", "none", "negatives", "easy / medium / hard", "before", "after", "kept"]]
    for report in reports:
        bucket_means = [f"{bucket['mean']:.1f}" for bucket in report.get("buckets", {}).values()]
        values = [f"{report[when][metric]:.4f}" if metric in report[when] else "-" for when in ("before", "after")]
        rows.append(
            [
                f"{report['stage']} {report['name']}",
                f"{report['num_prompts']:,}",
                f"{report['without_negatives']:.0%}",
                f"{report['mean_negatives']:.1f}",
                " / ".join(bucket_means) or "-",
                *values,
                "yes" if report["kept"] else "no",
            ]
        )

    # 2. Explain the columns.
    legend = [
        "none: share of prompts without negatives (these prompts are left out); negatives: mean number per prompt",
        "easy / medium / hard: mean number of beams per prompt that fall into each difficulty bucket",
        (
            f"before, after: {metric.removeprefix('eval_')} on the validation split; kept: whether the trained policy "
            "replaces the one that the stage started from"
        ),
    ]
    return "\n".join([*aligned(rows), "", *legend])


def _policy(folder: str | Path, schedule: Schedule) -> Policy:
    """Loads the policy in `folder`, with the evaluation settings of the stages."""
    config = schedule.config
    catalog = schedule.dataset.catalog
    tokenizer = load_tokenizer(folder)
    return Policy(
        load_on_device(load_model, folder, schedule),
        PromptFormat.for_catalog(catalog, tokenizer, **config.prompt_options),
        TokenTrie.from_catalog(catalog, tokenizer, lists=config.list_length is not None),
        pad_token_id=tokenizer.pad_token_id,
        num_beams=config.eval_num_beams,
        exclude_history=config.eval_exclude_history,
        renormalize=config.normalize == "catalogue",
        length_penalty=config.eval_length_penalty,
        batch_size=config.per_device_eval_batch_size,
        max_length=config.max_length,
    )


def _keeping(policy: Policy, schedule: Schedule) -> Policy:
    """Returns a copy of the policy that saves finished rows in the output folder while it is evaluated, so that an
    interrupted evaluation can resume."""
    return replace(policy, finished=FinishedRows.of_model(schedule.output, policy.model))


def _complete_run_folder(schedule: Schedule) -> None:
    """Writes `recommender.json` and the catalogue if the folder of the last policy lacks them.

    They are missing if no stage was kept and the first policy did not come from a run folder, as is the case for a
    downloaded model.
    """
    if not (schedule.output / SETTINGS).is_file():
        settings = recommender_settings(schedule.config, renormalize=schedule.config.normalize == "catalogue")
        save_recommender(schedule.output, schedule.dataset.catalog, settings)


def _write_run_folder(
    reports: Sequence[dict[str, Any]], results: dict[str, Evaluation], start: str | Path, schedule: Schedule
) -> None:
    """Writes the recipe, the environment, the training log, `stages.json` and, if there are any, the results."""
    # 1. Write how the policy was trained.
    recipe = _recipe(start, schedule) if schedule.recipe is None else schedule.recipe
    write_run(schedule.output, "align3gr", {**recipe, **schedule.config.given}, _training_log(reports, schedule))
    write_json(schedule.output / "stages.json", list(reports))

    # 2. Write how it was evaluated.
    if results:
        write_evaluation(
            schedule.output,
            results,
            dataset=schedule.dataset,
            split=schedule.config.final_split,
            ks=schedule.config.eval_ks,
            exclude_history=schedule.config.eval_exclude_history,
            settings={
                "start": str(start),
                "keep": schedule.keep,
                "stages": [report["name"] for report in reports],
                "max_test_users": schedule.config.max_test_users,
            },
            recommender="after",
            seed=schedule.config.seed,
            rows=spread(schedule.config.max_test_users, len(held_out(schedule.dataset, schedule.config.final_split))),
        )


def _recipe(start: str | Path, schedule: Schedule) -> dict[str, Any]:
    """Returns the recipe keys with which `trl-rec align3gr` runs these stages, except the configuration's keys."""
    plan = json.loads((schedule.output / "plan.json").read_text(encoding="utf-8"))
    stages = read_stages([stage for name, stage in plan.items() if name.startswith("stage ")])
    return {
        "dataset": str(schedule.dataset.path),
        "surface": schedule.dataset.catalog.surface,
        "model_name_or_path": str(start),
        "keep": schedule.keep,
        "stages": [given_values(stage) for stage in stages],
    }


def _training_log(reports: Sequence[dict[str, Any]], schedule: Schedule) -> list[dict[str, Any]]:
    """Returns the log entries of all stages in order, each with the number of its stage."""
    entries: list[dict[str, Any]] = []
    for report in reports:
        path = schedule.output / f"{report['stage']}-{report['name']}" / "eval.jsonl"
        lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []  # a skipped stage has no log
        entries += [{"stage": report["stage"], **json.loads(line)} for line in lines]
    return entries
