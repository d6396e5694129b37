"""A BLADE run that is killed repeatedly ends with the same weights as an uninterrupted run."""

from functools import partial
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.processes import run_alone
from tests.trainer.blade.blade_runs import logged, make_trainer
from tests.trainer.killing import KILLS, STEPS_PER_KILL, run_and_kill
from tests.trainer.runs import make_folder
from trl_rec import load
from trl_rec.trainer.blade import reference_lists


pytestmark = pytest.mark.slow
# Only the newest checkpoint and the one with the best ranking metric are kept.
OPTIONS = {"eval_strategy": "steps", "eval_steps": 2, "save_strategy": "steps", "save_steps": 2, "save_total_limit": 1}
OPTIONS |= {"load_best_model_at_end": True, "metric_for_best_model": "eval_ndcg@3", "max_users": 4}
# The run depends on all state that a resume must restore: the optimizer's moments, the learning rate schedule and the
# position within an epoch. Each step accumulates the gradients of two batches.
OPTIONS |= {"optim": "adamw_torch", "learning_rate": 0.003, "lr_scheduler_type": "linear"}
OPTIONS |= {"gradient_accumulation_steps": 2, "per_device_train_batch_size": 2}


def train(folder: Path, num_iterations: int, num_steps: int, output: Path) -> None:
    reference_lists.PART_SIZE = 5
    options = {
        **OPTIONS,
        "max_steps": num_steps,
        "num_iterations": num_iterations,
        "eval_dataset": load(folder / "data").validation,
    }
    trainer = make_trainer(folder, output, **options)
    trainer.train(resume_from_checkpoint=True)
    trainer.save_model()
    torch.save([logged(trainer, name) for name in ("reward", "kl", "blade/ratio", "grad_norm")], output / "told.pt")


@pytest.mark.parametrize("num_iterations", [1, pytest.param(2, marks=pytest.mark.long)])
@KILLS
def test_killed_and_resumed_is_bit_equal_to_uninterrupted(num_kills: int, tmp_path: Path, num_iterations: int) -> None:
    make_folder(tmp_path)
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    work = partial(train, tmp_path, num_iterations, num_kills * STEPS_PER_KILL)
    run_alone(work, whole)
    left = run_and_kill(work, cut, num_kills=num_kills, most_seconds=0.3)
    assert any(left), "no kill came while a checkpoint was being written"
    assert torch.load(cut / "told.pt") == torch.load(whole / "told.pt")
    weights = load_file(cut / "model.safetensors")
    for name, tensor in load_file(whole / "model.safetensors").items():
        assert torch.equal(weights[name], tensor), name
