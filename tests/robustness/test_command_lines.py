"""Tests that `trl-rec prepare` refuses malformed command lines."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.robustness.attacks import Attack, assert_refused, each


COMMAND_LINES = [
    Attack("unknown key", "--nonsense", words=["--nonsense", "1"]),
    Attack(
        "unknown recipe", "'prepare/moon' is neither a file nor a shipped recipe", words=["--config", "prepare/moon"]
    ),
    Attack("recipe is a folder", "'.' is neither a file nor a shipped recipe", words=["--config", "."]),
    Attack("no recipe", "--config needs a value", words=["--config"]),
    Attack("no recipe, with =", "'' is neither a file nor a shipped recipe", words=["--config="]),
    Attack("key without value", "argument --seed: expected one argument", words=["--seed"]),
    Attack("word for a number", "argument --seed: invalid int value: 'x'", words=["--seed", "x"]),
    Attack("fraction", "argument --toy_users/--toy-users: invalid int value: '1.5'", words=["--toy_users", "1.5"]),
    Attack("negative seed", "seed must be from 0 to 4294967295, not -1", words=["--seed=-1"]),
    Attack("negative minimum", "min_user_interactions must be at least 0", words=["--min_user_interactions=-5"]),
    Attack("no users", "toy_users must be at least 1, not 0", words=["--toy_users", "0"]),
    Attack("huge number", "toy_items must be at most 2147483647", words=["--toy_items", "9" * 400]),
    Attack("nothing held out", "num_held_out must be at least 1, not 0", words=["--num_held_out", "0"]),
    Attack("word for a flag", "argument --overwrite", words=["--overwrite", "perhaps"]),
    Attack("mapping that is no JSON", "is not a mapping; write it as JSON", words=["--columns", "{user_id: x}"]),
    Attack("list for a mapping", "is not a mapping; write it as JSON", words=["--columns", "[1]"]),
    Attack("deep JSON", "is not a mapping; write it as JSON", words=["--columns", "[" * 20000]),
    Attack("word without key", "stray", words=["stray"]),
    Attack("abbreviated key", "--toy_user", words=["--toy_user", "5"]),
]


@each(COMMAND_LINES)
def test_a_malformed_command_line_is_refused(
    attack: Attack, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--source", "toy", "--output_dir", "data/toy"]
    assert_refused(attack, "prepare", words, tmp_path, capsys)
