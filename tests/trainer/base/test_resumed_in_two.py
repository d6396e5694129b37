"""Tests that the two processes of a run agree: both resume the run, or both refuse to resume it."""

from functools import partial
from pathlib import Path

import pytest
import torch

from tests.processes import run_in_two
from tests.trainer.runs import make_folder, make_trainer, run, trained


pytestmark = pytest.mark.slow
SAVING = {"save_strategy": "steps", "save_steps": 2, "overwrite": False, "per_device_train_batch_size": 2}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("two")
    make_folder(folder)
    return folder


@pytest.mark.parametrize("name", ["ddp", *(pytest.param(name, marks=pytest.mark.long) for name in ("zero2", "zero3"))])
def test_a_run_in_two_processes_is_resumed_and_another_one_refused(name: str, folder: Path, tmp_path: Path) -> None:
    whole, _ = trained(name, partial(run, folder, {**SAVING, "max_steps": 6}), tmp_path / "whole")
    trained(name, partial(run, folder, {**SAVING, "max_steps": 4}), tmp_path / "cut")
    options = {**SAVING, "max_steps": 6, "resume_from_checkpoint": True}
    cut, _ = trained(name, partial(run, folder, options), tmp_path / "cut")
    assert cut["losses"] == pytest.approx(whole["losses"], abs=1e-6)

    # Both processes end with the error. If one of them waited for the other, this would take minutes.
    with pytest.raises(AssertionError, match=r"differs in learning_rate \(0.1 there, 0.2 now\)") as failed:
        run_in_two(name, partial(run, folder, {**options, "learning_rate": 0.2}), tmp_path / "cut")
    assert "exit codes" in str(failed.value)
    with pytest.raises(AssertionError, match="contains the work of an earlier run"):
        run_in_two(name, partial(run, folder, {**options, "resume_from_checkpoint": None}), tmp_path / "cut")

    # Resume in one process, with the same number of rows per step. Only sharded checkpoints are refused.
    alone = make_trainer(folder, tmp_path / "cut", **{**options, "per_device_train_batch_size": 4})
    if name == "ddp":
        alone.args.max_steps = 7
        alone.train(resume_from_checkpoint=True)
        assert alone.state.global_step == 7 and torch.isfinite(torch.tensor(alone.state.log_history[-2]["loss"]))
    else:
        with pytest.raises(ValueError, match="was written by a launch that differs in sharding"):
            alone.train(resume_from_checkpoint=True)
