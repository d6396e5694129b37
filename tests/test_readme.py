"""The README's code blocks run: each Python block alone, and the `trl-rec` commands in order in one folder.

Commands that need a model from the hub are left out.
"""

import os
import re
import runpy
import shlex
import sys
from functools import partial
from pathlib import Path

import pytest

from tests.processes import run_alone
from trl_rec import cli


README = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")
LOG = ["user_id,item_id,timestamp"] + [
    f"u{user},i{(user + step) % 10},{step}" for user in range(12) for step in range(8)
]
ITEMS = ["item_id,title"] + [f"i{item},Item number {item}" for item in range(10)]


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, flags=re.DOTALL)


@pytest.mark.parametrize("code", blocks("python"))
def test_python_blocks_run(code: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    exec(compile(code, "README.md", "exec"), {})


def train(verb: str, argv: list[str], output: Path) -> None:
    """Runs a training verb as its launched process would, for four steps."""
    os.chdir(output)
    sys.argv = [verb, *argv, "--max_steps", "4"]
    runpy.run_module(f"trl_rec.scripts.{verb}", run_name="__main__", alter_sys=True)


@pytest.mark.slow
def test_commands_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(cli, "launch", lambda verb, argv: run_alone(partial(train, verb, argv), tmp_path))
    (tmp_path / "my-log").mkdir()
    (tmp_path / "my-log/interactions.csv").write_text("\n".join(LOG) + "\n")
    (tmp_path / "my-log/items.csv").write_text("\n".join(ITEMS) + "\n")
    lines = [line for block in blocks("bash") for line in block.splitlines() if line.startswith("trl-rec")]
    commands = [shlex.split(line)[1:] for line in lines if "HuggingFaceTB" not in line and "office-titles" not in line]
    assert len(commands) >= 14
    for command in commands:
        cli.main(command)
    told = capsys.readouterr().out
    assert "transition" in told and told.count("history, newest first") == 2
