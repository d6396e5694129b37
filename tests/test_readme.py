"""The README's code blocks run: each Python block alone, and the `trl-rec` commands one after another in one folder.

Commands that need a model from the Hugging Face Hub are left out.
"""

from functools import partial
from pathlib import Path

import pytest

from tests.pages import ROOT, Block, blocks, commands, make_log, train
from tests.processes import run_alone
from trl_rec import cli


README = ROOT / "README.md"


@pytest.mark.parametrize("block", [pytest.param(block, id=block.name) for block in blocks(README, "python")])
def test_python_blocks_run(block: Block, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    exec(compile(block.text, block.name, "exec"), {})


@pytest.mark.slow
def test_commands_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    # Without this change, `trl-rec serve` would wait for requests.
    monkeypatch.setattr("trl_rec.serving.server._Server.run", lambda self, sockets: None)
    monkeypatch.setattr(cli, "launch", lambda verb, argv: run_alone(partial(train, verb, argv), tmp_path))
    make_log(tmp_path)
    given = [command for block in blocks(README, "bash") for command in commands(block)]
    given = [words for words in given if not any("office-titles" in word for word in words)]
    assert [words[0] for words in given] == ["prepare", "bear", "recommend", "serve"]
    for command in given:
        cli.main(command)
    told = capsys.readouterr().out
    assert told.count("history, newest first") == 1
