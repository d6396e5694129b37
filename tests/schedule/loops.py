"""A small schedule on the toy world of `tests.trainer.runs`, run here, in processes that are killed, and in two
together."""

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
    """A dataset, and in `FOLDER/sft` a policy that knows a little."""
    make_folder(folder)
    trainer = make_trainer(
        folder, folder / "sft", max_steps=20, optim="adamw_torch", learning_rate=5e-3, targets="all"
    )
    trainer.train()
    trainer.save_model()


def make_schedule(folder: Path, output: Path, *, keep: str = "last", lora: bool = False, **options: Any) -> Schedule:
    """What all stages share; `options` go to `SoftmaxDPOConfig`."""
    defaults: dict[str, Any] = {
        "per_device_train_batch_size": 8,
        "learning_rate": 0.02,
        "optim": "sgd",
        "max_length": 96,
    }
    defaults |= {
        "save_strategy": "steps",
        "save_steps": 2,
        "activation_checkpointing": False,
        "normalize": "catalogue",
    }
    defaults["dataloader_drop_last"] = True  # of an uneven last batch, processes repeat a row
    config = SoftmaxDPOConfig(str(output), **{**QUIET, **defaults, "num_train_epochs": 2, **options})
    adapter = LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False) if lora else None
    return Schedule(load(folder / "data"), config, keep=keep, adapter=adapter)


def run(folder: Path, output: Path, **options: Any) -> list[dict[str, Any]]:
    """The reports of the three stages."""
    return run_stages(STAGES, folder / "sft", make_schedule(folder, output, **options))


def run_as_one_of_two(folder: Path, output: Path) -> None:
    """With half the batch."""
    run(folder, output, per_device_train_batch_size=4)
    end_processes(PartialState().destroy_process_group)
