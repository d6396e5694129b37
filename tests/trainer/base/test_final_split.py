"""Tests the option `final_split`: after training, the model is measured on this split, and on no other split."""

import json
from pathlib import Path

import pytest

from trl_rec import BearConfig, prepare
from trl_rec.scripts import bear


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("final-split") / "data"
    prepare("toy", folder, toy_users=24, toy_items=60)
    return folder


@pytest.mark.parametrize("split", ["test", "validation", "none"])
def test_a_run_ends_with_the_split_that_was_asked_for(data: Path, tmp_path: Path, split: str) -> None:
    options = {
        "dataset": data,
        "output_dir": tmp_path / "run",
        "hidden_size": 16,
        "max_steps": 1,
        "final_split": split,
    }
    words = [word for key, value in options.items() for word in (f"--{key}", str(value))]
    bear.main(
        ["--config", "bear/toy", "--eval_strategy", "no", "--save_strategy", "no", "--load_best_model_at_end"]
        + ["false", *words]
    )
    assert (tmp_path / "run" / "model.safetensors").is_file()
    metrics = tmp_path / "run" / "metrics.json"
    assert metrics.is_file() is (split != "none")
    if split != "none":
        written = json.loads(metrics.read_text())
        assert written["split"] == split
        assert all("recall@50" in result["metrics"] for result in written["results"].values())


def test_another_split_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="final_split must be test, validation or none, not 'train'"):
        BearConfig(str(tmp_path), use_cpu=True, bf16=False, final_split="train")
