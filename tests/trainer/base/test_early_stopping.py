"""Tests early stopping: when a run stops, which settings are refused, and how a resumed run continues to count the
evaluations that brought no improvement."""

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import TrainerCallback

from tests.trainer.runs import make_folder, make_trainer
from trl_rec import BearConfig, load


OPTIONS = {"eval_strategy": "steps", "eval_steps": 2, "save_strategy": "steps", "save_steps": 2, "eval_ks": [5]}
OPTIONS |= {"metric_for_best_model": "eval_ndcg@5", "max_steps": 20, "learning_rate": 1e-9, "max_users": 7}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("early-stopping")
    make_folder(folder)
    return folder


def trainer_of(folder: Path, output: Path, **options: Any) -> Any:
    dataset = load(folder / "data")
    return make_trainer(folder, output, eval_dataset=dataset.validation, **{**OPTIONS, **options})


class Killed(BaseException):
    """Interrupts a run as a signal would."""


class KillAt(TrainerCallback):
    """Interrupts a run at the beginning of a step."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_begin(self, args, state, control, **others) -> None:
        if state.global_step == self.step:
            raise Killed


def test_a_resumed_run_continues_to_count(folder: Path, tmp_path: Path) -> None:
    """A resumed run stops at the step at which an uninterrupted run would stop. If the patience changes, the new
    patience applies."""
    cut = trainer_of(folder, tmp_path, early_stopping_patience=9, callbacks=[KillAt(6)])
    with pytest.raises(Killed):
        cut.train()
    resumed = trainer_of(folder, tmp_path, early_stopping_patience=3)
    resumed.train(resume_from_checkpoint=True)
    assert resumed.state.global_step == 8  # the evaluations at steps 4, 6 and 8 are no better than the one at step 2


def test_a_run_that_was_stopped_trains_no_further_step(folder: Path, tmp_path: Path) -> None:
    stopped = trainer_of(folder, tmp_path, early_stopping_patience=1)
    stopped.train()
    again = trainer_of(folder, tmp_path, early_stopping_patience=1)
    again.train(resume_from_checkpoint=True)
    assert stopped.state.global_step == again.state.global_step == 4
    assert len(again.state.log_history) == len(stopped.state.log_history)  # no further evaluation either
    for name, tensor in stopped.model.state_dict().items():
        assert torch.equal(again.model.state_dict()[name], tensor), name

    # With more patience, the run continues.
    longer = trainer_of(folder, tmp_path, early_stopping_patience=2)
    longer.train(resume_from_checkpoint=True)
    assert longer.state.global_step == 6


def test_a_small_improvement_counts_as_none(folder: Path, tmp_path: Path) -> None:
    """In both runs, the loss falls at every evaluation, but by less than 10, the threshold of the second run."""
    options = {"metric_for_best_model": "eval_loss", "learning_rate": 1e-3, "early_stopping_patience": 2}
    improving = trainer_of(folder, tmp_path / "improving", max_steps=8, **options)
    improving.train()
    assert improving.state.global_step == 8
    strict = trainer_of(folder, tmp_path / "strict", early_stopping_threshold=10.0, **options)
    strict.train()
    assert strict.state.global_step == 6


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"early_stopping_patience": 2}, "nothing is evaluated during training; set eval_strategy to epoch or steps"),
        ({"early_stopping_patience": 0}, "early_stopping_patience must be at least 1, not 0; leave it out to train"),
        ({"early_stopping_threshold": -1.0}, "early_stopping_threshold must be at least 0, not -1.0"),
        ({"early_stopping_threshold": 0.1}, "early_stopping_threshold=0.1 has no effect, because early_stopping_pati"),
        ({"max_test_users": 0}, "max_test_users must be at least 1, not 0; leave it out to evaluate all users"),
    ],
)
def test_keys_without_effect_are_refused(tmp_path: Path, options: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        BearConfig(str(tmp_path), use_cpu=True, bf16=False, report_to="none", **options)


def test_early_stopping_needs_a_metric(folder: Path, tmp_path: Path) -> None:
    trainer = trainer_of(folder, tmp_path, early_stopping_patience=2, metric_for_best_model=None)
    with pytest.raises(
        ValueError, match="metric_for_best_model, which is not set; set it, for example to eval_ndcg@5"
    ):
        trainer.train()
    assert not list(tmp_path.iterdir())
