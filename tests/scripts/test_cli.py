"""Tests the command line: its verbs, recipes, keys and errors."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tests.scripts.child_time import child_seconds
from trl_rec.cli import main
from trl_rec.data import load
from trl_rec.decoding.run_folder import save_recommender
from trl_rec.evaluation import EvaluationConfig
from trl_rec.models import make_model, make_tokenizer
from trl_rec.scripts.align3gr import ScheduleArguments
from trl_rec.scripts.bear import DataArguments
from trl_rec.scripts.evaluate import EvaluateArguments
from trl_rec.scripts.options.parsing import parse
from trl_rec.scripts.options.recipe_files import find_recipe, recipe_names
from trl_rec.scripts.verbs import VERBS
from trl_rec.trainer import BearConfig


def test_help_is_printed_in_half_a_second() -> None:
    start = child_seconds()
    output = subprocess.run(
        [sys.executable, "-m", "trl_rec.cli", "--help"], capture_output=True, text=True, check=True
    ).stdout
    assert child_seconds() - start < 0.5
    assert all(verb in output for verb in VERBS)


def test_the_command_line_overrides_the_recipe() -> None:
    given = ["--config=evaluate/toy", "--ks", "3", "7", "--exclude_history", "false"]
    arguments, config = parse((EvaluateArguments, EvaluationConfig), given, "evaluate")
    assert (config.ks, config.exclude_history, arguments.dataset) == ([3, 7], False, "data/toy")


def test_a_recipe_may_be_a_file(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("dataset: d\noutput_dir: o\n")
    assert find_recipe(str(tmp_path / "mine.yaml")) == tmp_path / "mine.yaml"


def test_prepare_and_evaluate_toy_data(tmp_path: Path, monkeypatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    main(["prepare", "--config", "prepare/toy", "--toy_users", "30"])
    assert "30 users, 200 items" in capsys.readouterr().out
    main(["evaluate", "--config", "evaluate/toy", "--ks", "2", "10"])
    table = capsys.readouterr().out
    assert all(name in table for name in ("random", "popularity", "transition", "ndcg@10", "history excluded"))
    metrics = json.loads((tmp_path / "runs/evaluate-toy/metrics.json").read_text())
    assert (metrics["split"], metrics["ks"], metrics["exclude_history"], metrics["num_users"]) == (
        "test",
        [2, 10],
        True,
        30,
    )
    main(["evaluate", "--config", "evaluate/toy", "--max_users", "7"])
    assert json.loads((tmp_path / "runs/evaluate-toy/metrics.json").read_text())["num_users"] == 7


def test_tokenize_prints_the_card(tmp_path: Path, monkeypatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    main(["prepare", "--config", "prepare/toy", "--toy_users", "30"])
    main(["tokenize", "--config", "tokenize/toy", "--codes", "9"])
    assert "200 items, 3 levels of 9 codes, 27 tokens" in capsys.readouterr().out
    assert load("data/toy").with_surface("semantic_id").catalog.surfaces[0].startswith("<a_")


def test_no_script_hides_a_module_of_the_standard_library() -> None:
    """For a script that is run by its path, Python looks for modules in the folder of the script first."""
    names = {path.stem for path in (Path(__file__).parents[2] / "trl_rec/scripts").glob("*.py")}
    assert names & sys.stdlib_module_names == set()


def test_a_saved_model_is_evaluated_beside_the_baselines(
    tmp_path: Path, monkeypatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    main(["prepare", "--config", "prepare/toy", "--toy_users", "20", "--toy_items", "50"])
    tokenizer = make_tokenizer(load("data/toy").with_surface("item_token").catalog)
    tokenizer.save_pretrained("random")
    make_model(tokenizer, hidden_size=16).save_pretrained("random")
    options = [
        "--dataset",
        "data/toy",
        "--output_dir",
        "out",
        "--surface",
        "item_token",
        "--ks",
        "5",
        "--max_length",
        "64",
    ]
    main(["evaluate", "--model", "random", "--exhaustive", "6", "--recall_at", "20", *options])
    gap = json.loads(Path("out/beam_gap.json").read_text())["model random"]
    # With item tokens, the beam search scores all items, as the exhaustive ranking does.
    assert gap["num_users"] == 6 and gap["gaps"]["ndcg@5"]["difference"] == 0
    results = json.loads(Path("out/metrics.json").read_text())["results"]
    assert all("recall@20" in result["metrics"] for result in results.values())
    assert list(results) == ["random", "popularity", "transition", "model random"]
    assert results["model random"]["metrics"]["invalid"] == results["model random"]["metrics"]["duplicates"] == 0
    output = capsys.readouterr().out
    assert "model random" in output and "recall@20" in output and "PruningRate@5" in output
    main(["evaluate", "--model", "random", "--list_length", "5", "--num_beams", "2", *options])
    metrics = json.loads(Path("out/metrics.json").read_text())["results"]["model random"]["metrics"]
    assert metrics["invalid"] == metrics["duplicates"] == 0 and "ndcg@5" in metrics
    assert not Path("out/beam_gap.json").exists()
    best = ["--list_length", "5", "--rewards", '{"ndcg": 1, "mgu": 2}', "--best_of", "4"]
    main(["evaluate", "--model", "random", *best, *options])
    results = json.loads(Path("out/metrics.json").read_text())["results"]
    rewards = [results[f"model random{which}"]["metrics"]["reward"] for which in ("", ", drawn", ", best of 4")]
    assert rewards[2] > rewards[1] and "reward" in results["transition"]["metrics"]
    with pytest.raises(SystemExit):
        main(["evaluate", "--model", "random", "--best_of", "4", *options])
    assert "set rewards and list_length" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["evaluate", "--model", "random", "--list_length", "5", "--exhaustive", "4", *options])
    assert "this model writes lists, so leave exhaustive out" in capsys.readouterr().err
    catalog = load("data/toy").with_surface("item_token").catalog

    # If the run folder contains the list length, it need not be given on the command line.
    save_recommender("random", catalog, {"prompt": {"list_length": 5}, "num_beams": 1})
    main(["evaluate", "--model", "random", *best[2:], *options])
    again = json.loads(Path("out/metrics.json").read_text())["results"]
    assert again["model random"]["metrics"]["reward"] == rewards[0]
    Path("random/ranker.json").touch()
    with pytest.raises(SystemExit):
        main(["evaluate", "--model", "random", *options[:4]])
    assert "random/ranker.json is damaged and cannot be read" in capsys.readouterr().err


def test_a_run_is_evaluated_as_it_was_trained(tmp_path: Path, monkeypatch, capsys: pytest.CaptureFixture[str]) -> None:
    """The surface, the prompt and the options of ranking come from the run folder. Items and surfaces that differ from
    those of the run are refused."""
    monkeypatch.chdir(tmp_path)
    main(["prepare", "--config", "prepare/toy", "--toy_users", "20", "--toy_items", "50"])
    catalog = load("data/toy").with_surface("item_token").catalog
    tokenizer = make_tokenizer(catalog)
    tokenizer.save_pretrained("run")
    make_model(tokenizer, hidden_size=16).save_pretrained("run")
    ranking = {"max_length": 64, "renormalize": False, "length_penalty": 0.5, "num_beams": 7}
    save_recommender("run", catalog, {"prompt": {"prompt_head": None, "list_length": None}, **ranking})
    main(["evaluate", "--model", "run", "--dataset", "data/toy", "--output_dir", "out"])
    metrics = json.loads(Path("out/metrics.json").read_text())
    assert metrics["settings"].items() >= {**ranking, "surface": "item_token", "list_length": None}.items()
    main(["evaluate", "--model", "run", "--dataset", "data/toy", "--output_dir", "out", "--renormalize", "true"])
    again = json.loads(Path("out/metrics.json").read_text())
    assert again["settings"]["renormalize"] is True and again["settings"]["num_beams"] == 7
    main(
        ["prepare", "--config", "prepare/toy", "--toy_users", "20", "--toy_items", "60", "--output_dir", "data/other"]
    )
    for options, message in (
        (["--dataset", "data/other"], "was trained on items other than those in .*data/other"),
        (
            ["--dataset", "data/toy", "--surface", "title"],
            "was trained on items with the surface 'item_token', not 'title'",
        ),
    ):
        with pytest.raises(SystemExit):
            main(["evaluate", "--model", "run", *options, "--output_dir", "out"])
        assert re.search(message, capsys.readouterr().err)
    with pytest.raises(SystemExit):
        main(["recommend", "--model", "run", "--dataset", "data/other", "--user", "3"])
    assert "was trained on items other than those" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["recommend", "--model", "runs/nothing", "--titles", "x"])
    assert "there is no folder runs/nothing" in capsys.readouterr().err


def test_keys_are_not_abbreviated() -> None:
    with pytest.raises(ValueError, match="--max_user"):
        given = ["--dataset", "d", "--output_dir", "o", "--max_user", "5"]
        parse((EvaluateArguments, EvaluationConfig), given, "evaluate")


def test_mappings_are_json_on_the_command_line() -> None:
    given = [
        "--dataset",
        "d",
        "--tokenize",
        '{"codes": 3}',
        "--stages",
        '{"source": "feedback"}',
        '{"source": "self_play"}',
    ]
    parsed = parse(ScheduleArguments, given, "align3gr")
    assert parsed.tokenize == {"codes": 3} and parsed.stages == [{"source": "feedback"}, {"source": "self_play"}]
    assert parse(ScheduleArguments, ["--dataset", "d", "--tokenize", "none"], "align3gr").tokenize is None
    with pytest.raises(ValueError, match="argument --tokenize: '3' is not a mapping"):
        parse(ScheduleArguments, ["--dataset", "d", "--tokenize", "3"], "align3gr")


@pytest.mark.parametrize(
    ("given", "meant"),
    [("true", True), ("True", True), ("false", None), ("False", None), ("runs/x/checkpoint-3", "runs/x/checkpoint-3")],
)
def test_resume_from_checkpoint_is_true_or_false_or_a_folder(given: str, meant: object) -> None:
    options = [
        "--dataset",
        "d",
        "--output_dir",
        "o",
        "--use_cpu",
        "true",
        "--bf16",
        "false",
        "--resume_from_checkpoint",
        given,
    ]
    assert parse((DataArguments, BearConfig), options, "bear")[1].resume_from_checkpoint == meant


def test_recipes_are_printed(capsys: pytest.CaptureFixture[str]) -> None:
    main(["recipe"])
    assert capsys.readouterr().out.split() == recipe_names()
    main(["recipe", "bear/toy"])
    assert capsys.readouterr().out == find_recipe("bear/toy").read_text()
    with pytest.raises(SystemExit):
        main(["bear", "--config=bear/nothing"])
    assert "'bear/nothing' is neither a file nor a shipped recipe" in capsys.readouterr().err


def test_a_training_verb_is_launched_with_its_options(monkeypatch: pytest.MonkeyPatch) -> None:
    launches = []
    monkeypatch.setattr("accelerate.commands.launch.launch_command", launches.append)
    main(["bear", "--accelerate_config", "zero3", "--num_processes", "4", "--config=bear/toy", "--max_steps", "2"])
    (launched,) = launches
    assert (launched.config_file, launched.num_processes) == (str(find_recipe("accelerate/zero3")), 4)
    assert launched.module and launched.training_script == "trl_rec.scripts.bear"
    assert launched.training_script_args == ["--config", "bear/toy", "--max_steps", "2"]


@pytest.mark.slow
def test_bear_from_recipe_to_recommendation(tmp_path: Path, monkeypatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Trains for two steps in two processes under `accelerate launch`, and then recommends from the run folder."""
    monkeypatch.chdir(tmp_path)
    recipe = {**yaml.safe_load(find_recipe("accelerate/zero2").read_text()), "use_cpu": True, "mixed_precision": "no"}
    Path("zero2.yaml").write_text(yaml.safe_dump(recipe))
    main(["prepare", "--config", "prepare/toy"])
    command = [
        sys.executable,
        "-m",
        "trl_rec.cli",
        "bear",
        "--config",
        "bear/toy",
        "--max_steps",
        "2",
        "--eval_steps",
        "1",
    ]
    steps = [
        "--save_strategy",
        "steps",
        "--save_steps",
        "1",
        "--eval_strategy",
        "steps",
        "--accelerate_config",
        "zero2.yaml",
    ]
    output = subprocess.run([*command, *steps], capture_output=True, text=True, timeout=300)
    assert output.returncode == 0, output.stderr[-2000:]
    assert "BEAR" in output.stdout and "transition" in output.stdout
    written = {path.name for path in Path("runs/bear-toy").iterdir()}
    assert {
        "metrics.json",
        "rankings.parquet",
        "recipe.yaml",
        "environment.json",
        "eval.jsonl",
        "recommender.json",
    } <= written
    assert list(Path("runs/bear-toy").glob("checkpoint-*/rng_state_1.pth")), "the second process has written nothing"
    capsys.readouterr()
    main(["recommend", "--model", "runs/bear-toy", "--dataset", "data/toy", "--user", "3", "--k", "5"])
    output = capsys.readouterr().out
    assert "history, newest first" in output and " 5. " in output and " 6. " not in output


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (
            ["prepare", "--config", "prepare/nothing"],
            "'prepare/nothing' is neither a file nor a shipped recipe; the shipped recipes are align3gr/",
        ),
        (["prepare", "--source", "nowhere", "--output_dir", "x"], "nowhere is not a folder"),
        (["evaluate", "--dataset", "nowhere", "--output_dir", "x"], "not a dataset folder"),
        (
            ["evaluate", "--dataset", "x", "--output_dir", "x", "--list_length", "3"],
            "ks=[1, 5, 10] contains a k above list_length=3",
        ),
        (
            ["evaluate", "--dataset", "x", "--output_dir", "x", "--exhaustive", "3"],
            "every item of the catalogue with the model; set model as well",
        ),
        (["evaluate", "--dataset", "x", "--output_dir", "x", "--bogus", "1"], "not used by the HfArgumentParser"),
    ],
)
def test_an_error_of_the_user_is_one_sentence(argv: list[str], message: str, tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as stop:
        main(argv)
    error = capsys.readouterr().err
    assert stop.value.code == 2 and message in error and "Traceback" not in error
    assert list(tmp_path.iterdir()) == []


def test_an_unknown_key_in_a_recipe_is_an_error(tmp_path: Path, capsys) -> None:
    (tmp_path / "mine.yaml").write_text("dataset: d\noutput_dir: o\nbogus: 1\n")
    with pytest.raises(SystemExit):
        main(["evaluate", "--config", str(tmp_path / "mine.yaml")])
    assert "bogus" in capsys.readouterr().err


def test_an_unknown_verb_is_named(capsys) -> None:
    with pytest.raises(SystemExit, match="there is no verb 'dance'; choose one of prepare, tokenize, bear"):
        main(["dance"])
