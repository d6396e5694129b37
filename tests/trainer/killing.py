"""Runs that are killed with SIGKILL and started again, some of them while a checkpoint is being written.

Each start is a process forked from a server that has imported the trainers once, so that it costs no import. A trainer's test
hands in `train(output)`: a function of a module, or a `partial` of one, that trains into a folder and resumes from what is
there.
"""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Callable
from multiprocessing import get_context
from multiprocessing.process import BaseProcess
from pathlib import Path

from trl_rec.trainer.checkpoints import MARK


POLL = 0.0005  # seconds; a tiny model's checkpoint takes about fifty times as long to write
NUM_FILES = 12  # of a checkpoint; the optimizer's and the trainer's state come after the tenth
Train = Callable[[Path], None]


def run_to_the_end(train: Train, output: Path) -> None:
    """`train(output)` in a process of its own."""
    process = start(train, output)
    process.join()
    assert process.exitcode == 0, log_of(output)


def run_and_kill(train: Train, output: Path, *, num_kills: int, most_seconds: float, seed: int = 0) -> list[set[str]]:
    """Starts the run and kills it, `num_kills` times over; a last start runs to its end.

    The moments are drawn. A start first completes one checkpoint or none, so that the run gets on. Every other kill then comes
    as soon as 1 to `NUM_FILES` files of a checkpoint are written; those in between come at any moment of `most_seconds`. A run
    that ends before it is killed fails the test.

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
            lambda before=before, count=count: len(unfinished(output).items() - before.items()) >= count, process, output
        )
        time.sleep(0 if kill % 2 == 0 else draw.uniform(0, most_seconds))
        process.kill()
        process.join()
        assert process.exitcode == -signal.SIGKILL, (
            f"the run ended with {process.exitcode} before it was killed\n{log_of(output)}"
        )
        left.append({path.relative_to(output).parts[0] for path in unfinished(output)})
    run_to_the_end(train, output)
    return left


def start(train: Train, output: Path) -> BaseProcess:
    """The running process, which writes what it says into `OUTPUT.log`."""
    context = get_context("forkserver")
    context.set_forkserver_preload(["tests.trainer.runs"])
    process = context.Process(target=_speak_into_log, args=(train, output))
    process.start()
    return process


def _speak_into_log(train: Train, output: Path) -> None:
    log = os.open(output.with_suffix(".log"), os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(log, 1), os.dup2(log, 2)
    train(output)


def log_of(output: Path) -> str:
    """The end of what the processes said."""
    return output.with_suffix(".log").read_text()[-3000:]


def wait_until(condition: Callable[[], bool], process: BaseProcess, output: Path) -> None:
    """Looks often; fails when the process has ended."""
    while not condition():
        assert process.exitcode is None, f"the run ended with {process.exitcode} before it was killed\n{log_of(output)}"
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
