"""Two processes give what one gives at the same global batch: DDP, ZeRO-2, ZeRO-3, on the CPU with the shipped recipes."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.trainer.alro_runs import make_folder
from tests.trainer.test_bear_distributed import launcher


pytestmark = pytest.mark.slow
RUNS = Path(__file__).parent / "alro_runs.py"


def run(name: str, folder: Path, output: Path, **options: object) -> tuple[dict, dict[str, torch.Tensor]]:
    pairs = [f"{key}={value!r}" for key, value in options.items()]
    command = [sys.executable, *launcher(name, folder), "-m", "tests.trainer.alro_runs", folder, output, *pairs]
    result = subprocess.run(list(map(str, command)), capture_output=True, text=True, timeout=400, cwd=RUNS.parents[2])
    assert result.returncode == 0, result.stderr[-3000:]
    return torch.load(output / "run.pt"), load_file(output / "model.safetensors")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("alro")
    make_folder(path)
    return path


@pytest.fixture(scope="module")
def alone(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[dict, dict[str, torch.Tensor]]:
    return run("alone", folder, tmp_path_factory.mktemp("alone"), per_device_train_batch_size=4)


@pytest.mark.parametrize("name", ["ddp", "zero2", "zero3"])
def test_two_processes_equal_one(name: str, folder: Path, alone, tmp_path: Path) -> None:
    told, weights = run(name, folder, tmp_path, per_device_train_batch_size=2)
    for logged in ("losses", "soft_lambda"):
        assert told[logged] == pytest.approx(alone[0][logged], abs=1e-5)
    assert told["ndcg"] == pytest.approx(alone[0]["ndcg"], abs=1e-5)
    assert told["places"] == alone[0]["places"]
    for key, tensor in alone[1].items():  # ZeRO-3 also writes the tied output embedding
        assert torch.allclose(tensor, weights[key], atol=1e-5), key
