"""The figures of a baseline that was measured in the folder of a trained model."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from trl_rec.schedule.studies import results
from trl_rec.schedule.studies.measuring import Measured


def test_a_baseline_in_a_models_folder_has_no_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With an ALRO arm, the baselines are rows of that arm's measurement. Its training is not theirs."""
    folder = tmp_path / "test/sft/seed-0"
    monkeypatch.setattr(results, "_training_entry", lambda *_: {"run": "runs/sft", "seconds": 7.0, "validation": 0.5})
    study = SimpleNamespace(folder=tmp_path, config=SimpleNamespace(metrics=["ndcg@10"], primary="ndcg@10"))
    per_user = {0: {"ndcg@10": np.array([0.1, 0.3])}}
    model = results._figures(per_user, Measured({0: folder}, None), {0: (None, "SFT")}, study)
    baseline = results._figures(per_user, Measured({0: folder}, "item mean"), {0: (None, "item mean")}, study)
    assert model["runs"]["0"]["run"] == "runs/sft" and model["validation"] == 0.5
    assert baseline["runs"]["0"] == {"test": "test/sft/seed-0", "row": "item mean"} and baseline["validation"] is None
    assert baseline["figures"]["ndcg@10"]["mean"] == pytest.approx(0.2)
