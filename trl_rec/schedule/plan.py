"""Writes `plan.json`, the settings of a training run, so that a later call cannot resume the run with other settings.

The plan contains every setting that affects the trained weights or the validation metrics, and is written to the
output folder before any training. A later call with a different plan raises `ValueError`. Settings that only affect
speed, memory or logging may change between calls, and so may a few settings of the final evaluation.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import MISSING, asdict, fields
from pathlib import Path
from typing import Any

import numpy as np
from accelerate import PartialState
from transformers import TrainingArguments

from trl_rec.data.dataset import RecDataset, split_rows
from trl_rec.data.tasks.rows import task_texts
from trl_rec.decoding.priors import PRIOR
from trl_rec.files import write_json
from trl_rec.models import RecModelConfig
from trl_rec.schedule.settings import Schedule
from trl_rec.schedule.stages import PreferenceStage
from trl_rec.trainer.base.saving.fingerprint import DECIDING, as_json, catalog_entries, setting_entries
from trl_rec.trainer.bear.config import BearConfig


# Fields of TRL's and transformers' configurations that belong to a plan. They affect the weights, or decide which
# checkpoint of a stage the next stage starts from. The fields of TRL and transformers that are not listed only affect
# speed, memory, logging or output paths, and may change between calls. The fields that trl_rec adds also belong to a
# plan, because they define rows, loss, prompts and evaluation; `NOT_IN_A_PLAN` lists the exceptions.
INHERITED = (
    *DECIDING,
    # the batches (their size per process also affects rounding errors)
    "per_device_train_batch_size",
    "gradient_accumulation_steps",
    "auto_find_batch_size",
    # the number of training steps
    "num_train_epochs",
    "max_steps",
    # which checkpoint is kept
    "bf16_full_eval",
    "fp16_full_eval",
    "eval_strategy",
    "eval_steps",
    "eval_delay",
    "save_strategy",
    "save_steps",
    "load_best_model_at_end",
    "metric_for_best_model",
    "greater_is_better",
)
# Fields that trl_rec adds and that do not belong to a plan.
NOT_IN_A_PLAN = (
    "overwrite",  # always False, because a schedule resumes automatically
    "final_split",  # only selects the split on which the finished policy is measured
    "max_test_users",  # only limits the number of users in the final evaluation
    "eval_recall_at",  # only adds a metric to the final evaluation
    "prior",  # the prior and its strength are applied only to the finished policy
    "prior_strength",
    "include_catalog",  # this key and `include_prior` only decide what is pushed to the Hub
    "include_prior",
)
WEIGHT_SUFFIXES = (".safetensors", ".bin", ".gguf")


def check_same_plan(stages: Sequence[PreferenceStage], start: str | Path, schedule: Schedule) -> None:
    """Writes the plan of a schedule (a sequence of preference stages) to its folder. Raises `ValueError` if the folder
    has stages of a different plan.

    Args:
        stages: The stages to train, in order.
        start: Folder of the policy that the first stage starts from. The plan identifies this policy by its weights,
            not by its path.
        schedule: The settings that all stages share: dataset, configuration, adapter and output folder.
    """
    # 1. Make the plan.
    options = {name: value for name, value in (schedule.model_options or {}).items() if value is not None}
    options.pop("device_map", None)  # differs between processes

    plan = {
        "weights of the policy": weights_digest(start),
        **catalog_entries(schedule.dataset.catalog),
        "splits": _split_digest(schedule.dataset),
        "keep": schedule.keep,
        "adapter": _adapter_entry(schedule),
        **{f"model option {name}": value for name, value in options.items()},
        **{f"stage {number}": asdict(stage) for number, stage in enumerate(stages, 1)},
        **_config_entries(schedule.config),
    }

    # 2. Check that the folder contains no different plan, and write the plan.
    path = schedule.output / "plan.json"
    defaults = _defaults(type(schedule.config))
    _write_or_check(path, plan, defaults, work="[0-9]*-*", parts="the old plan.json and the stage folders")


def check_same_policy(folder: Path, dataset: RecDataset, config: BearConfig, model: dict[str, Any]) -> None:
    """Writes the plan of a supervised policy to its folder. Raises `ValueError` if the folder has a different plan.

    Args:
        folder: Output folder of the policy.
        dataset: Dataset that the policy is trained on.
        config: Configuration of the trainer.
        model: Options for loading or making the model, including `model_name_or_path`.
    """
    # 1. Make the plan. A local model is identified by its path and weights, and a model from the hub only by its name.
    pretrained = model.get("model_name_or_path") or ""
    weights = weights_digest(pretrained) if pretrained and Path(pretrained).is_dir() else None

    plan = {
        **{f"model option {name}": value for name, value in model.items()},
        "weights of the model": weights,
        **catalog_entries(dataset.catalog),
        "splits": _split_digest(dataset),
        "texts of the tasks": None if config.tasks is None else _digest(task_texts(dataset)),
        **_config_entries(config),
    }

    # 2. Check that the folder contains no different plan, and write the plan.
    defaults = _defaults(type(config)) | _defaults(RecModelConfig, "model option ")
    _write_or_check(folder / "plan.json", plan, defaults, work="*", parts="the folder")


def write_entry(path: Path, entry: dict[str, Any]) -> None:
    """Writes a JSON file atomically on the main process. All processes wait until it is written."""
    if PartialState().is_main_process:
        write_json(path, entry)
    PartialState().wait_for_everyone()


def weights_digest(folder: str | Path) -> str:
    """Returns a hash of the weights in a folder. It does not depend on the path of the folder."""
    digest = hashlib.sha256()
    for path in sorted(Path(folder).iterdir()):
        # A prior and the training_args.bin of `Trainer` have one of these suffixes, but contain no model weights.
        if path.suffix in WEIGHT_SUFFIXES and path.name not in ("training_args.bin", PRIOR):
            with path.open("rb") as file:
                digest.update(path.name.encode() + hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()[:16]


def _write_or_check(path: Path, plan: dict[str, Any], defaults: dict[str, Any], *, work: str, parts: str) -> None:
    """Writes `plan` to `path`. Raises `ValueError` if training with a different plan has started in the folder
    of `path`.

    Args:
        path: The file of the plan.
        plan: The plan.
        defaults: The default of each setting. It is used for settings that are missing in the old plan (the plan in
            the file), because an older version of trl_rec did not have them.
        work: Pattern of the files and folders that training writes beside `path`. If nothing but `path` matches,
            `plan` replaces the old plan.
        parts: Description, for the message, of the files that the user has to delete to start again.
    """
    plan = as_json(plan)  # tuples become lists, as in the file

    if path.is_file() and any(other != path for other in path.parent.glob(work)):
        old = json.loads(path.read_text(encoding="utf-8"))
        names = [name for name in {**old, **plan} if name not in NOT_IN_A_PLAN]
        old = {**as_json(defaults), **old}
        differing = [name for name in names if plan.get(name) != old.get(name)]
        if differing:
            name = differing[0]
            raise ValueError(
                f"{path.parent} contains stages or a policy of a run that differs in {name} ({old.get(name)!r} "
                f"there, {plan.get(name)!r} now); choose another output_dir, or delete {parts}"
            )

    # Wait until all processes have read the file before it is replaced.
    PartialState().wait_for_everyone()
    write_entry(path, plan)


def _adapter_entry(schedule: Schedule) -> dict[str, Any] | None:
    """Returns the settings of the adapter, without the version of PEFT that created them."""
    if schedule.adapter is None:
        return None
    return {name: value for name, value in schedule.adapter.to_dict().items() if name != "peft_version"}


def _config_entries(config: TrainingArguments) -> dict[str, Any]:
    """Returns the fields of a trainer's configuration that belong to a plan."""
    entries = setting_entries(config, INHERITED)
    return {name: value for name, value in entries.items() if name not in NOT_IN_A_PLAN}


def _defaults(kind: type[Any], prefix: str = "") -> dict[str, Any]:
    """Returns the default of each field of a dataclass, by the name of the field in a plan."""
    defaults = {one.name: one.default_factory() for one in fields(kind) if one.default_factory is not MISSING}
    defaults |= {one.name: one.default for one in fields(kind) if one.default is not MISSING}
    return {f"{prefix}{name}": value for name, value in defaults.items()}


def _digest(texts: Sequence[str]) -> str:
    """Returns a hash of texts, which must not contain zero bytes."""
    return hashlib.sha256("\0".join(texts).encode()).hexdigest()[:16]


def _split_digest(dataset: RecDataset) -> str:
    """Returns a hash of the histories, targets and ratings of all splits."""
    digest = hashlib.sha256()
    for split in (dataset.train, dataset.validation, dataset.test):
        for name in ("history", "targets", "history_ratings", "target_ratings"):
            rows = split_rows(split, name)
            digest.update(np.ascontiguousarray(rows.offsets).tobytes() + np.ascontiguousarray(rows.values).tobytes())
    return digest.hexdigest()[:16]
