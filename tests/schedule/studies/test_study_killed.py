"""Kills a study with SIGKILL, alone or with the processes of its runs. When the study is started again, it must end
with the same table as a study that was not killed."""

import json
import os
import random
import signal
import time
from functools import partial
from pathlib import Path

import pytest

from tests.processes import log_of, run_alone, start
from tests.schedule.studies.study_runs import make_data, run_study


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a study that was not killed. The data is beside it."""
    folder = tmp_path_factory.mktemp("study")
    make_data(folder / "data")
    run_alone(partial(run_study, folder / "data"), folder / "whole")
    return folder / "whole"


@pytest.mark.slow
@pytest.mark.parametrize("num_kills", [3, pytest.param(10, marks=pytest.mark.long)])
def test_a_killed_study_ends_with_the_same_table(finished: Path, tmp_path: Path, num_kills: int) -> None:
    work, output, draw = partial(run_study, finished.parent / "data"), tmp_path / "killed", random.Random(num_kills)
    for kill in range(num_kills):
        process = start(work, output)
        records = len(list(output.rglob("seed-*.json")))
        deadline = time.monotonic() + 120
        # After every second start, wait until a run is finished, so that the study makes progress.
        while kill % 2 and len(list(output.rglob("seed-*.json"))) == records and process.exitcode is None:
            assert time.monotonic() < deadline, log_of(output)
            time.sleep(0.01)
        time.sleep(draw.uniform(0, 3))
        assert process.exitcode is None, f"the study ended before it was killed\n{log_of(output)}"
        is_alone = draw.random() < 0.5
        os.kill(process.pid, signal.SIGKILL) if is_alone else os.killpg(process.pid, signal.SIGKILL)
        process.join()
    run_alone(work, output)

    assert (output / "table.txt").read_text() == (finished / "table.txt").read_text()
    assert json.loads((output / "choice.json").read_text()) == json.loads((finished / "choice.json").read_text())
    arms = [json.loads((folder / "study.json").read_text())["arms"] for folder in (output, finished)]
    assert [arm["figures"] for arm in arms[0].values()] == [arm["figures"] for arm in arms[1].values()]
