"""For a model of `trl-rec alro`, `trl-rec evaluate` gives the same metrics as the trainer."""

from pathlib import Path

import numpy as np
import pytest

from trl_rec import prepare
from trl_rec.evaluation.kept.reading import check_comparable, read_evaluation
from trl_rec.scripts import alro, evaluate


def test_a_saved_ranker_has_the_metrics_that_its_trainer_measured(tmp_path: Path) -> None:
    data, run = tmp_path / "data", tmp_path / "run"
    prepare("toy", data, toy_users=30, toy_items=60, split="leave_last", num_held_out=5)
    options = {"dataset": data, "output_dir": run, "max_steps": 2, "rating_epochs": 0, "eval_num_orders": 3}
    options |= {
        "num_candidates": 4,
        "hidden_size": 16,
        "max_history": 12,
        "eval_strategy": "no",
        "save_strategy": "no",
    }
    options |= {"load_best_model_at_end": False}
    alro.main(["--config", "alro/toy", *(word for key, value in options.items() for word in (f"--{key}", str(value)))])
    words = ["--dataset", str(data), "--model", str(run), "--output_dir", str(tmp_path / "again"), "--num_orders", "3"]
    evaluate.main([*words, "--ks", "1", "3", "5"])

    trained, again = read_evaluation(run), read_evaluation(tmp_path / "again")
    check_comparable(trained, again)
    assert trained.seed == again.seed == 42
    for name, row in (("item mean", "item mean"), (trained.recommender, again.recommender)):
        for metric, values in trained.results[name].per_user.items():
            np.testing.assert_array_equal(values, again.results[row].per_user[metric])

    # Evaluate two rankings per list. Each of them combines the model's rankings for three orders of the candidates.
    evaluate.main([*words[:-3], str(tmp_path / "combined"), "--num_orders", "2", "--combined_orders", "3"])
    combined = read_evaluation(tmp_path / "combined").results[again.recommender]
    assert "slot_bias" not in combined.per_user and "consistency" in combined.per_user
    assert "slot_bias" in again.results[again.recommender].per_user

    for name in ("num_beams", "prior_strength", "surface", "length_penalty", "max_length"):
        with pytest.raises(ValueError, match=f"{name} has no effect on .*, which orders rated candidates"):
            evaluate.main([*words, f"--{name}", "3"])
    with pytest.raises(ValueError, match="renormalize has no effect on .*, which orders rated candidates"):
        evaluate.main([*words, "--renormalize", "false"])
