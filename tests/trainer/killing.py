"""Runs that are killed with SIGKILL and started again, some of them while a checkpoint is being written.

A trainer's test hands in work for `tests.processes` that trains into a folder and resumes from what is there.
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
from trl_rec.trainer.base.checkpoints import MARK


# Kills per run, and the steps that leave room for them.
KILLS = pytest.mark.parametrize("num_kills", [3, pytest.param(20, marks=pytest.mark.long)])
STEPS_PER_KILL = 10
POLL = 0.0005  # seconds; a tiny model's checkpoint takes about fifty times as long to write
NUM_FILES = 12  # of a checkpoint; the optimizer's and the trainer's state come after the tenth


def run_and_kill(train: Work, output: Path, *, num_kills: int, most_seconds: float, seed: int = 0) -> list[set[str]]:
    """Starts the run and kills it, `num_kills` times over; a last start runs to its end.

    The moments are drawn. A start first completes one checkpoint or none, so that the run gets on. Every other kill
    then comes as soon as 1 to `NUM_FILES` files of a checkpoint are written; those in between come at any moment of
    `most_seconds`. A run that ends before it is killed fails the test.

    Returns:
        For each kill, the checkpoints that it left unfinished.
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
            f"the run ended with {process.exitcode} before it was killed\n{log_of(output)}"
        )
        left.append({path.relative_to(output).parts[0] for path in unfinished(output)})
    run_alone(train, output)
    return left


def wait_until(condition: Callable[[], bool], process: BaseProcess, output: Path) -> None:
    """Looks often; fails when the process has ended."""
    while not condition():
        assert process.exitcode is None, (
            f"the run ended with {process.exitcode} before it was killed\n{log_of(output)}"
        )
        time.sleep(POLL)


def newest_complete(output: Path) -> int:
    """Step of the newest complete checkpoint, or -1."""
    return max((int(mark.parent.name.split("-")[1]) for mark in output.glob(f"checkpoint-*/{MARK}")), default=-1)


def unfinished(output: Path) -> dict[Path, int]:
    """The files of checkpoints without the mark, with the time at which each was last written."""
    folders = [folder for folder in output.glob("checkpoint-*") if not (folder / MARK).exists()]
    files = [Path(top, name) for folder in folders for top, _, names in os.walk(folder) for name in names]
    return {path: written for path in files if (written := _written(path)) is not None}


def _written(path: Path) -> int | None:
    try:
        return path.stat().st_mtime_ns
    except FileNotFoundError:  # removed in this instant
        return None
