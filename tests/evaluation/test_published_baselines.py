"""Checks on public data that the baselines reach the metrics stated in `docs/results.md`. The data are not part of the
project, so these tests are skipped on machines without a copy of the data."""

import os
from pathlib import Path

import pytest

from trl_rec.data import prepare
from trl_rec.evaluation.results import evaluate_baselines


ROOT = Path(__file__).parents[2]
CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
BEAUTY = Path(os.environ.get("TRL_REC_DATA") or ROOT.parent / "shared" / "data") / "beauty"
ML_100K = Path(os.environ.get("TRL_REC_ML100K") or CACHE / "trl-rec" / "ml-100k")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("folder", "format_name", "popularity", "transition"),
    [
        pytest.param(BEAUTY, "lcrec", {"recall@10": 0.0115}, {"recall@10": 0.0789, "ndcg@10": 0.0501}, id="beauty"),
        pytest.param(
            ML_100K, "ml-100k", {"recall@10": 0.0859}, {"recall@10": 0.1835, "ndcg@10": 0.1056}, id="ml-100k"
        ),
    ],
)
def test_baselines_reproduce_the_known_figures(folder, format_name, popularity, transition, tmp_path):
    if not folder.is_dir():
        pytest.skip(
            f"no data in {folder}; set TRL_REC_DATA to the folder that contains 'beauty', or TRL_REC_ML100K to the "
            "folder of MovieLens-100k"
        )
    dataset = prepare(folder, tmp_path / "dataset", format=format_name)
    # With item tokens, only the items of a history are excluded, and not other items with the same titles.
    results = evaluate_baselines(dataset.with_surface("item_token"), ks=(10,))
    for name, expected in {"popularity": popularity, "transition": transition}.items():
        for metric, value in expected.items():
            assert results[name].metrics[metric] == pytest.approx(value, abs=0.001), (name, metric)
    assert results["random"].metrics["recall@10"] < results["popularity"].metrics["recall@10"]
