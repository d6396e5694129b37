"""`trl-rec softmax_dpo` trains a model or an adapter that it loads from a folder. It saves the trained weights and the
records of the run in another folder."""

import json
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file

from tests.conftest import make_model as make_family
from tests.trainer.softmax_dpo.preference_runs import TEXT_TOKENIZER, text_rows
from trl_rec.models import building, load_model
from trl_rec.scripts.options.recipe_files import read_recipe
from trl_rec.scripts.softmax_dpo import main


STEPS = ["--max_steps", "2", "--learning_rate", "0.1", "--optim", "sgd", "--logging_steps", "1", "--max_length", "64"]
STEPS += ["--use_cpu", "--bf16", "false", "--report_to", "none", "--disable_tqdm", "true", "--save_strategy", "no"]


@pytest.fixture
def inputs(tmp_path: Path) -> Path:
    """A folder that contains a model, an adapter for this model, and preferences."""
    make_family("llama", vocab_size=len(TEXT_TOKENIZER)).save_pretrained(tmp_path / "model")
    torch.manual_seed(0)
    lora = LoraConfig(r=2, target_modules="all-linear", task_type="CAUSAL_LM", init_lora_weights=False)
    get_peft_model(load_model(tmp_path / "model"), lora).save_pretrained(tmp_path / "adapter")
    for name in ("model", "adapter"):
        TEXT_TOKENIZER.save_pretrained(tmp_path / name)
    text_rows().to_json(tmp_path / "preferences.jsonl")
    return tmp_path


def arguments(inputs: Path, policy: str) -> list[str]:
    places = {"preferences": "preferences.jsonl", "output_dir": "run", "model_name_or_path": policy}
    return [word for name, place in places.items() for word in (f"--{name}", str(inputs / place))] + STEPS


@pytest.mark.parametrize("policy", ["model", "adapter"])
def test_a_policy_is_trained_and_the_run_is_recorded(inputs: Path, policy: str) -> None:
    main(arguments(inputs, policy))
    weights = "adapter_model.safetensors" if policy == "adapter" else "model.safetensors"
    before, after = load_file(inputs / policy / weights), load_file(inputs / "run" / weights)
    assert before.keys() == after.keys() and all(
        not torch.equal(tensor, after[name]) for name, tensor in before.items()
    )
    recipe = read_recipe(inputs / "run" / "recipe.yaml")
    assert (recipe["model_name_or_path"], recipe["max_steps"]) == (str(inputs / policy), 2)
    assert "dataset" not in recipe and recipe["preferences"] == str(inputs / "preferences.jsonl")
    logged = [json.loads(line) for line in (inputs / "run" / "eval.jsonl").read_text().splitlines()]
    assert [entry["step"] for entry in logged if "loss" in entry] == [1, 2]


@pytest.mark.parametrize("trust", [True, False])
def test_trust_remote_code_is_passed_on_only_if_it_is_set(
    inputs: Path, monkeypatch: pytest.MonkeyPatch, trust: bool
) -> None:
    told = []

    class Stop(Exception):
        """Ends the script before the model is loaded."""

    def watch(name: str, **options: object) -> None:
        told.append(options.get("trust_remote_code"))
        raise Stop

    monkeypatch.setattr(building, "load_policy", watch)
    with pytest.raises(Stop):
        main([*arguments(inputs, "model"), "--trust_remote_code", str(trust)])
    assert told == [True if trust else None]
