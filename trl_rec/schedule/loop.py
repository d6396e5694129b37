"""Trains a policy on preferences in stages. The policy that a stage starts from is also the reference of this stage.

Each stage starts from the policy that the previous stage trained. If that policy was not kept (see `Schedule.keep`),
the stage starts from the same policy as the previous stage. A stage has its own folder, which contains checkpoints,
the trained model and, when the stage is finished, `stage.json`. If a stage chooses its negatives among the policy's
own recommendations (self-play), the folder also contains these recommendations, which are computed by beam search.

Finished work is not repeated. If the process is killed, the same call of [`run_stages`] resumes after the last
finished part of the beam search or from the last checkpoint, and ends with the same weights as an uninterrupted call.
Every stage loads its policy from disk, so the result does not depend on whether the previous stage was trained by the
same call.
"""

from __future__ import annotations

import gc
import json
import logging
import shutil
from collections.abc import Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from datasets import Dataset
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from trl_rec.compat import reset_accelerator_state
from trl_rec.decoding.priors import PRIOR
from trl_rec.decoding.priors.run_folder import drop_run_prior
from trl_rec.evaluation.kept.environment import ENVIRONMENT
from trl_rec.evaluation.kept.files import FINISHED, KEPT_FILES
from trl_rec.evaluation.prior_choice import CHOICE
from trl_rec.evaluation.tables import direction_of
from trl_rec.models.loading import load_model, load_policy, load_tokenizer
from trl_rec.schedule.checks import check_stages
from trl_rec.schedule.plan import check_same_plan, write_entry
from trl_rec.schedule.settings import Schedule, load_on_device
from trl_rec.schedule.stage_preferences import stage_preferences
from trl_rec.schedule.stages import PreferenceStage
from trl_rec.trainer.base.reporting import save_run
from trl_rec.trainer.base.saving.recipe import RECIPE
from trl_rec.trainer.softmax_dpo.config import SoftmaxDPOConfig
from trl_rec.trainer.softmax_dpo.trainer import SoftmaxDPOTrainer


logger = logging.getLogger(__name__)

# Files in a policy's folder that belong to the run or the schedule (a sequence of stages) that trained the policy, not
# to the policy itself.
NOT_THE_POLICY = (
    "checkpoint-*",
    "self-play",
    "ref",
    "reference-*",
    "[0-9]*-*",
    "stage.json",
    "stages.json",
    "plan.json",
    "supervised*",
    "metrics.json",
    CHOICE,
    PRIOR,
    *KEPT_FILES,
    FINISHED,
    RECIPE,
    ENVIRONMENT,
    "eval.jsonl",
    ".*.tmp",  # a file that was being written when a process was killed
)


def run_stages(stages: Sequence[PreferenceStage], start: str | Path, schedule: Schedule) -> list[dict[str, Any]]:
    """Trains the stages in order, then copies the last kept policy (`start` if none was kept) into `output_dir`.

    Args:
        stages: The stages, in the order of training.
        start: Folder of the supervised policy and its tokenizer.
        schedule: The settings that all stages share.

    Returns:
        One report per stage:

        - `stage`, `name`: The number and the name of the stage.
        - `num_prompts`, `without_negatives`, `mean_negatives` and, for self-play, `buckets`: See [`bucket_report`].
        - `before`, `after`: The validation metrics of the policy before and after the stage. If the stage was skipped
          because no prompt has negatives, both are the metrics of the policy that it would have started from, or empty
          if these are not known.
        - `kept`: Whether the trained policy was kept.
    """
    check_stages(stages, start, schedule)
    check_same_plan(stages, start, schedule)

    folder = Path(start)  # folder of the policy that the next stage starts from
    metrics: dict[str, float] | None = None  # validation metrics of this policy, once they are known
    reports = []
    for number, stage in enumerate(stages, 1):
        # 1. Train the stage, or read its report if it is finished.
        path = schedule.folder(number, stage) / "stage.json"
        if path.is_file():
            report = json.loads(path.read_text(encoding="utf-8"))
        else:
            logger.info("stage %d of %d: %s", number, len(stages), stage.name)
            report = _run_stage(number, stage, folder, metrics, schedule)
            write_entry(path, report)
            _free_memory()
            _delete_checkpoints(path.parent)
        reports.append(report)

        # 2. The next stage starts from the trained policy if it was kept, or else from the same policy as this stage.
        metrics = report["after"] if report["kept"] else report["before"]
        folder = path.parent if report["kept"] else folder

    # 3. Copy the last kept policy.
    if PartialState().is_main_process:
        ignored = shutil.ignore_patterns(*NOT_THE_POLICY)
        shutil.copytree(folder, schedule.output, dirs_exist_ok=True, ignore=ignored)
        # The copied `recommender.json` may still name a prior that was chosen for the policy in `start`.
        drop_run_prior(schedule.output)
    PartialState().wait_for_everyone()
    return reports


