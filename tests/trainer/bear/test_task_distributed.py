"""Tests training on several tasks with two processes. With the same global batch size, two processes give the same
results as one, even if their rows in a step belong to different tasks."""

from functools import partial
from pathlib import Path

import pytest

from tests.trainer.bear.task_runs import make_folder, run
from tests.trainer.runs import assert_same, trained


pytestmark = pytest.mark.slow
BY_LENGTH = {"train_sampling_strategy": "batch_rebalance", "gradient_accumulation_steps": 2}


@pytest.mark.parametrize(
    ("name", "options"),
    [("ddp", {}), *(pytest.param(*case, marks=pytest.mark.long) for case in (("ddp", BY_LENGTH), ("zero3", {})))],
    ids=["ddp", "by length", "zero3"],
)
def test_two_processes_equal_one(name: str, options: dict[str, object], tmp_path: Path) -> None:
    make_folder(tmp_path)
    one = trained("alone", partial(run, tmp_path, {"per_device_train_batch_size": 4, **options}), tmp_path / "one")
    two = trained(name, partial(run, tmp_path, {"per_device_train_batch_size": 2, **options}), tmp_path / "two")
    assert_same(two, one, ("losses", "ndcg"))
    assert any(one[0]["tasks"])
    # As in TRL, a logged metric is the mean of the means of the accumulated batches. With `batch_rebalance`, two
    # processes group the rows of a step into different batches than one process does, so the metrics differ a little.
    for ours, theirs in zip(two[0]["tasks"], one[0]["tasks"], strict=True):
        assert ours == pytest.approx(theirs, abs=0.1 if options else 1e-4)
