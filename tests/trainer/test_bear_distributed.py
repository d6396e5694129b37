"""Two processes give what one gives at the same global batch: DDP, ZeRO-2, ZeRO-3, on the CPU with the shipped recipes."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file

from tests.trainer.runs import make_folder
from trl_rec.scripts.parsing import recipes_folder


pytestmark = pytest.mark.slow
RUNS = Path(__file__).parent / "runs.py"


def launcher(name: str, folder: Path) -> list[str]:
    """How to launch two processes; the shipped recipes with the CPU for device."""
    if name == "alone":
        return []
    if name == "ddp":
        return ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    recipe = yaml.safe_load((recipes_folder() / f"accelerate/{name}.yaml").read_text())
    (folder / f"{name}.yaml").write_text(yaml.safe_dump({**recipe, "use_cpu": True, "mixed_precision": "no"}))
    return [
        "-m",
        "accelerate.commands.launch",
        "--config_file",
        str(folder / f"{name}.yaml"),
        "--num_cpu_threads_per_process",
        "1",
    ]


def run(name: str, folder: Path, output: Path, **options: object) -> tuple[dict, dict[str, torch.Tensor]]:
    pairs = [f"{key}={value!r}" for key, value in options.items()]
    command = [sys.executable, *launcher(name, folder), RUNS, folder, output, *pairs]
    result = subprocess.run(list(map(str, command)), capture_output=True, text=True, timeout=400, cwd=RUNS.parents[2])
    assert result.returncode == 0, result.stderr[-3000:]
    return torch.load(output / "run.pt"), load_file(output / "model.safetensors")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("bear")
    make_folder(path)
    return path


@pytest.fixture(scope="module")
def alone(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[dict, dict[str, torch.Tensor]]:
    return run("alone", folder, tmp_path_factory.mktemp("alone"), per_device_train_batch_size=4)


@pytest.mark.parametrize("name", ["ddp", "zero2", "zero3"])
def test_two_processes_equal_one(name: str, folder: Path, alone, tmp_path: Path) -> None:
    told, weights = run(name, folder, tmp_path, per_device_train_batch_size=2)
    assert told["losses"] == pytest.approx(alone[0]["losses"], abs=1e-5)
    assert told["ndcg"] == pytest.approx(alone[0]["ndcg"], abs=1e-5)
    for key, tensor in alone[1].items():  # ZeRO-3 also writes the tied output embedding
        assert torch.allclose(tensor, weights[key], atol=1e-5), key


def test_two_processes_learn_lists_as_one(folder: Path, tmp_path: Path) -> None:
    lists = {"list_length": 3, "eval_ks": [3], "eval_num_beams": 2}
    one, weights = run("alone", folder, tmp_path / "one", per_device_train_batch_size=4, **lists)
    two, others = run("ddp", folder, tmp_path / "two", per_device_train_batch_size=2, **lists)
    assert two["losses"] == pytest.approx(one["losses"], abs=1e-5)
    assert two["ndcg"] == pytest.approx(one["ndcg"], abs=1e-5)
    assert all(torch.allclose(tensor, others[key], atol=1e-5) for key, tensor in weights.items())


def test_two_processes_resume_within_the_order_of_the_epoch(folder: Path, tmp_path: Path) -> None:
    """Accelerate's wrappers hide the sampler from `set_epoch` once batches are skipped."""
    options = {"train_sampling_strategy": "batch_rebalance", "per_device_train_batch_size": 2, "seed": 3, "max_steps": 14}
    options |= {"targets": "all", "save_strategy": "steps", "save_steps": 11}  # in the second epoch
    whole, _ = run("ddp", folder, tmp_path / "whole", **options)
    shutil.copytree(tmp_path / "whole" / "checkpoint-11", tmp_path / "cut" / "checkpoint-11")
    cut, _ = run("ddp", folder, tmp_path / "cut", **options, resume_from_checkpoint=True)
    assert cut["losses"] == pytest.approx(whole["losses"], abs=1e-7) and len(set(whole["losses"])) == 14
