"""Tests the default output folder of a run. It is named after the model and the method, is used only if no folder is
given, and is not overwritten."""

from pathlib import Path

import pytest

from tests.trainer.runs import make_folder
from trl_rec.scripts import bear, blade, softmax_dpo
from trl_rec.scripts.options.parsing import parse
from trl_rec.trainer.base.saving.output import default_output


ON_CPU = ["--use_cpu", "true", "--bf16", "false"]


@pytest.mark.parametrize(
    ("model", "name"),
    [("Qwen/Qwen2.5-0.5B", "Qwen2.5-0.5B"), ("runs/mine/", "mine"), ("a/small.gguf", "small"), (None, "scratch")],
)
def test_the_default_name_consists_of_model_and_method(model: str | None, name: str) -> None:
    assert default_output(model, "BEAR") == f"{name}-BEAR"


def test_the_default_name_is_used_only_if_no_folder_is_given(tmp_path: Path) -> None:
    model = ["--model_name_or_path", "Qwen/Qwen2.5-0.5B"]
    *_, config = parse(bear.KINDS, ["--dataset", "d", *model, *ON_CPU], "bear")
    assert config.output_dir == "Qwen2.5-0.5B-BEAR" and "output_dir" not in config.given
    *_, config = parse(softmax_dpo.KINDS, ["--preferences", "p", *model, *ON_CPU], "softmax_dpo")
    assert config.output_dir == "Qwen2.5-0.5B-Softmax-DPO"
    *_, config = parse(blade.KINDS, ["--dataset", "d", *model, "--output_dir", "mine", *ON_CPU], "blade")
    assert config.output_dir == "mine"
    *_, config = parse(bear.KINDS, ["--config", "bear/toy"], "bear")
    assert config.output_dir == "runs/bear-toy"


def test_an_existing_default_folder_is_not_overwritten(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_folder(tmp_path)
    monkeypatch.chdir(tmp_path)
    words = ["--dataset", "data", "--surface", "semantic_id", "--max_steps", "1", "--max_length", "96", *ON_CPU]
    bear.main([*words, "--final_split", "none", "--hidden_size", "16"])
    assert (tmp_path / "scratch-BEAR" / "model.safetensors").is_file()
    with pytest.raises(ValueError, match="scratch-BEAR contains the work of an earlier run"):
        bear.main([*words, "--final_split", "none", "--hidden_size", "16"])
