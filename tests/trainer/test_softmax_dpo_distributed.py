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
from trl_rec.models import load_tokenizer, make_model


pytestmark = pytest.mark.slow
RUNS = Path(__file__).parent / "preference_runs.py"
Told = tuple[dict, dict[str, torch.Tensor]]


def run(name: str, folder: Path, output: Path, **options: object) -> Told:
    pairs = [f"{key}={value!r}" for key, value in options.items()]
    command = [sys.executable, *launcher(name, folder), RUNS, folder, output, *pairs]
    root = str(RUNS.parents[2])
    environment = {**os.environ, "PYTHONPATH": root}  # the script imports this package of tests
    result = subprocess.run(list(map(str, command)), capture_output=True, text=True, timeout=400, cwd=root, env=environment)
    assert result.returncode == 0, result.stderr[-3000:]
    return torch.load(output / "run.pt"), load_file(output / "model.safetensors")


def assert_same(told: Told, alone: Told) -> None:
    for name in ("losses", "margins", "ndcg"):
        assert told[0][name] == pytest.approx(alone[0][name], abs=1e-5), name
    for key, tensor in alone[1].items():  # ZeRO-3 also writes the tied output embedding
        assert torch.allclose(tensor, told[1][key], atol=1e-5), key


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("preferences")
    make_folder(path)
    return path


@pytest.fixture(scope="module")
def alone(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Told:
    return run("alone", folder, tmp_path_factory.mktemp("alone"), per_device_train_batch_size=4)


@pytest.mark.parametrize("precompute", [False, True])
@pytest.mark.parametrize("name", ["ddp", "zero2", "zero3"])
def test_two_processes_equal_one(name: str, precompute: bool, folder: Path, alone: Told, tmp_path: Path) -> None:
    """Batches of 5 do not divide the 24 rows whose reference is precomputed by two processes."""
    options = {"per_device_train_batch_size": 2, "precompute_ref_log_probs": precompute, "precompute_ref_batch_size": 5}
    if name == "zero3" and not precompute:
        options["ref_model"] = "loaded"
    assert_same(run(name, folder, tmp_path, **options), alone)
    files = list(tmp_path.glob("reference-*.parquet"))
    assert len(files) == precompute and all(pq.read_metadata(path).num_rows == 24 for path in files)


def test_under_zero3_a_policy_is_not_copied(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match="under ZeRO-3 a policy cannot be copied; pass ref_model"):
        run("zero3", folder, tmp_path, per_device_train_batch_size=2)


def test_the_legal_softmax_in_two_processes(folder: Path, tmp_path: Path) -> None:
    options = {"normalize": "catalogue", "sft_weight": 0.5}
    one = run("alone", folder, tmp_path / "one", **options, per_device_train_batch_size=4)
    assert_same(run("ddp", folder, tmp_path / "two", **options, per_device_train_batch_size=2), one)


def test_under_zero3_each_model_has_its_own_precomputed_reference(folder: Path, alone: Told, tmp_path: Path) -> None:
    """Loaded by each process for its share, so that the tensors are empty where the file's name is made."""
    options = {"per_device_train_batch_size": 2, "precompute_ref_log_probs": True, "max_steps": 1}
    for seed in range(2):
        tokenizer, model = load_tokenizer(folder / "model"), tmp_path / str(seed)
        make_model(tokenizer, hidden_size=16, dropout=0.0, max_length=256, seed=seed).save_pretrained(model)
        told, _ = run("zero3", folder, tmp_path / "run", model=str(model), **options)
        assert told["losses"][0] == pytest.approx(alone[0]["losses"][0], abs=1e-5)
    assert len(list((tmp_path / "run").glob("reference-*.parquet"))) == 2
