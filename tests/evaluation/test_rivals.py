"""Tests the benchmark that measures RecTools' SASRec: the log that the model is trained on, and how its lists are
measured.

The tests do not need RecTools, because another model replaces SASRec.
"""

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest

from tests.programs import load_program
from trl_rec import RecDataset, prepare
from trl_rec.evaluation import evaluate_baselines, evaluate_split, read_lists


rivals = load_program("benchmarks/rivals.py")


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> RecDataset:
    return prepare("toy", tmp_path_factory.mktemp("data") / "toy", toy_users=20, toy_items=60)


def items_of(log: pd.DataFrame, user_id: str) -> list[str]:
    lines = log[log["user_id"] == user_id]
    assert lines["datetime"].is_monotonic_increasing and lines["datetime"].is_unique
    return lines["item_id"].tolist()


@pytest.mark.parametrize("split", ["validation", "test"])
def test_histories_and_targets_are_those_of_the_dataset(dataset: RecDataset, split: str) -> None:
    log = rivals.read_log(dataset.path)
    histories = log[log["held_out"].isin(["train"] if split == "validation" else ["train", "validation"])]
    targets = log[log["held_out"] == split]
    ids = dataset.catalog.ids
    for row in dataset.validation if split == "validation" else dataset.test:
        user_id = dataset.users["user_id"][row["user"]].as_py()
        assert items_of(histories, user_id) == [ids[item] for item in row["history"]]
        assert items_of(targets, user_id) == [ids[item] for item in row["targets"]]
    assert len(targets) == 20


class Popular:
    """Replaces SASRec with a model that recommends the most popular items. It does not know the items of the first
    user."""

    def __init__(self, log: pd.DataFrame) -> None:
        self.first = log["user_id"].iloc[0]
        known = set(log["item_id"]) - set(log.loc[log["user_id"] == self.first, "item_id"])
        self.data_preparator = SimpleNamespace(get_known_item_ids=lambda: known)

    def recommend(self, users: np.ndarray, dataset: pd.DataFrame, k: int, filter_viewed: bool) -> pd.DataFrame:
        assert filter_viewed and self.first not in users
        return rivals.popular(dataset, pd.Series(users), k).assign(more=0)


def test_lists_are_written_and_measured(
    dataset: RecDataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    commands: list[list[str]] = []
    monkeypatch.setattr(rivals, "fit", lambda log, **options: Popular(log))
    monkeypatch.setattr(rivals, "make_dataset", lambda histories: histories)
    monkeypatch.setattr(rivals.subprocess, "run", lambda words, check: commands.append(words))
    output = tmp_path / "out"
    monkeypatch.setattr(sys, "argv", ["rivals.py", str(dataset.path), str(output), "--against", "runs/a"])
    rivals.main()
    assert "users without an item that the model knows: 1;" in capsys.readouterr().out
    assert [words[1] for words in commands] == ["evaluate", "compare"]
    assert commands[1][2:] == [str(output), "--against", "runs/a"]

    # Every list contains the most popular items that the user has not chosen. `Popular` counts the training and the
    # validation items. The baseline `popularity` counts only training items, so its lists differ slightly.
    path = Path(commands[0][commands[0].index("--lists") + 1])
    evaluation = evaluate_split(read_lists(path, dataset), dataset)
    lists, log = pd.read_parquet(path), rivals.read_log(dataset.path)
    ndcg = rivals.ndcg_at_10(lists, log[log["held_out"] == "test"])
    assert ndcg == pytest.approx(evaluation.metrics["ndcg@10"])
    assert evaluation.metrics["popularity@10"] == pytest.approx(
        evaluate_baselines(dataset)["popularity"].metrics["popularity@10"], rel=0.05
    )


def test_the_benchmark_refuses_what_it_cannot_run(
    dataset: RecDataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "rectools.models", None)
    options: dict[str, Any] = {"seed": 0, "settings": {}, "every": 1, "patience": 1, "max_epochs": 1}
    with pytest.raises(SystemExit, match="RecTools is not installed; on Python 3.13, run pip install"):
        rivals.fit(rivals.read_log(dataset.path), **options)
    with pytest.raises(SystemExit, match="with --max_epochs 3 and --every 5, training ends before the first"):
        rivals.fit(rivals.read_log(dataset.path), **{**options, "every": 5, "max_epochs": 3})
    other = prepare("toy", tmp_path / "toy", toy_users=20, toy_items=60, split="time")
    with pytest.raises(SystemExit, match="has the split 'time'; prepare the data with the split 'leave_one_out'"):
        rivals.read_log(other.path)
    assert rivals.read_setting("n_factors=64") == ("n_factors", 64)
    assert rivals.read_setting("loss=gBCE") == ("loss", "gBCE")
