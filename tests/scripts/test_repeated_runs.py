"""Tests the recipe in a run folder. It contains the options that differ from their defaults, except secrets and
options for files of earlier runs, such as `overwrite`. A run that is repeated from this recipe has equal weights.
Also tests recipes that set the number of processes, and the file `environment.json` of a run folder."""

import json
import shutil
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from safetensors.torch import load_file

from trl_rec import BearConfig, load, prepare
from trl_rec.cli import main as command
from trl_rec.scripts import alro, bear, blade, softmax_dpo
from trl_rec.scripts.options.parsing import given
from trl_rec.scripts.options.recipe_files import find_recipe, read_recipe, recipe_names
from trl_rec.scripts.verbs import LAUNCH, TRAINING
from trl_rec.trainer.base.saving.recipe import given_values, write_recipe


TRAINING_RECIPES = [name for name in recipe_names() if name.split("/")[0] in TRAINING]
ON_CPU = ["--use_cpu", "true", "--bf16", "false", "--dtype", "float32", "--report_to", "none"]
QUICK = ["--max_steps", "2", "--disable_tqdm", "true", "--eval_strategy", "no", "--save_strategy", "no"]
QUICK += ["--load_best_model_at_end", "false"]


class Parsed(Exception):
    """Ends a script once its arguments are parsed."""


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("world")
    prepare("toy", folder / "data/toy", toy_users=24, toy_items=60)
    prepare("toy", folder / "data/toy-rated", toy_users=24, toy_items=60, split="leave_last", num_held_out=6)
    return folder


