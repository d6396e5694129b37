"""Tests the benchmark `equal_time.py`, which compares training on rows with many targets and training on one row per
target, at equal processor time."""

import json
import sys
from pathlib import Path

import pytest

from tests.conftest import make_model, make_tokenizer
from tests.programs import load_program
from trl_rec import prepare


equal_time = load_program("benchmarks/equal_time.py")


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.* have the same text as an earlier item")
def test_both_arms_measure_the_same_targets_ten_times(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    dataset = prepare("toy", tmp_path / "data", toy_users=40, toy_items=60)
    titles = dataset.catalog.items["title"].to_pylist()
    tokenizer = make_tokenizer(titles)
    tokenizer.save_pretrained(tmp_path / "model")
    make_model(vocab_size=len(tokenizer)).save_pretrained(tmp_path / "model")

    # The learning rate is 0, so both arms measure the loss of the same model.
    changes = ["per_device_train_batch_size=1", "max_length=128", "use_peft=false", "dtype=float32", "use_cpu=true"]
    changes += ["learning_rate=0", "prior=none", "max_test_users=8", "num_beams=2"]
    options = ["--model", str(tmp_path / "model"), "--hours", "0.0008", "--rows", "1"]
    options += ["--targets", "12", "--final_targets", "12"]
    for arm in ("every", "rows"):
        words = ["--arm", arm, "--output", str(tmp_path / "run"), *options, "--set", *changes]
        monkeypatch.setattr(sys, "argv", ["equal_time.py", str(tmp_path / "data"), *words])
        equal_time.main()

    measured = [json.loads((tmp_path / f"run-{arm}/loss.json").read_text()) for arm in ("every", "rows")]
    for one in measured:
        seconds, steps, losses = zip(*one["seconds, steps, loss"], strict=True)
        assert one["targets"] == 12
        assert len(seconds) == 10 and sorted(set(seconds)) == list(seconds) and seconds[-1] >= 0.0008 * 3600
        assert steps[0] >= 1 and sorted(steps) == list(steps)
        assert [*losses, one["final"][1]] == pytest.approx(losses[:1] * 11) and one["final"][0] == 12
    assert measured[0]["seconds, steps, loss"][0][2] == pytest.approx(
        measured[1]["seconds, steps, loss"][0][2], rel=1e-5
    )
    assert (tmp_path / "run-rows/metrics.json").exists()
    table = capsys.readouterr().out.splitlines()[-14:-2]
    assert table[0] == "| time | every: steps | loss | rows: steps | loss |" and table[-1].startswith("| 100% | ")
    assert all(line.count("|") == 6 for line in table)
