"""Preference training stage by stage: each begins from what the stage before kept, against it as the reference.

A stage has a folder of its own: the policy's beams, checkpoints, the trained model, and at the end `stage.json`. What has
been written is never made again: a call that was killed goes on at the stage, and within it at the beam or the step, where
it stopped, and ends with the same weights. Every stage loads its policy from disk, so that it makes no difference whether
the stage before was trained by the same call.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
from collections.abc import Sequence
from copy import deepcopy
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from accelerate import PartialState
from datasets import Dataset

from trl_rec.data.dataset import RecDataset
from trl_rec.data.prompts import PromptFormat
from trl_rec.items.trie import TokenTrie
from trl_rec.models.loading import load_model, load_tokenizer
from trl_rec.schedule.candidate_leaks import refuse_leaking_candidates
from trl_rec.schedule.candidates import bucket_report, random_candidates, self_play_candidates
from trl_rec.schedule.difficulty import self_play_buckets
from trl_rec.schedule.feedback import feedback_candidates
from trl_rec.schedule.prefixes import training_prefixes
from trl_rec.schedule.self_play import self_play_beams
from trl_rec.schedule.stages import PreferenceStage
from trl_rec.trainer.softmax_dpo_config import SoftmaxDPOConfig
from trl_rec.trainer.softmax_dpo_trainer import SoftmaxDPOTrainer


if TYPE_CHECKING:
    from peft import PeftConfig

logger = logging.getLogger(__name__)
IGNORED_BY_PLAN = (
    "output_dir",
    "logging_dir",
    "num_negatives",
    "save_total_limit",
    "disable_tqdm",
    "report_to",
    "logging_steps",
)


@dataclass(frozen=True)
class Schedule:
    """What is the same for all stages.

    Args:
        dataset (`RecDataset`): The data; its catalogue's surface is that of the policy.
        config (`SoftmaxDPOConfig`): Configuration of the trainer; `output_dir` holds a folder a stage.
        keep (`str`, *optional*, defaults to `"best"`): `"best"`: a stage hands on its best checkpoint by validation NDCG, or
            what it began with where none is better. `"last"`: it hands on what it ended with.
        adapter (`PeftConfig`, *optional*): Adapter to train, where the policy has none yet.
        model_options (`dict`, *optional*): How models are loaded (`dtype`, `quantization_config`, ...).
    """

    dataset: RecDataset
    config: SoftmaxDPOConfig
    keep: str = "best"
    adapter: PeftConfig | None = None
    model_options: dict[str, Any] | None = None

    def __post_init__(self) -> None:
        if self.keep not in ("best", "last"):
            raise ValueError(f"keep must be 'best' or 'last', not {self.keep!r}")

    @property
    def metric(self) -> str:
        """What policies are compared by."""
        return f"eval_ndcg@{max(self.config.eval_ks)}"

    @property
    def output(self) -> Path:
        """Where all of it is."""
        return Path(str(self.config.output_dir))

    def folder(self, number: int, stage: PreferenceStage) -> Path:
        """Where a stage's work is."""
        return self.output / f"{number}-{stage.name}"


def run_stages(stages: Sequence[PreferenceStage], start: str | Path, schedule: Schedule) -> list[dict[str, Any]]:
    """Trains stage after stage, and copies the last policy into `output_dir` itself.

    Args:
        stages: What to train, in this order.
        start: Folder of the supervised policy, with its tokenizer.
        schedule: What all stages share.

    Returns:
        A report a stage: its name, `num_prompts`, `without_negatives` and the buckets, the validation metrics `before` and
        `after`, and whether the stage's policy was `kept`.
    """
    _refuse_another_plan(stages, start, schedule)
    folder, metrics, reports = Path(start), None, []
    for number, stage in enumerate(stages, 1):
        path = schedule.folder(number, stage) / "stage.json"
        if path.is_file():
            report = json.loads(path.read_text(encoding="utf-8"))
        else:
            logger.info("stage %d of %d: %s", number, len(stages), stage.name)
            report = _run_stage(number, stage, folder, metrics, schedule)
            _write(path, report)
            _drop_checkpoints(path.parent)
        reports.append(report)
        metrics = report["after"] if report["kept"] else report["before"]
        folder = path.parent if report["kept"] else folder
    if PartialState().is_main_process:
        ignored = shutil.ignore_patterns("self-play", "stage.json", "eval.jsonl", "ref")
        shutil.copytree(folder, schedule.output, dirs_exist_ok=True, ignore=ignored)
    PartialState().wait_for_everyone()
    return reports


