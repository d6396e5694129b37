"""Tests the metric values that a study reports for a baseline that was measured together with a trained model, and for
metrics that have no value for some users."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from trl_rec.schedule.studies import results
from trl_rec.schedule.studies.measuring import Measured


def test_a_baseline_in_a_models_folder_has_no_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a study with an ALRO arm, the measurement of a model also contains the baselines. The training of the model
    must not be listed for the baselines."""
    folder = tmp_path / "test/sft/seed-0"
    monkeypatch.setattr(results, "_training_entry", lambda *_: {"run": "runs/sft", "seconds": 7.0, "validation": 0.5})
    study = SimpleNamespace(folder=tmp_path, config=SimpleNamespace(metrics=["ndcg@10"], primary="ndcg@10"))
    per_user = {0: {"ndcg@10": np.array([0.1, 0.3])}}
    model = results._figures(per_user, Measured({0: folder}, None), {0: (None, "SFT")}, study)
    baseline = results._figures(per_user, Measured({0: folder}, "item mean"), {0: (None, "item mean")}, study)
    assert model["runs"]["0"]["run"] == "runs/sft" and model["validation"] == 0.5
    assert baseline["runs"]["0"] == {"test": "test/sft/seed-0", "row": "item mean"} and baseline["validation"] is None
    assert baseline["figures"]["ndcg@10"]["mean"] == pytest.approx(0.2)


def test_users_without_a_value_are_left_out_of_the_figures(tmp_path: Path) -> None:
    """For example, `preference_accuracy` is NaN for users without a pair of liked and disliked items. A user is left
    out even if the value is missing for one seed only."""
    study = SimpleNamespace(folder=tmp_path, config=SimpleNamespace(metrics=["liked@5"], primary="ndcg@10"))
    folders = {seed: tmp_path / f"test/seed-{seed}" for seed in (0, 1)}
    nan = float("nan")
    per_user = {
        0: {"ndcg@10": np.array([0.5, 0.1, nan]), "liked@5": np.array([nan, 1, 1])},
        1: {"ndcg@10": np.array([0.3, nan, nan]), "liked@5": np.array([1, nan, nan])},
    }
    kept = dict.fromkeys((0, 1), (None, "item mean"))
    figures = results._figures(per_user, Measured(folders, "item mean"), kept, study)["figures"]
    assert figures["ndcg@10"]["by_seed"] == [0.5, 0.3] and figures["ndcg@10"]["num_users"] == 1
    assert figures["ndcg@10"]["mean"] == pytest.approx(0.4) and "liked@5" not in figures