@pytest.fixture(scope="module")
def starts(world: Path) -> Path:
    """Adds a policy for single items, a policy for lists, and preferences to the folder `world`."""
    on = [*ON_CPU, "--final_split", "none", *QUICK]
    lists = ["--dataset", str(world / "data/toy-rated"), "--list_length", "4", "--eval_ks", "4"]
    lists += ["--targets", "last", "--metric_for_best_model", "eval_ndcg@4"]
    bear.main(["--config", "bear/toy", "--dataset", str(world / "data/toy"), "--output_dir", f"{world}/item", *on])
    bear.main(["--config", "bear/toy-lists", "--output_dir", f"{world}/lists", *lists, *on])
    dataset = load(world / "data/toy")
    ids = np.array(dataset.catalog.ids)
    rows = [
        {"history": ids[row["history"]].tolist(), "chosen": ids[row["targets"][0]], "rejected": ids[:3].tolist()}
        for row in dataset.train
        if row["targets"][0] > 2
    ]
    (world / "preferences.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return world


def parsed(verb: str, words: list[str], monkeypatch: pytest.MonkeyPatch) -> tuple[Any, ...]:
    script = import_module(f"trl_rec.scripts.{verb}")
    usual = script.parse

    def stop(*arguments: Any) -> None:
        raise Parsed(usual(*arguments))

    with monkeypatch.context() as patched, pytest.raises(Parsed) as caught:
        patched.setattr(script, "parse", stop)
        script.main(words)
    return caught.value.args[0]


@pytest.mark.parametrize("name", TRAINING_RECIPES)
def test_a_written_recipe_sets_the_same_options(name: str, tmp_path: Path, monkeypatch) -> None:
    """The written recipe alone sets the same options as the shipped recipe together with the command line."""
    verb = name.split("/")[0]
    words = ["--config", name, *ON_CPU, "--learning_rate", "1e-5", "--run_name", "ünicode: yes"]
    *others, config = parsed(verb, words, monkeypatch)
    write_recipe(tmp_path, verb, {**given(words, *others), **config.given})

    *same_others, same_config = parsed(verb, ["--config", str(tmp_path / "recipe.yaml")], monkeypatch)
    assert list(map(vars, same_others)) == list(map(vars, others))
    assert same_config.given == config.given
    assert same_config.to_dict() == config.to_dict()


TOY, RATED = ["--dataset", "data/toy"], ["--dataset", "data/toy-rated"]
SMALL = ["--hidden_size", "16"]
SAMPLING = ["--model_name_or_path", "lists", "--list_length", "4", "--max_prompts", "8", "--eval_ks", "4"]
PREFERRING = ["--preferences", "preferences.jsonl", "--model_name_or_path", "item", "--surface", "item_token", *ON_CPU]


@pytest.mark.parametrize(
    ("verb", "recipe", "extra"),
    [
        ("bear", "bear/toy", [*TOY, *SMALL]),
        ("alro", "alro/toy", [*RATED, *SMALL, "--rating_epochs", "1"]),
        ("blade", "blade/toy", [*RATED, *SAMPLING]),
        ("softmax_dpo", None, [*TOY, *PREFERRING]),
    ],
)
def test_a_run_that_is_repeated_from_its_recipe_has_equal_weights(
    verb: str, recipe: str | None, extra: list[str], starts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(starts)
    script = {"bear": bear, "alro": alro, "blade": blade, "softmax_dpo": softmax_dpo}[verb]
    given_recipe = [] if recipe is None else ["--config", recipe]
    script.main([*given_recipe, "--output_dir", f"{tmp_path}/a", "--seed", "7", *QUICK, *extra])
    script.main(["--config", f"{tmp_path}/a/recipe.yaml", "--output_dir", f"{tmp_path}/b"])

    first, second = (load_file(tmp_path / name / "model.safetensors") for name in "ab")
    assert first.keys() == second.keys()
    for name, tensor in first.items():
        assert tensor.equal(second[name]), name
    results = [json.loads((tmp_path / name / "metrics.json").read_text())["results"] for name in "ab"]
    assert results[0] == results[1]

    # The second recipe differs from the first only in the output folder.
    recipes = [read_recipe(tmp_path / name / "recipe.yaml") for name in "ab"]
    assert [recipe.pop("output_dir") for recipe in recipes] == [f"{tmp_path}/a", f"{tmp_path}/b"]
    assert recipes[0] == recipes[1]
    shipped = {} if recipe is None else yaml.safe_load(find_recipe(recipe).read_text())
    words = {word.removeprefix("--") for word in [*QUICK, *extra] if word.startswith("--")}
    assert recipes[0].keys() <= {*shipped, *words, "seed", "dataset"} and recipes[0]["seed"] == 7


def test_a_written_recipe_contains_neither_secrets_nor_overwrite(tmp_path: Path, monkeypatch) -> None:
    (tmp_path / "mine.yaml").write_text(
        "dataset: data/toy\noutput_dir: out\nhub_token: hf_abc\nenv:\n  HF_TOKEN: hf_abc\n  OMP_NUM_THREADS: '1'\n"
        "  TOKENIZERS_PARALLELISM: 'false'\n"
    )
    monkeypatch.setenv("HF_TOKEN", "")
    monkeypatch.setenv("TOKENIZERS_PARALLELISM", "false")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    words = ["--config", str(tmp_path / "mine.yaml"), "--overwrite", "true", *ON_CPU]
    monkeypatch.setenv(LAUNCH, '{"num_processes": 2}')
    data, model, config = parsed("bear", words, monkeypatch)
    write_recipe(tmp_path, "bear", {**given(words, data, model), **config.given})
    recipe = read_recipe(tmp_path / "recipe.yaml")
    assert recipe == {
        "dataset": "data/toy",
        "num_processes": 2,
        "env": {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"},
        "output_dir": "out",
        "use_cpu": True,
        "bf16": False,
    }
    assert "hf_abc" not in (tmp_path / "recipe.yaml").read_text()


def test_a_configuration_made_in_python_records_the_options_that_were_set(tmp_path: Path) -> None:
    config = BearConfig(str(tmp_path), use_cpu=True, bf16=False, max_length=64, learning_rate=5e-4)
    assert config.given == {
        "output_dir": str(tmp_path),
        "use_cpu": True,
        "bf16": False,
        "max_length": 64,
        "learning_rate": 5e-4,
    }
    assert given_values(config)["max_length"] == 64


def test_a_recipe_sets_the_number_of_processes(tmp_path: Path, monkeypatch, capsys) -> None:
    launches = []
    monkeypatch.setattr("accelerate.commands.launch.launch_command", launches.append)
    recipe = tmp_path / "mine.yaml"
    recipe.write_text("dataset: d\nnum_processes: 3\naccelerate_config: zero2\n")
    command(["bear", "--config", str(recipe)])
    command(["bear", "--config", str(recipe), "--num_processes", "1"])
    command(["bear", "--config", str(recipe), "--num_processes=2"])
    assert [launched.num_processes for launched in launches] == [3, 1, 2]
    assert {launched.config_file for launched in launches} == {str(find_recipe("accelerate/zero2"))}

    # A configuration file for accelerate may have any name.
    own = shutil.copy(find_recipe("accelerate/zero2"), tmp_path / "own.yml")
    for words in (["--accelerate_config", str(own)], [f"--accelerate_config={own}"]):
        command(["bear", "--config", str(recipe), *words])
        assert launches[-1].config_file == str(own)

    for line, message in (
        ("num_processes: three", "num_processes must be a whole number, not 'three'"),
        (
            "accelerate_config: [zero2]",
            "accelerate_config must be a file, or the name of a shipped configuration, not ['zero2']",
        ),
        (
            "accelerate_config: zero1",
            "accelerate_config 'zero1' is neither a file nor a shipped configuration; the shipped ones are cpu, ddp, "
            "fsdp2, zero2, zero3",
        ),
    ):
        recipe.write_text(f"dataset: d\n{line}\n")
        with pytest.raises(SystemExit):
            command(["bear", "--config", str(recipe)])
        assert message in capsys.readouterr().err


def test_the_environment_of_a_run_is_saved(world: Path, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(world)
    bear.main(["--config", "bear/toy", "--output_dir", str(tmp_path / "run"), "--final_split", "none", *QUICK])
    content = json.loads((tmp_path / "run/environment.json").read_text())
    assert content["versions"].keys() >= {"python", "trl", "torch", "transformers"} and content["git"] is None
    assert (content["processes"], content["device"]) == (1, "cpu") and content["threads"] >= 1
    assert content["seconds"] > 0 and content["peak_memory"] > 1e6 and content["peak_device_memory"] is None