def _run_stage(
    number: int, stage: PreferenceStage, start: Path, before: dict[str, float] | None, schedule: Schedule
) -> dict[str, Any]:
    own, has_adapter = schedule.folder(number, stage), (start / "adapter_config.json").is_file()
    policy, tokenizer = _load(start, schedule, is_trainable=True), load_tokenizer(start)
    table, report = _candidates(number, stage, policy, tokenizer, start, schedule)
    report = {"stage": number, "name": stage.name, **report}
    if report["without_negatives"] == 1:
        logger.warning("stage %d (%s) has no negative for any prompt: it is passed over", number, stage.name)
        return {**report, "before": before or {}, "after": before or {}, "kept": False}
    adapter = None if has_adapter else schedule.adapter
    trainer = SoftmaxDPOTrainer(
        policy,
        None if has_adapter or adapter is not None else _load(start, schedule),
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
    kept = schedule.keep == "last" or after[schedule.metric] >= before[schedule.metric]
    trainer.save_model()
    if trainer.is_world_process_zero():
        lines = [json.dumps(entry) for entry in trainer.state.log_history]
        (own / "eval.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return {**report, "before": before, "after": after, "kept": kept}


def _load(folder: Path, schedule: Schedule, **for_adapter: bool) -> Any:
    """The model on the device that this process computes with."""
    options = {**(schedule.model_options or {}), **(for_adapter if (folder / "adapter_config.json").is_file() else {})}
    model = load_model(folder, **options)
    return model if "quantization_config" in options else model.to(PartialState().device)


def _candidates(
    number: int, stage: PreferenceStage, policy: Any, tokenizer: Any, start: Path, schedule: Schedule
) -> tuple[Dataset, dict[str, Any]]:
    """The stage's preference table, and figures on it."""
    dataset, config = schedule.dataset, schedule.config
    chosen: dict[str, Any] = {"difficulty": stage.difficulty, "num_negatives": stage.num_negatives}
    sample: dict[str, Any] = {"max_prompts": stage.max_prompts, "seed": config.seed + number}
    if stage.source == "feedback":
        cuts: dict[str, Any] = {"liked": stage.liked, "neutral": stage.neutral, "disliked": stage.disliked}
        table = feedback_candidates(dataset.train, **chosen, **cuts, **sample)
        refuse_leaking_candidates(table, dataset, feedback=True)
        return table, bucket_report(table)
    prefixes = training_prefixes(dataset.train, **sample)
    if stage.source == "random":
        number_and_seed = {"num_negatives": stage.num_negatives, "seed": config.seed + number}
        table = random_candidates(prefixes, len(dataset.catalog), train=dataset.train, **number_and_seed)
        buckets = None
    else:
        beams = self_play_beams(
            policy,
            prefixes,
            PromptFormat.for_catalog(dataset.catalog, tokenizer, **config.prompt_options),
            TokenTrie.from_catalog(dataset.catalog, tokenizer),
            pad_token_id=tokenizer.pad_token_id,
            num_beams=stage.num_beams,
            folder=schedule.folder(number, stage) / "self-play",
            key=str(start),
            exclude_history=config.eval_exclude_history,
            renormalize=config.normalize == "catalogue",
            batch_size=config.per_device_eval_batch_size,
            max_length=config.max_length,
        )
        buckets = self_play_buckets(prefixes, beams, dataset.catalog, train=dataset.train)
        table = self_play_candidates(prefixes, beams, dataset.catalog, train=dataset.train, **chosen)
    refuse_leaking_candidates(table, dataset, feedback=False)
    return table, bucket_report(table, buckets)


def _stage_config(stage: PreferenceStage, own: Path, schedule: Schedule) -> SoftmaxDPOConfig:
    config = deepcopy(schedule.config)
    config.output_dir = str(own)
    for name, value in stage.training.items():
        setattr(config, name, value)
    if schedule.keep == "best" and config.eval_strategy != "no":
        config.load_best_model_at_end, config.metric_for_best_model, config.greater_is_better = True, schedule.metric, True
    return config


def _measure(trainer: SoftmaxDPOTrainer) -> dict[str, float]:
    """The validation metrics of the lists."""
    return {name: value for name, value in trainer.evaluate().items() if "@" in name}


def _refuse_another_plan(stages: Sequence[PreferenceStage], start: str | Path, schedule: Schedule) -> None:
    """Writes down what is about to run; a folder that holds the work of another plan is refused."""
    settings = {name: value for name, value in schedule.config.to_dict().items() if name not in IGNORED_BY_PLAN}
    plan: dict[str, Any] = {
        "start": str(start),
        "dataset": schedule.dataset.catalog.fingerprint,
        "keep": schedule.keep,
        "stages": [asdict(stage) for stage in stages],
        "config": {name: value for name, value in settings.items() if isinstance(value, int | float | str | None)},
    }
    plan, path = json.loads(json.dumps(plan)), schedule.output / "plan.json"
    if path.is_file():
        old = json.loads(path.read_text(encoding="utf-8"))
        differing = [name for name in plan if plan[name] != old.get(name)]
        if differing:
            raise ValueError(
                f"{path.parent} holds the stages of a plan that differs in its {differing[0]}; give another output_dir, or "
                "delete it"
            )
    PartialState().wait_for_everyone()
    _write(path, plan)


def _drop_checkpoints(folder: Path) -> None:
    """A finished stage never resumes."""
    if PartialState().is_main_process:
        for checkpoint in folder.glob("checkpoint-*"):
            shutil.rmtree(checkpoint)


def _write(path: Path, entry: dict[str, Any]) -> None:
    """Writes JSON, whole or not at all, from one process."""
    if PartialState().is_main_process:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f"{path.name}.tmp")
        temporary.write_text(json.dumps(entry, indent=2) + "\n", encoding="utf-8")
        os.replace(temporary, path)
    PartialState().wait_for_everyone()
