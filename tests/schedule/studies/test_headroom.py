"""The ceiling of arms that know items by their ids alone."""

from types import SimpleNamespace

import pyarrow as pa
import pytest
from datasets import Dataset

from trl_rec.schedule.studies.resolution import _reachable


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
