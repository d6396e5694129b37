"""Tests the content of `metrics.json`. The file is written completely or not at all."""

import json
from importlib import metadata

import numpy as np
import pytest

from trl_rec.evaluation.kept.metrics_file import write_metrics
from trl_rec.evaluation.results import Evaluation


SETTINGS = {"split": "test", "ks": (1, 10), "exclude_history": True}
BEAR = Evaluation({"recall@10": 0.18, "num_users": 3}, {"recall@10": (0.1, 0.2)}, {"recall@10": np.zeros(3)})


def test_the_file_contains_results_settings_and_versions(tmp_path):
    path = tmp_path / "run" / "metrics.json"
    write_metrics(path, {"bear": BEAR}, settings={"num_beams": 10}, **SETTINGS)
    content = json.loads(path.read_text(encoding="utf-8"))
    assert content["results"] == {"bear": {"metrics": BEAR.metrics, "intervals": {"recall@10": [0.1, 0.2]}}}
    assert (content["split"], content["ks"], content["exclude_history"], content["num_users"]) == (
        "test",
        [1, 10],
        True,
        3,
    )
    assert content["settings"] == {"num_beams": 10}
    assert content["versions"]["numpy"] == metadata.version("numpy")
    assert {"trl-rec", "trl", "transformers", "torch"} <= set(content["versions"])


@pytest.mark.parametrize(
    ("results", "message"),
    [
        ({"bear": Evaluation({"recall@10": float("nan"), "num_users": 3})}, "recall@10 of bear is nan"),
        (
            {"bear": BEAR, "baseline": Evaluation({"num_users": 4})},
            "their numbers of users differ: bear 3, baseline 4",
        ),
        ({}, "there are no results to write"),
    ],
)
def test_bad_results_are_an_error_and_nothing_is_written(tmp_path, results, message):
    with pytest.raises(ValueError, match=message):
        write_metrics(tmp_path / "run" / "metrics.json", results, **SETTINGS)
    assert list(tmp_path.iterdir()) == []


def test_a_write_that_fails_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "metrics.json"
    write_metrics(path, {"bear": BEAR}, **SETTINGS)
    before = path.read_text()
    monkeypatch.setattr("pathlib.Path.replace", lambda *_: (_ for _ in ()).throw(OSError("killed")))
    with pytest.raises(OSError, match="killed"):
        write_metrics(path, {"other": BEAR}, **SETTINGS)
    assert path.read_text() == before
    assert json.loads(before)["results"].keys() == {"bear"}
