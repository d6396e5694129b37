"""Two processes give what one gives at the same global batch: DDP, ZeRO-2, ZeRO-3, on the CPU with the shipped recipes."""

import os
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file

from tests.trainer.runs import make_folder
from tests.trainer.test_bear_distributed import launcher


pytestmark = pytest.mark.slow
RUNS = Path(__file__).parent / "blade_runs.py"
Told = tuple[dict, dict[str, torch.Tensor], list]


def run(name: str, folder: Path, output: Path, **options: object) -> Told:
    """What was logged, the weights, and the reference lists."""
    pairs = [f"{key}={value!r}" for key, value in options.items()]
    command = [sys.executable, *launcher(name, folder), RUNS, folder, output, *pairs]
    root = str(RUNS.parents[2])
    environment = {**os.environ, "PYTHONPATH": root}  # the script imports this package of tests
    result = subprocess.run(list(map(str, command)), capture_output=True, text=True, timeout=400, cwd=root, env=environment)
    (output / "stderr.txt").write_text(result.stderr)
    assert result.returncode == 0, result.stderr[-3000:]
    weights = "adapter_model.safetensors" if "adapter" in options else "model.safetensors"
    parts = [pq.read_table(path)["references"].to_pylist() for path in sorted(output.glob("references-*/*.parquet"))]
    return torch.load(output / "run.pt"), load_file(output / weights), parts


def assert_same(told: Told, alone: Told) -> None:
    assert told[2] == alone[2] and len(told[2]) == 4
    for name in ("reward", "kl", "blade/clipped", "ndcg"):
        assert told[0][name] == pytest.approx(alone[0][name], abs=1e-5), name
    for key, tensor in alone[1].items():  # ZeRO-3 also writes the tied output embedding
        assert torch.allclose(tensor, told[1][key], atol=1e-5), key


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("lists")
    make_folder(path)
    return path


@pytest.mark.parametrize(
    ("names", "options"),
    [
        (["ddp", "zero2", "zero3"], {}),
        (["ddp"], {"num_iterations": 2, "learning_rate": 0.5, "max_steps": 8}),
        (["ddp", "zero2", "zero3"], {"adapter": True, "learning_rate": 1.0}),
    ],
    ids=["full", "two iterations", "adapter"],
)
def test_two_processes_equal_one(names: list[str], options: dict, folder: Path, tmp_path: Path) -> None:
    """The reference lists come in parts of four or five rows, which the processes divide between them."""
    options |= {"max_prompts": 16, "gradient_accumulation_steps": 2, "rows_a_part": 5 if "num_iterations" not in options else 4}
    alone = run("alone", folder, tmp_path / "alone", **options, per_device_train_batch_size=2)
    assert max(map(abs, alone[0]["kl"])) > 1e-3
    for name in names:
        reference = {"ref_model": "loaded"} if name == "zero3" and "adapter" not in options else {}
        told = run(name, folder, tmp_path / name, **options, **reference, per_device_train_batch_size=1)
        assert_same(told, alone)


def test_under_zero3_a_policy_is_not_copied(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match="under ZeRO-3 a policy cannot be copied; pass ref_model"):
        run("zero3", folder, tmp_path, per_device_train_batch_size=2)
