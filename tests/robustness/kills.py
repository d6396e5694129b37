"""Kills a process with SIGKILL just before a chosen system call that changes files.

Unlike a kill after a fixed delay, this kill always comes at the chosen call, however fast the machine is. The process
runs a function, called the work, as in `tests.processes`. Each system call listed in `CALLS` is a step of the work.
"""

from __future__ import annotations

import os
import random
import signal
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

from tests.processes import Work, log_of, run_alone, start


CALLS = ("rename", "replace", "unlink", "rmdir", "mkdir", "fsync")


def count_steps(work: Work, output: Path) -> int:
    """Runs the work in a new process to its end, and returns how often it made a system call in `CALLS`."""
    run_alone(partial(_run_counted, work, None), output)
    return int(output.with_suffix(".steps").read_text())


def kill_at(work: Work, output: Path, step: int) -> None:
    """Runs the work, and kills it before the system call that `count_steps` counts as number `step`."""
    process = start(partial(_run_counted, work, step), output)
    process.join()
    assert process.exitcode == -signal.SIGKILL, f"exit code {process.exitcode}\n{log_of(output)}"


def draw_steps(num_steps: int, num_kills: int, seed: int = 0) -> Iterator[int]:
    """Divides the steps of the work into `num_kills` equal parts, and draws one step from each part."""
    draw = random.Random(seed)
    bounds = [1 + num_steps * place // num_kills for place in range(num_kills + 1)]
    return (draw.randrange(low, high) for low, high in zip(bounds, bounds[1:], strict=False) if low < high)


def _run_counted(work: Work, fatal: int | None, output: Path) -> None:
    step = 0

    def counted(call: Any) -> Any:
        def wrapper(*arguments: Any, **options: Any) -> Any:
            nonlocal step
            step += 1
            if step == fatal:
                os.kill(os.getpid(), signal.SIGKILL)
            return call(*arguments, **options)

        return wrapper

    for name in CALLS:
        setattr(os, name, counted(getattr(os, name)))
    work(output)
    output.with_suffix(".steps").write_text(str(step))
