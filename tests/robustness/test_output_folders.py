"""Verbs that write a folder lose nothing: not by a kill, a full disk or a second writer, nor what is not theirs."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.processes import Work, run_alone
from tests.robustness import folder_runs
from tests.robustness.attacks import contents
from tests.robustness.kills import count_steps, draw_steps, kill_at
from trl_rec.data import load


VERBS = [folder_runs.prepare_again, folder_runs.tokenize_kmeans, folder_runs.tokenize_dual]


@pytest.fixture(scope="module")
def start_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dataset with semantic IDs."""
    folder = tmp_path_factory.mktemp("start") / "data"
    folder_runs.make_start(folder)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("num_kills", [3, pytest.param(20, marks=pytest.mark.long)])
@pytest.mark.parametrize("verb", VERBS, ids=lambda verb: verb.__name__)
def test_a_killed_verb_ends_with_the_same_bytes(
    verb: Work, num_kills: int, start_folder: Path, tmp_path: Path
) -> None:
    # 1. Run it once without a kill.
    whole = tmp_path / "whole" / "data"
    shutil.copytree(start_folder, whole)
    num_steps = count_steps(verb, whole)
    expected = contents(whole)

    # 2. Kill it, and call it again: nothing is lost in between, and nothing is left in the end.
    for step in draw_steps(num_steps, num_kills):
        data = tmp_path / f"killed-{step}" / "data"
        shutil.copytree(start_folder, data)
        kill_at(verb, data, step)
        assert_one_version(data)
        run_alone(verb, data)
        assert contents(data) == expected, f"killed at step {step} of {num_steps}"
        left = {path.name for path in data.parent.iterdir()}
        assert left == {"data", "data.log"}, f"killed at step {step} of {num_steps}"


def assert_one_version(data: Path) -> None:
    """The old or the new version is there, complete; under a hidden name if the kill came between two renames."""
    hidden = list(data.parent.glob(".data.*.old"))
    load(data if data.exists() else hidden[0])
