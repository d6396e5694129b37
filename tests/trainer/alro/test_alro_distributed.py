"""Tests that training with ALRO gives the same results with two processes as with one, if the global batch size is the
same. The test runs DDP, ZeRO-2 and ZeRO-3 with the accelerate recipes of this package, on the CPU."""

from functools import partial
from pathlib import Path

import pytest

from tests.trainer.alro.alro_runs import make_folder, run
from tests.trainer.runs import Trained, assert_same, trained


pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("alro")
    make_folder(path)
    return path


@pytest.fixture(scope="module")
def alone(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Trained:
    output = tmp_path_factory.mktemp("runs") / "alone"
    return trained("alone", partial(run, folder, {"per_device_train_batch_size": 4}), output)


@pytest.mark.parametrize("name", ["ddp", *(pytest.param(name, marks=pytest.mark.long) for name in ("zero2", "zero3"))])
def test_two_processes_equal_one(name: str, folder: Path, alone: Trained, tmp_path: Path) -> None:
    two = trained(name, partial(run, folder, {"per_device_train_batch_size": 2}), tmp_path / name)
    assert_same(two, alone, ("losses", "soft_lambda", "ndcg"))
    assert two[0]["places"] == alone[0]["places"]
