"""What a study can detect, and the ceiling of arms that know items by their ids alone."""

from pathlib import Path
from types import SimpleNamespace

import pyarrow as pa
import pytest
from datasets import Dataset

from trl_rec import evaluate_baselines, prepare
from trl_rec.evaluation import smallest_difference
from trl_rec.schedule.studies.arms import Arm
from trl_rec.schedule.studies.resolution import _reachable, resolution


ITEMS = pa.list_(pa.int32())


def split(rows: list[tuple[list[int], list[int]]]) -> Dataset:
    histories, targets = zip(*rows, strict=True)
    return Dataset(pa.table({"history": pa.array(histories, ITEMS), "targets": pa.array(targets, ITEMS)}))


@pytest.mark.parametrize(("exclude_history", "share"), [(True, 0.5), (False, 0.75)])
def test_reachable_targets_occur_in_training_and_may_be_recommended(exclude_history: bool, share: float) -> None:
    rows = [
        ([0], [1]),  # occurs in training
        ([0], [4]),  # does not
        ([1], [1]),  # is in the history
        ([0, 2], [0, 4, 3, 3]),  # one of several targets is reachable
    ]
    dataset = SimpleNamespace(catalog=range(5), train=split([([0], [1, 2]), ([3], [1])]), validation=split(rows))
    assert _reachable(dataset, exclude_history) == share


def test_the_pilot_is_two_baselines_on_validation_whatever_split_the_study_names(tmp_path: Path) -> None:
    dataset = prepare("toy", tmp_path / "toy", toy_users=30, toy_items=60).with_surface("item_token")
    found = resolution(
        dataset,
        Arm("counter", baseline="transition"),
        "ndcg@5",
        num_candidates=10,
        evaluation={"split": "test", "ks": [5], "batch_size": 8},
    )
    pilot = evaluate_baselines(dataset, split="validation", ks=[5])
    runs = ([pilot[name].per_user] for name in ("transition", "popularity"))
    assert found.smallest == pytest.approx(smallest_difference(*runs, metric="ndcg@5", num_users=len(dataset.test)))
    assert found.reference == pilot["transition"].metrics["ndcg@5"]
