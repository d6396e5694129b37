"""With the same global batch size, two processes give the same results as one. The tests run DDP, ZeRO-2 and ZeRO-3
with the shipped accelerate recipes, on the CPU."""

import shutil
from functools import partial
from pathlib import Path

import pytest

from tests.trainer.runs import Trained, assert_same, make_folder, run, trained


pytestmark = pytest.mark.slow
FIGURES = ("losses", "ndcg")


def options(batch_size: int, **others: object) -> dict[str, object]:
    return {"per_device_train_batch_size": batch_size, **others}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("bear")
    make_folder(path)
    return path


@pytest.fixture(scope="module")
def alone(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Trained:
    return trained("alone", partial(run, folder, options(4)), tmp_path_factory.mktemp("runs") / "alone")


@pytest.mark.parametrize("name", ["ddp", pytest.param("zero2", marks=pytest.mark.long), "zero3"])
def test_two_processes_equal_one(name: str, folder: Path, alone: Trained, tmp_path: Path) -> None:
    assert_same(trained(name, partial(run, folder, options(2)), tmp_path / name), alone, FIGURES)


def test_two_processes_learn_lists_like_one(folder: Path, tmp_path: Path) -> None:
    lists = {"list_length": 3, "eval_ks": [3], "eval_num_beams": 2}
    one = trained("alone", partial(run, folder, options(4, **lists)), tmp_path / "one")
    assert_same(trained("ddp", partial(run, folder, options(2, **lists)), tmp_path / "two"), one, FIGURES)


@pytest.mark.long
def test_two_processes_weight_targets_like_one(folder: Path, tmp_path: Path) -> None:
    weighted = {"targets": "all", "target_age_decay": 0.6, "target_smoothing": 0.1}
    one = trained("alone", partial(run, folder, options(4, **weighted)), tmp_path / "one")
    assert_same(trained("ddp", partial(run, folder, options(2, **weighted)), tmp_path / "two"), one, FIGURES)


def test_two_processes_resume_within_an_epoch_in_the_same_order(folder: Path, tmp_path: Path) -> None:
    """When a resumed run skips batches, Accelerate does not pass the epoch to the sampler. The callback `EpochOrder`
    passes it."""
    epochs = options(2, train_sampling_strategy="batch_rebalance", seed=3, max_steps=14, targets="all")
    epochs |= {"save_strategy": "steps", "save_steps": 11}  # step 11 is in the second epoch
    whole, _ = trained("ddp", partial(run, folder, epochs), tmp_path / "whole")
    shutil.copytree(tmp_path / "whole" / "checkpoint-11", tmp_path / "cut" / "checkpoint-11")
    cut, _ = trained("ddp", partial(run, folder, {**epochs, "resume_from_checkpoint": True}), tmp_path / "cut")
    assert cut["losses"] == pytest.approx(whole["losses"], abs=1e-7) and len(set(whole["losses"])) == 14
