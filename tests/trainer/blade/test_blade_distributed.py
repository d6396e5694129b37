"""Tests BLADE with two processes. With the same global batch size, they give the same results as one process. The
tests run DDP, ZeRO-2 and ZeRO-3 on the CPU, with the configurations in `recipes/accelerate`."""

from functools import partial
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from tests.trainer.blade.blade_runs import ADAPTER, run
from tests.trainer.runs import assert_same, make_folder, trained


pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("lists")
    make_folder(path)
    return path


def references(output: Path) -> list[list]:
    """Returns the reference lists in each part file."""
    return [pq.read_table(path)["rows"].to_pylist() for path in sorted(output.glob("references-*/*.parquet"))]


@pytest.mark.parametrize(
    ("names", "options"),
    [
        (["ddp", "zero2", "zero3"], {}),
        (["ddp"], {"num_iterations": 2, "learning_rate": 0.5, "max_steps": 8}),
        pytest.param(
            ["ddp", "zero2", "zero3"], {"peft_config": ADAPTER, "learning_rate": 1.0}, marks=pytest.mark.long
        ),
    ],
    ids=["full", "two iterations", "adapter"],
)
def test_two_processes_equal_one(names: list[str], options: dict, folder: Path, tmp_path: Path) -> None:
    """The reference lists of 16 rows are drawn in four parts. Each process draws some of the parts."""
    options |= {
        "max_prompts": 16,
        "gradient_accumulation_steps": 2,
        "part_size": 5 if "num_iterations" not in options else 4,
    }
    one = trained("alone", partial(run, folder, {**options, "per_device_train_batch_size": 2}), tmp_path / "alone")
    assert max(map(abs, one[0]["kl"])) > 1e-3 and len(references(tmp_path / "alone")) == 4
    for name in names:
        halved = {**options, "per_device_train_batch_size": 1}
        if name == "zero3" and "peft_config" not in options:
            halved["ref_model"] = "loaded"
        two = trained(name, partial(run, folder, halved), tmp_path / name)
        assert references(tmp_path / name) == references(tmp_path / "alone")
        assert_same(two, one, ("reward", "kl", "blade/clipped", "ndcg"))


def test_under_zero3_a_policy_is_not_copied(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match="a policy cannot be copied under ZeRO-3; pass ref_model"):
        trained("zero3", partial(run, folder, {"per_device_train_batch_size": 2}), tmp_path / "zero3")
