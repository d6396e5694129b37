"""Attacks on the command line and on recipes."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.robustness.attacks import Attack, assert_refused, each


COMMAND_LINES = [
    Attack("unknown key", "--nonsense", words=["--nonsense", "1"]),
    Attack("unknown recipe", "there is no file and no recipe 'prepare/moon'", words=["--config", "prepare/moon"]),
]


@each(COMMAND_LINES)
def test_a_malformed_command_line_is_refused(
    attack: Attack, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--source", "toy", "--output_dir", "data/toy"]
    assert_refused(attack, "prepare", words, tmp_path, capsys)
