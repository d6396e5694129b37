"""Runs verbs (subcommands of `trl-rec`) in separate processes, at most one process per run folder.

A study starts these processes. If the study is killed, they may keep running. Each process holds the lock of its run.
When the study is called again, it therefore waits for such a process, instead of starting a second one in the same
folder.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Protocol

from trl_rec.files import resolved


if sys.platform != "win32":
    import fcntl


class Process(Protocol):
    """A process that was started, such as `subprocess.Popen`."""

    def poll(self) -> int | None:
        """Returns the exit status, or None while the process runs."""

    def terminate(self) -> None:
        """Asks the process to end."""

    def wait(self) -> int:
        """Waits until the process has ended, and returns the exit status."""


# Starts a process of `trl-rec`. The arguments are the words after `trl-rec`, the file for the output of the process,
# the descriptor of the lock that the process inherits (None on Windows), and the number of threads.
Launch = Callable[[Sequence[str], Path, int | None, int], Process]


def launch(words: Sequence[str], log: Path, lock: int | None, threads: int) -> Process:
    """Starts `trl-rec WORDS` in a new interpreter. The output is appended to `log`."""
    with log.open("a", encoding="utf-8") as output:
        return subprocess.Popen(
            [sys.executable, "-m", "trl_rec.cli", *words],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env={**os.environ, **thread_variables(threads)},
            pass_fds=() if lock is None else (lock,),
        )


def thread_variables(threads: int) -> Mapping[str, str]:
    """Returns environment variables that limit the threads of numerical libraries, and disable tokenizer threads."""
    names = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
    return {**dict.fromkeys(names, str(threads)), "TOKENIZERS_PARALLELISM": "false"}


class Busy(Exception):
    """Raised if a process from an interrupted call of the study is still working on a run."""


class Lock:
    """Locks a run. The process of the run inherits the lock. Raises [`Busy`] if an earlier process still holds the
    lock.

    Args:
        run (`Path`): The run folder. The lock is on a hidden file beside this folder.

    Attributes:
        descriptor (`int`, *optional*): The file descriptor that a process has to inherit. None after [`release`], and
            on Windows, which has no such locks.
    """

    def __init__(self, run: Path) -> None:
        self.descriptor: int | None = None
        if sys.platform == "win32":
            return
        run = resolved(run)
        run.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(run.with_name(f".{run.name}.run"), os.O_RDWR | os.O_CREAT, 0o666)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            os.close(descriptor)
            raise Busy(str(run)) from error
        self.descriptor = descriptor

    def release(self) -> None:
        """Closes the descriptor. The lock is released once every process that inherited it has ended."""
        if self.descriptor is not None:
            os.close(self.descriptor)
            self.descriptor = None


def last_lines(log: Path, count: int = 3) -> str:
    """Returns the last non-empty lines of a log, joined by ` | `, or a remark if there are none."""
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines() if log.is_file() else []
    return " | ".join([line.strip() for line in lines if line.strip()][-count:]) or "it printed nothing"
