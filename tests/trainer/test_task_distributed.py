"""Two processes give what one gives at the same global batch, whatever tasks each of them has in a step."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.trainer.task_runs import make_folder
from tests.trainer.test_bear_distributed import launcher


pytestmark = pytest.mark.slow


def run(name: str, folder: Path, output: Path, **options: object) -> tuple[dict, dict[str, torch.Tensor]]:
    pairs = [f"{key}={value!r}" for key, value in options.items()]
    command = [sys.executable, *launcher(name, folder), "-m", "tests.trainer.task_runs", folder, output, *pairs]
    result = subprocess.run(list(map(str, command)), capture_output=True, text=True, timeout=400, cwd=Path(__file__).parents[2])
    assert result.returncode == 0, result.stderr[-3000:]
    return torch.load(output / "run.pt"), load_file(output / "model.safetensors")


BY_LENGTH = {"train_sampling_strategy": "batch_rebalance", "gradient_accumulation_steps": 2}


@pytest.mark.parametrize(
    ("name", "options"), [("ddp", {}), ("ddp", BY_LENGTH), ("zero3", {})], ids=["ddp", "by length", "zero3"]
)
def test_two_processes_equal_one(name: str, options: dict[str, object], tmp_path: Path) -> None:
    make_folder(tmp_path)
    one, weights = run("alone", tmp_path, tmp_path / "one", per_device_train_batch_size=4, **options)
    two, others = run(name, tmp_path, tmp_path / "two", per_device_train_batch_size=2, **options)
    assert two["losses"] == pytest.approx(one["losses"], abs=1e-5) and two["ndcg"] == pytest.approx(one["ndcg"], abs=1e-5)
    assert any(one["tasks"]) and len(two["tasks"]) == len(one["tasks"])
    # What is logged of accumulated parts is the mean of their means, as TRL has it; by length the parts differ in size.
    for ours, theirs in zip(two["tasks"], one["tasks"], strict=True):
        assert ours == pytest.approx(theirs, abs=0.1 if options else 1e-4)
    assert all(torch.allclose(tensor, others[key], atol=1e-5) for key, tensor in weights.items())
