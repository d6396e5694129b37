"""What all stages of a schedule share, and the plan: what decides weights and reports, written down in `output_dir`.

A later call in the same folder is held to the plan. What only decides speed, memory or logging may change between
calls.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from accelerate import PartialState
from transformers.trainer_utils import IntervalStrategy, SaveStrategy

from trl_rec.data.dataset import RecDataset, split_rows
from trl_rec.data.task_rows import task_texts
from trl_rec.schedule.stages import PreferenceStage
from trl_rec.trainer.softmax_dpo.config import SoftmaxDPOConfig


if TYPE_CHECKING:
    from peft import PeftConfig

FREE_PREFIXES = (
    "logging_",
    "log_",
    "hub_",
    "trackio_",
    "ddp_",
    "fsdp",
    "activation_",
    "gradient_checkpointing",
    "torch_compile",
)
FREE = (
    "output_dir",
    "resume_from_checkpoint",
    "per_device_eval_batch_size",
    "eval_accumulation_steps",
    "precompute_ref_log_probs",
    "precompute_ref_batch_size",
    "torch_empty_cache_steps",
    "save_total_limit",
    "save_only_model",
    "save_on_each_node",
    "enable_jit_checkpoint",
    "push_to_hub",
    "disable_tqdm",
    "report_to",
    "run_name",
    "project",
    "use_cpu",
    "use_cache",
    "deepspeed",
    "local_rank",
    "debug",
    "skip_memory_metrics",
    "do_train",
    "do_eval",
    "do_predict",
    "dataset_num_proc",
    "dataloader_num_workers",
    "dataloader_pin_memory",
    "dataloader_persistent_workers",
    "dataloader_prefetch_factor",
    "dataloader_multiprocessing_context",
)
WEIGHTS = (".safetensors", ".bin", ".gguf")


@dataclass(frozen=True)
class Schedule:
    """What is the same for all stages.

    Args:
        dataset (`RecDataset`): The data; its catalogue's surface is that of the policy.
        config (`SoftmaxDPOConfig`): Configuration of the trainer; `output_dir` holds a folder a stage.
        keep (`str`, *optional*, defaults to `"best"`): `"best"`: a stage hands on its best checkpoint by validation
            NDCG, or what it began with where none is better. `"last"`: it hands on what it ended with.
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
        if self.config.push_to_hub:
            raise ValueError(
                "push_to_hub would push every stage; leave it out, and push the end: "
                f"hf upload NAME {self.config.output_dir} --exclude '[0-9]*-*/*' 'supervised/*'"
            )
        if self.picks_checkpoints:
            _check_unpickable(self.config, self.metric)

    @property
    def metric(self) -> str:
        """What policies are compared by."""
        return f"eval_ndcg@{max(self.config.eval_ks)}"

    @property
    def picks_checkpoints(self) -> bool:
        """Whether a stage ends with its best checkpoint; else with its last step."""
        return self.keep == "best" and self.config.eval_strategy != "no"

    @property
    def output(self) -> Path:
        """Where all of it is."""
        return Path(str(self.config.output_dir))

    def folder(self, number: int, stage: PreferenceStage) -> Path:
        """Where a stage's work is."""
        return self.output / f"{number}-{stage.name}"


def check_same_plan(stages: Sequence[PreferenceStage], start: str | Path, schedule: Schedule) -> None:
    """Writes down what is about to run; a folder that holds the work of another plan is refused."""
    _check_another(schedule.output / "plan.json", _plan(stages, start, schedule), work="[0-9]*-*")


def check_same_policy(folder: Path, dataset: RecDataset, config: Any, model: dict[str, Any]) -> None:
    """Writes down what a supervised policy is about to be trained by; a folder that holds another one's is refused."""
    pretrained = model.get("model_name_or_path")
    plan = {
        **{f"model option {name}": value for name, value in model.items()},
        "weights of the model": weights_digest(pretrained)
        if pretrained is not None and Path(pretrained).is_dir()
        else None,
        "items": dataset.catalog.fingerprint,
        "texts of the tasks": None if config.tasks is None else _digest(task_texts(dataset)),
        "semantic_ids": _digest([*dataset.catalog.surfaces, *dataset.catalog.user_surfaces]),
        "splits": _split_digest(dataset),
        **{name: value for name, value in config.to_dict().items() if not _is_free(name)},
    }
    _check_another(folder / "plan.json", json.loads(json.dumps(plan, default=_plain)))