def _run_stage(
    number: int, stage: PreferenceStage, start: Path, before: dict[str, float] | None, schedule: Schedule
) -> dict[str, Any]:
    """Trains one stage from the policy in `start` and returns its report.

    `before` contains the validation metrics of this policy. It is None or empty if they are not known.
    """
    # 1. Build the preference table. Skip the stage if no prompt has negatives.
    policy = load_on_device(load_policy, start, schedule)
    tokenizer = load_tokenizer(start)
    table, figures = stage_preferences(number, stage, policy, tokenizer, start, schedule)
    report = {"stage": number, "name": stage.name, **figures}
    if report["without_negatives"] == 1:
        reason = "because it has no negatives for any prompt"
        logger.warning("stage %d (%s) is skipped, %s; %s", number, stage.name, reason, _more_negatives(stage))
        return {**report, "before": before or {}, "after": before or {}, "kept": False}

    # 2. Evaluate the policy, train it, and evaluate it again.
    trainer = _build_trainer(number, stage, policy, tokenizer, table, start, schedule)
    if before is None or schedule.metric not in before:
        before = _measure(trainer, schedule)
    trainer.train(resume_from_checkpoint=True)
    after = _measure(trainer, schedule)

    # 3. Decide whether the next stage starts from the trained policy.
    kept = schedule.keep == "last" or schedule.is_better(after, before)
    save_run(trainer)
    trainer.accelerator.free_memory()
    return {**report, "before": before, "after": after, "kept": kept}


def _more_negatives(stage: PreferenceStage) -> str:
    """Returns the remedy for a stage without negatives."""
    if stage.source == "feedback":
        return f"widen the range '{'disliked' if stage.difficulty == 'easy' else 'neutral'}' of the stage"
    if stage.source == "self_play":
        another = "" if stage.difficulty == "any" else ", or choose another difficulty"
        return f"raise num_beams of the stage{another}"
    # Random negatives are missing only if the users of the prompts have chosen every item.
    return "leave out the stage"


def _build_trainer(
    number: int,
    stage: PreferenceStage,
    policy: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    table: Dataset,
    start: Path,
    schedule: Schedule,
) -> SoftmaxDPOTrainer:
    """Builds the trainer of a stage.

    If the policy has an adapter, or gets one from the trainer, the policy's model also computes the outputs of the
    reference, so no second model is loaded.
    """
    # 1. Load the reference, unless the policy's model also computes its outputs.
    has_adapter = (start / "adapter_config.json").is_file()
    new_adapter = None if has_adapter else deepcopy(schedule.adapter)  # PEFT modifies the configuration
    if has_adapter or new_adapter is not None:
        reference = None
    else:
        reference = load_on_device(load_model, start, schedule)

    # 2. Build the trainer.
    reset_accelerator_state()  # the trainer of each stage creates its own Accelerator
    return SoftmaxDPOTrainer(
        policy,
        reference,
        _stage_config(number, stage, schedule),
        train_dataset=table,
        eval_dataset=schedule.dataset.validation,
        processing_class=tokenizer,
        catalog=schedule.dataset.catalog,
        peft_config=new_adapter,
    )


def _stage_config(number: int, stage: PreferenceStage, schedule: Schedule) -> SoftmaxDPOConfig:
    """Returns a copy of the shared configuration with the folder and the settings of the stage."""
    config = deepcopy(schedule.config)
    config.output_dir = str(schedule.folder(number, stage))
    for name, value in stage.training.items():
        setattr(config, name, value)
    if schedule.picks_checkpoints:
        config.load_best_model_at_end = True
        config.metric_for_best_model = schedule.metric
        config.greater_is_better = direction_of(schedule.metric.removeprefix("eval_")) > 0
    return config


def _measure(trainer: SoftmaxDPOTrainer, schedule: Schedule) -> dict[str, float]:
    """Returns the ranking metrics on the validation split. Raises `ValueError` if the metric by which policies are
    compared is not among them."""
    measured = {name: value for name, value in trainer.evaluate().items() if "@" in name or name == schedule.metric}
    if schedule.keep == "best" and schedule.metric not in measured:
        raise ValueError(
            f"evaluations do not measure {schedule.metric}, only {', '.join(measured)}; set metric_for_best_model to "
            "one of these metrics, or leave it out"
        )
    return measured


def _free_memory() -> None:
    """Frees GPU memory, because reference cycles could keep the models of a finished stage in memory."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def _delete_checkpoints(folder: Path) -> None:
    """Deletes the checkpoints of a finished stage, because it is never resumed."""
    if PartialState().is_main_process:
        for checkpoint in folder.glob("checkpoint-*"):
            shutil.rmtree(checkpoint)
