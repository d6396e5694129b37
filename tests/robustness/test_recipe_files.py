"""Tests that invalid recipes are refused: malformed YAML, wrong types, and files that make a careless parser hang or
run code."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.robustness.attacks import Attack, assert_refused, each
from trl_rec.evaluation import EvaluationConfig
from trl_rec.scripts.evaluate import EvaluateArguments
from trl_rec.scripts.options.parsing import parse, parse_section
from trl_rec.scripts.options.recipe_files import checked_values, find_recipe, read_recipe
from trl_rec.semantic_ids import DualIdsConfig
from trl_rec.trainer import BearConfig


GOOD = "dataset: data\noutput_dir: out\n"
LAUGHS = "a: &a [lol, lol, lol, lol, lol, lol, lol, lol, lol]\n" + "".join(
    f"{name}: &{name} [{', '.join([f'*{before}'] * 9)}]\n" for before, name in zip("abcdefgh", "bcdefghi", strict=True)
)


def text(name: str, says: str, content: str | bytes) -> Attack:
    """Returns an attack: a command with a recipe of this content, which must be refused with an error that contains
    `says`."""
    data = content if isinstance(content, bytes) else content.encode()
    return Attack(name, says, lambda folder: (folder / "mine.yaml").write_bytes(data), ["--config", "mine.yaml"])


RECIPES = [
    # YAML
    text("unclosed list", "mine.yaml, line 4, column 1: expected ',' or ']'", GOOD + "ks: [1, 2\n"),
    text("unclosed quote", "mine.yaml, line 2, column 1: found unexpected end of stream", "dataset: 'x\n"),
    text("tab", "mine.yaml, line 2, column 1: found character '\\t'", "dataset:\n\tx: 1\n"),
    text("two colons", "mine.yaml, line 1, column 11: mapping values are not allowed here", "dataset: a: b\n"),
    text("bad indentation", "mine.yaml, line 2", "dataset: a\n  split: test\n"),
    text("unknown alias", "mine.yaml, line 3, column 5: found undefined alias 'x'", GOOD + "ks: *x\n"),
    text("two documents", "mine.yaml, line 3, column 1: but found another document", GOOD + "---\nsplit: test\n"),
    text("directive", "mine.yaml, line 1, column 8: expected a digit", "%YAML 9\n" + GOOD),
    text("null byte", "mine.yaml is not a text file in UTF-8", "dataset: \0\n"),
    text("not UTF-8", "mine.yaml is not a text file in UTF-8", b"dataset: \xff\xfe\n"),
    text("python object", "could not determine a constructor", GOOD + "model: !!python/object/apply:os.system [id]\n"),
    text("python name", "could not determine a constructor", GOOD + "model: !!python/name:os.system\n"),
    text("unknown tag", "could not determine a constructor for the tag '!x'", GOOD + "model: !x y\n"),
    text("billion laughs", "mine.yaml contains more than 10000 values", LAUGHS),
    text("endless alias", "mine.yaml contains more than 10000 values, or an alias", GOOD + "rewards: &r {ndcg: *r}\n"),
    text("deep lists", "mine.yaml is nested too deeply", "dataset: " + "[" * 3000 + "]" * 3000),
    text("deep mappings", "mine.yaml is nested too deeply", "a: " + "{a: " * 3000 + "1" + "}" * 3000),
    text("impossible date", "mine.yaml contains a value that YAML cannot read", GOOD + "model: 2024-13-45\n"),
    text("impossible number", "mine.yaml contains a value that YAML cannot read", GOOD + "seed: !!int x\n"),
    text("unhashable key", "mine.yaml, line 3: a key must be the name of an option", GOOD + "? [a]\n: 1\n"),
    text("number as key", "mine.yaml, line 3: a key must be the name of an option", GOOD + "5: 1\n"),
    text("null as key", "mine.yaml, line 3: a key must be the name of an option", GOOD + "null: 1\n"),
    text("repeated key", "mine.yaml, line 3: the key 'dataset' occurs twice", GOOD + "dataset: other\n"),
    text("empty file", "mine.yaml is not a recipe", ""),
    text("comment only", "mine.yaml is not a recipe", "# nothing\n"),
    text("list", "mine.yaml is not a recipe", "- dataset: a\n"),
    text("scalar", "mine.yaml is not a recipe", "dataset\n"),
    text("binary", "mine.yaml is not a text file in UTF-8", bytes(range(256))),
    # Keys and values
    text("unknown key", "mine.yaml: there is no key 'bogus'", GOOD + "bogus: 1\n"),
    text("list for a text", "mine.yaml: dataset must be a string, not [1]", "dataset: [1]\noutput_dir: out\n"),
    text(
        "mapping for a text", 'mine.yaml: dataset must be a string, not {"a": 1}', "dataset: {a: 1}\noutput_dir: o\n"
    ),
    text("nothing for a text", "mine.yaml: dataset must be a string, not null", "dataset:\noutput_dir: out\n"),
    text("flag for a text", "mine.yaml: split must be a string, not false", GOOD + "split: no\n"),
    text("date for a text", 'mine.yaml: split must be a string, not "2024-01-01"', GOOD + "split: 2024-01-01\n"),
    text("list for a number", "mine.yaml: batch_size must be a whole number, not [16]", GOOD + "batch_size: [16]\n"),
    text("flag for a number", "mine.yaml: batch_size must be a whole number, not true", GOOD + "batch_size: true\n"),
    text("fraction", "mine.yaml: batch_size must be a whole number, not 1.5", GOOD + "batch_size: 1.5\n"),
    text("word for a number", "argument --batch_size/--batch-size: invalid int value", GOOD + "batch_size: many\n"),
    text("nothing for a number", "mine.yaml: seed must be a whole number, not null", GOOD + "seed:\n"),
    text("infinite number", "length_penalty must be a finite number, not inf", GOOD + "length_penalty: .inf\n"),
    text("not a number", "length_penalty must be a finite number, not nan", GOOD + "length_penalty: .nan\n"),
    text("number for a list", "mine.yaml: ks must be a list (each entry a whole number), not 5", GOOD + "ks: 5\n"),
    text(
        "words in a list", 'mine.yaml: ks must be a list (each entry a whole number), not ["5"]', GOOD + "ks: ['5']\n"
    ),
    text("lists in a list", "mine.yaml: ks must be a list (each entry a whole number)", GOOD + "ks: [[5]]\n"),
    text("empty list", "ks is empty", GOOD + "ks: []\n"),
    text(
        "number for a flag", "mine.yaml: exclude_history must be true or false, not 3", GOOD + "exclude_history: 3\n"
    ),
    text("word for a flag", "argument --exclude_history", GOOD + "exclude_history: perhaps\n"),
    text("list for a mapping", "mine.yaml: rewards must be a mapping or empty", GOOD + "rewards: [ndcg]\n"),
    text("keys that are not texts", "mine.yaml: rewards must be a mapping or empty", GOOD + "rewards: {1: 2}\n"),
    text("text in a mapping", "rewards: ndcg must be a number, not 'x'", GOOD + "rewards: {ndcg: x}\n"),
    text(
        "env is not a mapping",
        "mine.yaml: env must be a mapping from names of environment variables",
        GOOD + "env: [a]\n",
    ),
    text("negative number", "batch_size must be at least 1, not -1", GOOD + "batch_size: -1\n"),
    text("no users", "max_users must be at least 1, not 0", GOOD + "max_users: 0\n"),
    text("huge number", "num_beams must be at most 2147483647", GOOD + "num_beams: 99999999999999999999\n"),
]


@each(RECIPES)
def test_a_malformed_recipe_is_refused(attack: Attack, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert_refused(attack, "evaluate", [], tmp_path, capsys)


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8) | st.dates(),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5) | st.integers(), inner, max_size=3)
    ),
    max_leaves=6,
)
KEYS = st.sampled_from([*EvaluationConfig.__dataclass_fields__, "dataset", "output_dir", "config", "bogus"])


def read(path: Path) -> None:
    """Parses a recipe. Any error must be of a type that the verbs print as one sentence."""
    try:
        parse((EvaluateArguments, EvaluationConfig), ["--config", str(path)], "evaluate")
    except (ValueError, OSError) as error:
        assert str(error)


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.dictionaries(KEYS, VALUES, max_size=5))
def test_random_values_give_no_traceback(tmp_path: Path, values: dict[str, Any]) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump({"dataset": "data", "output_dir": "out"} | values), encoding="utf-8")
    read(path)


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.integers(0, 400), st.integers(0, 12), st.text("{}[]&*!|>%@`'\"#:-? \n\tab0", max_size=6))
def test_mutated_recipes_give_no_traceback(tmp_path: Path, start: int, length: int, inserted: str) -> None:
    good = find_recipe("evaluate/toy").read_text(encoding="utf-8")
    path = tmp_path / "mine.yaml"
    path.write_text(good[:start] + inserted + good[start + length :], encoding="utf-8")
    read(path)


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.binary(max_size=60))
def test_random_bytes_give_no_traceback(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "mine.yaml").write_bytes(content)
    read(tmp_path / "mine.yaml")


def test_plain_values_are_read_as_they_are_written(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("dataset: &d 2024\noutput_dir: *d\nseed: 1e0\nbatch_size: '8'\nks: [3]\nrewards: {ndcg: 1}\n")
    values = checked_values((EvaluateArguments, EvaluationConfig), read_recipe(path), path)
    assert values == {
        "dataset": "2024",
        "output_dir": "2024",
        "seed": "1e0",
        "batch_size": "8",
        "ks": [3],
        "rewards": {"ndcg": 1},
    }


@pytest.mark.parametrize("value", [None, 1, "x", [1]])
@pytest.mark.parametrize("key", ["bogus", "max_length", 5])
def test_an_unknown_key_of_a_section_is_refused_even_if_it_is_empty(key: Any, value: Any) -> None:
    with pytest.raises(ValueError, match=f"align3gr: tokenize: there is no key {key!r}; correct the key"):
        parse_section(DualIdsConfig, {"levels": 2, key: value}, "align3gr: tokenize")


def test_an_empty_key_of_a_section_has_its_default(tmp_path: Path) -> None:
    ids = parse_section(DualIdsConfig, {"levels": None, "codes": "8"}, "align3gr: tokenize")
    assert ids == DualIdsConfig(codes=8)
    section = {"output_dir": str(tmp_path), "max_length": None, "use_cpu": True, "bf16": False}
    assert parse_section(BearConfig, section, "align3gr: supervised").max_length is None
