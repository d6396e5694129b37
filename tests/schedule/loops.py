"""Runs a schedule of three small stages on the toy data of `tests.trainer.runs`, in one process or in two."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from accelerate import PartialState
from peft import LoraConfig

from tests.trainer.runs import QUIET, make_folder, make_trainer
from trl_rec import PreferenceStage, Schedule, SoftmaxDPOConfig, load, run_stages
from trl_rec.trainer.base.shutdown import end_processes


STAGES = [
    PreferenceStage("self_play", "easy", num_beams=8, max_prompts=24),
    PreferenceStage("feedback", "hard", num_negatives=3, max_prompts=24),
    PreferenceStage("random", num_negatives=3, max_prompts=24, learning_rate=0.05),
]


def make_start(folder: Path) -> None:
    """Makes a dataset, and trains a policy in `FOLDER/sft` for 20 steps."""
    make_folder(folder)
    trainer = make_trainer(
        folder, folder / "sft", max_steps=20, optim="adamw_torch", learning_rate=5e-3, targets="all"
    )
    trainer.train()
    trainer.save_model()


def make_schedule(folder: Path, output: Path, *, keep: str = "last", lora: bool = False, **options: Any) -> Schedule:
    """Returns the settings that all stages share. `options` are fields of `SoftmaxDPOConfig`."""
    defaults: dict[str, Any] = {
        "num_train_epochs": 2,
        "per_device_train_batch_size": 8,
        "dataloader_drop_last": True,  # two processes would repeat a row to fill an uneven last batch
        "learning_rate": 0.02,
        "optim": "sgd",
        "max_length": 96,
        "save_strategy": "steps",
        "save_steps": 2,
        "activation_checkpointing": False,
        "normalize": "catalogue",
    }
    config = SoftmaxDPOConfig(str(output), **{**QUIET, **defaults, **options})
    adapter = LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False) if lora else None
    return Schedule(load(folder / "data"), config, keep=keep, adapter=adapter)


def run(folder: Path, output: Path, **options: Any) -> list[dict[str, Any]]:
    """Runs the three stages and returns their reports."""
    return run_stages(STAGES, folder / "sft", make_schedule(folder, output, **options))


def run_as_one_of_two(folder: Path, output: Path) -> None:
    """Runs the three stages as one of two processes. Each process trains on half of every batch."""
    run(folder, output, per_device_train_batch_size=4)
    end_processes(PartialState().destroy_process_group)
