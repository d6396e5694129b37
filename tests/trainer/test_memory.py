"""The resident memory of a training process must stay about the same from step 200 to step 1,000."""

from __future__ import annotations

import gc
import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import TrainerCallback

from tests.processes import run_alone
from tests.trainer import runs
from tests.trainer.alro import alro_runs
from tests.trainer.blade import blade_runs
from tests.trainer.softmax_dpo import preference_runs


MAKERS: dict[str, Callable[..., Any]] = {
    "bear": runs.make_trainer,
    "alro": alro_runs.make_trainer,
    "blade": blade_runs.make_trainer,
    "softmax_dpo": preference_runs.make_trainer,
}
GROWTH = 24  # MiB that the allocator may add after step 200; keeping the logits of every batch would add far more


class ResidentMemory(TrainerCallback):
    """Records the resident memory in MiB after every hundredth step."""

    def __init__(self) -> None:
        self.mebibytes: dict[int, float] = {}

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step % 100 == 0:
            gc.collect()
            pages = int(Path("/proc/self/statm").read_text().split()[1])
            self.mebibytes[state.global_step] = pages * os.sysconf("SC_PAGE_SIZE") / 2**20


@pytest.mark.long
@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="resident memory is read from /proc")
@pytest.mark.parametrize("name", MAKERS)
def test_resident_memory_is_flat_after_200_steps(name: str, tmp_path: Path) -> None:
    """The training runs in a process of its own, because memory of other tests would hide what the trainer adds."""
    (alro_runs if name == "alro" else runs).make_folder(tmp_path)
    run_alone(partial(train, name, tmp_path), tmp_path / "run")
    memory = torch.load(tmp_path / "memory.pt")
    print(f"{name}: {memory[200]:.0f} MiB after 200 steps, {memory[1000]:.0f} MiB after 1,000")  # noqa: T201
    assert max(memory[step] for step in memory if step > 200) <= memory[200] + GROWTH, memory


def train(name: str, folder: Path, output: Path) -> None:
    """Trains for 1,000 steps, and saves the measured memory in `FOLDER/memory.pt`."""
    memory = ResidentMemory()
    options = {"max_steps": 1000, "learning_rate": 1e-3, "logging_steps": 50, "callbacks": [memory]}
    MAKERS[name](folder, output, **options).train()
    torch.save(memory.mebibytes, folder / "memory.pt")
