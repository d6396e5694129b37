"""Kills runs with SIGKILL, often while a checkpoint is being written, and starts them again.

The test of each trainer provides the "work": a function that `tests.processes` runs in a new process. The work trains,
writes checkpoints to a folder, and resumes from the checkpoints that the folder already contains.
"""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from pathlib import Path

import pytest

from tests.processes import Work, log_of, run_alone, start
from trl_rec.trainer.base.saving.checkpoints import MARK


# The number of kills per run, and the number of training steps per kill.
KILLS = pytest.mark.parametrize("num_kills", [3, pytest.param(20, marks=pytest.mark.long)])
STEPS_PER_KILL = 10
POLL = 0.0005  # seconds; a tiny model's checkpoint takes about fifty times as long to write
# A kill waits for at most this many files of a checkpoint to be written. Every checkpoint has at least this many
# files. The states of the optimizer and the trainer are written last, so a kill can leave a checkpoint without them.
NUM_FILES = 12


def run_and_kill(train: Work, output: Path, *, num_kills: int, most_seconds: float, seed: int = 0) -> list[set[str]]:
    """Starts the run and kills it, `num_kills` times. Then starts it once more, and lets it finish.

    The times of the kills are random. After about half of the starts, the kill waits until a new checkpoint is
    complete, so that the run makes progress. The first, third, fifth ... kill then comes as soon as a random number of
    files of the next checkpoint, from 1 to `NUM_FILES`, are written. The second, fourth, sixth ... kill comes within
    `most_seconds` after the first file of the next checkpoint is written. The test fails if the run ends before it is
    killed.

    Returns:
        For each kill, the names of the checkpoints that were unfinished after it.
    """
    draw, left = random.Random(seed), []
    for kill in range(num_kills):
        before, newest = unfinished(output), newest_complete(output)
        process = start(train, output)
        if draw.random() < 0.5:
            wait_until(lambda newest=newest: newest_complete(output) > newest, process, output)
        count = draw.randint(1, NUM_FILES) if kill % 2 == 0 else 1
        wait_until(
            lambda before=before, count=count: len(unfinished(output).items() - before.items()) >= count,
            process,
            output,
        )
        time.sleep(0 if kill % 2 == 0 else draw.uniform(0, most_seconds))
        process.kill()
        process.join()
        assert process.exitcode == -signal.SIGKILL, (
            f"the run ended with exit code {process.exitcode} before it was killed\n{log_of(output)}"
        )
        left.append({path.relative_to(output).parts[0] for path in unfinished(output)})
    run_alone(train, output)
    return left


def wait_until(condition: Callable[[], bool], process: BaseProcess, output: Path) -> None:
    """Waits until the condition holds, and fails if the process ends before that."""
    while not condition():
        assert process.exitcode is None, (
            f"the run ended with exit code {process.exitcode} before it was killed\n{log_of(output)}"
        )
        time.sleep(POLL)


def newest_complete(output: Path) -> int:
    """Returns the step of the newest complete checkpoint, or -1."""
    return max((int(mark.parent.name.split("-")[1]) for mark in output.glob(f"checkpoint-*/{MARK}")), default=-1)


def unfinished(output: Path) -> dict[Path, int]:
    """Returns the files of the checkpoints that are not marked as complete, and the time at which each file was last
    written."""
    folders = [folder for folder in output.glob("checkpoint-*") if not (folder / MARK).exists()]
    files = [Path(top, name) for folder in folders for top, _, names in os.walk(folder) for name in names]
    return {path: written for path in files if (written := _written(path)) is not None}


def _written(path: Path) -> int | None:
    try:
        return path.stat().st_mtime_ns
    except FileNotFoundError:  # removed since the folder was listed
        return None