def write_entry(path: Path, entry: dict[str, Any]) -> None:
    """Writes JSON, whole or not at all, from one process."""
    if PartialState().is_main_process:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f"{path.name}.tmp")
        temporary.write_text(json.dumps(entry, indent=2) + "\n", encoding="utf-8")
        os.replace(temporary, path)
    PartialState().wait_for_everyone()


def weights_digest(folder: str | Path) -> str:
    """A hash of the weights in a policy's folder: after another training it is another policy, whatever the folder's
    name."""
    digest = hashlib.sha256()
    for path in sorted(Path(folder).iterdir()):
        if path.suffix in WEIGHTS and path.name != "training_args.bin":
            with path.open("rb") as file:
                digest.update(path.name.encode() + hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()[:16]


def _check_another(path: Path, plan: dict[str, Any], work: str = "*") -> None:
    """`work`: what the folder holds once the plan has come to something."""
    if path.is_file() and any(other != path for other in path.parent.glob(work)):
        old = json.loads(path.read_text(encoding="utf-8"))
        differing = [name for name in {**old, **plan} if plan.get(name) != old.get(name)]
        if differing:
            name = differing[0]
            raise ValueError(
                f"{path.parent} holds the work of a plan that differs in {name} ({old.get(name)!r} there, "
                f"{plan.get(name)!r} now); give another output_dir, or delete "
                f"{'it' if work == '*' else 'its plan.json and the folders of its stages'}"
            )
    PartialState().wait_for_everyone()
    write_entry(path, plan)


def _check_unpickable(config: SoftmaxDPOConfig, metric: str) -> None:
    """Raises unless each evaluation that may be the best one has a checkpoint; the trainer itself would pass over
    it."""
    if config.metric_for_best_model not in (None, "loss", metric, metric.removeprefix("eval_")):
        raise ValueError(
            f"keep='best' goes by {metric}, not by metric_for_best_model={config.metric_for_best_model!r}; leave that out"
        )
    matches = config.save_strategy in (config.eval_strategy, "best")
    if matches and config.save_strategy == "steps":
        ratio = config.save_steps / (config.eval_steps or config.logging_steps)
        matches = round(ratio) >= 1 and abs(ratio - round(ratio)) < 1e-6
    if not matches:
        saves, measures = SaveStrategy(config.save_strategy).value, IntervalStrategy(config.eval_strategy).value
        raise ValueError(
            f"keep='best' hands on the best checkpoint, but save_strategy {saves!r} does not save when "
            f"eval_strategy {measures!r} measures one; save and evaluate at the same steps, or leave out "
            "eval_strategy to compare only a stage's end with its beginning"
        )


def _plan(stages: Sequence[PreferenceStage], start: str | Path, schedule: Schedule) -> dict[str, Any]:
    """What decides weights and reports, as JSON."""
    dataset, options = schedule.dataset, dict(schedule.model_options or {})
    options.pop("device_map", None)  # another one on each process
    adapter = schedule.adapter and {
        name: value for name, value in schedule.adapter.to_dict().items() if name != "peft_version"
    }
    plan = {
        "weights of the policy": weights_digest(start),
        "items": dataset.catalog.fingerprint,
        "surface": dataset.catalog.surface,
        "semantic_ids": _digest([*dataset.catalog.surfaces, *dataset.catalog.user_surfaces]),
        "splits": _split_digest(dataset),
        "keep": schedule.keep,
        "adapter": adapter,
        **{f"model option {name}": value for name, value in options.items() if value is not None},
        **{f"stage {number}": asdict(stage) for number, stage in enumerate(stages, 1)},
        **{name: value for name, value in schedule.config.to_dict().items() if not _is_free(name)},
    }
    return json.loads(json.dumps(plan, default=_plain))


def _is_free(name: str) -> bool:
    return name in FREE or name.startswith(FREE_PREFIXES)


def _plain(value: Any) -> Any:
    """What JSON does not know: sets (target modules), quantisation, number formats."""
    if isinstance(value, set):
        return sorted(value)
    return value.to_dict() if callable(getattr(value, "to_dict", None)) else str(value)


def _digest(texts: Sequence[str]) -> str:
    return hashlib.sha256("\0".join(texts).encode()).hexdigest()[:16]


def _split_digest(dataset: RecDataset) -> str:
    """A hash of all rows: who chose what in which split, and the ratings that feedback is made of."""
    digest = hashlib.sha256()
    for split in (dataset.train, dataset.validation, dataset.test):
        for name in ("history", "targets", "history_ratings", "target_ratings"):
            rows = split_rows(split, name)
            digest.update(np.ascontiguousarray(rows.offsets).tobytes() + np.ascontiguousarray(rows.values).tobytes())
    return digest.hexdigest()[:16]
