"""Tests `trl-rec VERB --help`. It lists trl_rec's own keys (options) first, in groups and with defaults. The help is
printed quickly, and its lines fit into the terminal."""

import json
import subprocess
import sys

import pytest

from tests.scripts.child_time import child_seconds
from trl_rec.cli import main
from trl_rec.scripts.options.help_pages import KEYS, help_text
from trl_rec.scripts.options.keys import OF_OTHERS, describe_verb
from trl_rec.scripts.verbs import OWN_HELP, TRAINING, VERBS


DESCRIBED = [verb for verb in VERBS if verb not in OWN_HELP]


@pytest.mark.parametrize("verb", DESCRIBED)
def test_the_help_describes_the_keys_that_the_verb_parses(verb: str) -> None:
    kept = json.loads(KEYS.read_text(encoding="utf-8"))
    assert kept[verb] == describe_verb(verb), "keys.json is outdated; run 'python -m trl_rec.scripts.options.keys'"
    assert all(key["help"] for keys in kept[verb].values() for key in keys.values())


@pytest.mark.parametrize("verb", VERBS)
def test_the_help_of_a_verb_is_printed_quickly(verb: str) -> None:
    command = [sys.executable, "-m", "trl_rec.cli", verb, "--help"]
    start = child_seconds()
    output = subprocess.run(command, capture_output=True, text=True, check=True)
    assert child_seconds() - start < 0.5
    assert f"usage: trl-rec {verb}" in output.stdout and output.stderr == ""


@pytest.mark.parametrize("verb", DESCRIBED)
@pytest.mark.parametrize("width", [80, 120])
def test_no_line_is_wider_than_the_terminal(verb: str, width: int, monkeypatch, capsys) -> None:
    monkeypatch.setenv("COLUMNS", str(width))
    main([verb, "--help"])
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= width
    assert max(map(len, lines)) > width - 20, "the text must use the width of the terminal"


def test_own_keys_come_first_with_their_defaults(capsys: pytest.CaptureFixture[str]) -> None:
    main(["bear", "--help"])
    text = " ".join(capsys.readouterr().out.split())
    places = [text.index(f" {title}: --") for title in ("data", "model", "BEAR", "training", "evaluation", "output")]
    assert places == sorted(places)
    assert "dataset folder, made by trl-rec prepare (required)" in text
    assert "cutoffs k of the ranking metrics, as in ndcg@k (default: 1 5 10)" in text
    assert "--chat_template true|false" in text and "(default: false)" in text
    assert "--learning_rate X initial learning rate" in text, "keys that most recipes set are shown"
    assert "--adam_beta1" not in text and "--help_all describes them" in text


@pytest.mark.parametrize("verb", DESCRIBED)
def test_training_verbs_document_the_launcher(verb: str) -> None:
    text = help_text(verb, json.loads(KEYS.read_text())[verb], 80)
    assert ("--num_processes" in text) == ("--accelerate_config" in text) == (verb in TRAINING)


def test_help_all_adds_the_keys_of_trl_and_transformers(capsys: pytest.CaptureFixture[str]) -> None:
    main(["bear", "--help_all"])
    text = capsys.readouterr().out
    assert text.index("--bear_weight") < text.index(f"{OF_OTHERS}:") < text.index("--adam_beta1")
    assert "--packing" in text and text.count("--learning_rate ") == 1


def test_a_script_prints_the_same_help(capsys: pytest.CaptureFixture[str]) -> None:
    from trl_rec.scripts import prepare

    main(["prepare", "--help"])
    of_command = capsys.readouterr().out
    with pytest.raises(SystemExit) as stop:
        prepare.main(["--help"])
    assert stop.value.code in (None, 0) and capsys.readouterr().out == of_command
