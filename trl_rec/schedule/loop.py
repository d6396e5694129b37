"""Preference training stage by stage: each begins from what the stage before kept, against it as the reference.

A stage has a folder of its own: the policy's beams, checkpoints, the trained model, and at the end `stage.json`. What
has been written is never made again: a call that was killed goes on at the stage, and within it at the beam or the
step, where it stopped, and ends with the same weights. Every stage loads its policy from disk, so that it makes no
difference whether the stage before was trained by the same call.
"""

from __future__ import annotations

import gc
import json
import logging
import shutil
from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState

from trl_rec.compat import reset_accelerator_state
from trl_rec.models.loading import load_model, load_policy, load_tokenizer
from trl_rec.schedule.checks import check_before_running
from trl_rec.schedule.plan import check_same_plan, write_entry
from trl_rec.schedule.settings import Schedule
from trl_rec.schedule.stage_candidates import stage_candidates
from trl_rec.schedule.stages import PreferenceStage
from trl_rec.trainer.base.reporting import save_run
from trl_rec.trainer.softmax_dpo.config import SoftmaxDPOConfig
from trl_rec.trainer.softmax_dpo.trainer import SoftmaxDPOTrainer


logger = logging.getLogger(__name__)
# What a policy's folder holds besides the policy, as a run or an earlier schedule left it.
NOT_THE_POLICY: tuple[str, ...] = (
    "checkpoint-*",
    "self-play",
    "ref",
    "reference-*",
    "[0-9]*-*",
    "stage.json",
    "stages.json",
    "plan.json",
    "supervised*",
)
NOT_THE_POLICY += ("metrics.json", "recipe.json", "eval.jsonl")


def run_stages(stages: Sequence[PreferenceStage], start: str | Path, schedule: Schedule) -> list[dict[str, Any]]:
    """Trains stage after stage, and copies the last policy into `output_dir` itself.

    Args:
        stages: What to train, in this order.
        start: Folder of the supervised policy, with its tokenizer.
        schedule: What all stages share.

    Returns:
        A report a stage: its name, `num_prompts`, `without_negatives` and the buckets, the validation metrics `before`
        and `after`, and whether the stage's policy was `kept`.
    """
    check_before_running(stages, start, schedule)
    check_same_plan(stages, start, schedule)
    folder, metrics, reports = Path(start), None, []
    for number, stage in enumerate(stages, 1):
        path = schedule.folder(number, stage) / "stage.json"
        if path.is_file():
            report = json.loads(path.read_text(encoding="utf-8"))
        else:
            logger.info("stage %d of %d: %s", number, len(stages), stage.name)
            report = _run_stage(number, stage, folder, metrics, schedule)
            write_entry(path, report)
            _free_memory()
            _drop_checkpoints(path.parent)
        reports.append(report)
        metrics = report["after"] if report["kept"] else report["before"]
        folder = path.parent if report["kept"] else folder
    if PartialState().is_main_process:
        ignored = shutil.ignore_patterns(*NOT_THE_POLICY)
        shutil.copytree(folder, schedule.output, dirs_exist_ok=True, ignore=ignored)
    PartialState().wait_for_everyone()
    return reports


def _run_stage(
    number: int, stage: PreferenceStage, start: Path, before: dict[str, float] | None, schedule: Schedule
) -> dict[str, Any]:
    own, has_adapter = schedule.folder(number, stage), (start / "adapter_config.json").is_file()
    policy, tokenizer = _on_device(load_policy, start, schedule), load_tokenizer(start)
    table, report = stage_candidates(number, stage, policy, tokenizer, start, schedule)
    report = {"stage": number, "name": stage.name, **report}
    if report["without_negatives"] == 1:
        logger.warning("stage %d (%s) has no negative for any prompt: it is passed over", number, stage.name)
        return {**report, "before": before or {}, "after": before or {}, "kept": False}
    adapter = None if has_adapter else deepcopy(schedule.adapter)  # PEFT fills it in
    reset_accelerator_state()
    trainer = SoftmaxDPOTrainer(
        policy,
        None if has_adapter or adapter is not None else _on_device(load_model, start, schedule),
        _stage_config(stage, own, schedule),
        train_dataset=table,
        eval_dataset=schedule.dataset.validation,
        processing_class=tokenizer,
        catalog=schedule.dataset.catalog,
        peft_config=adapter,
    )
    before = before or _measure(trainer)
    trainer.train(resume_from_checkpoint=True)
    after = _measure(trainer)
    kept = schedule.keep == "last" or after[schedule.metric] > before[schedule.metric]
    save_run(trainer, {"stage": number, "model_name_or_path": str(start), **asdict(stage)})
    trainer.accelerator.free_memory()
    return {**report, "before": before, "after": after, "kept": kept}


def _free_memory() -> None:
    """The next stage loads two models; those of the stage before hang in reference cycles until they are collected."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def _on_device(load: Callable[..., Any], folder: Path, schedule: Schedule) -> Any:
    """The model on the device that this process computes with."""
    options = schedule.model_options or {}
    model = load(folder, **options)
    return model if "quantization_config" in options else model.to(PartialState().device)


def _stage_config(stage: PreferenceStage, own: Path, schedule: Schedule) -> SoftmaxDPOConfig:
    config = deepcopy(schedule.config)
    config.output_dir = str(own)
    for name, value in stage.training.items():
        setattr(config, name, value)
    if schedule.picks_checkpoints:
        config.load_best_model_at_end, config.metric_for_best_model, config.greater_is_better = (
            True,
            schedule.metric,
            True,
        )
    return config


def _measure(trainer: SoftmaxDPOTrainer) -> dict[str, float]:
    """The validation metrics of the lists."""
    return {name: value for name, value in trainer.evaluate().items() if "@" in name}


def _drop_checkpoints(folder: Path) -> None:
    """A finished stage never resumes."""
    if PartialState().is_main_process:
        for checkpoint in folder.glob("checkpoint-*"):
            shutil.rmtree(checkpoint)
