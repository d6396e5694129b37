"""How a verb ends that is told to stop, by Ctrl-C (SIGINT), `kill` (SIGTERM) or a closed terminal (SIGHUP).

The work ends in one line that says how to continue, and with the exit status that shells use, 128 + the signal.
Contexts are left as after an error, so nothing is half-written and locks are released. Standard library only.
"""

from __future__ import annotations

import hashlib
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import NoReturn


SIGNALS = [number for name in ("SIGINT", "SIGTERM", "SIGHUP") if (number := getattr(signal, name, None)) is not None]
SAID = "TRL_REC_SAID"  # a file that a launched process makes once it has printed the line, so that one process does
SECONDS = 2.0  # a signal that follows so soon is the same one, sent to the whole terminal and forwarded as well
REMEDIES = {
    "align3gr": "the same command continues where it stopped",
    "prepare": "nothing was written; run the same command again",
    "tokenize": "run the same command again; finished vectors are reused",
}
TRAINING_REMEDY = "the same command with --resume_from_checkpoint true continues from the newest checkpoint"

Handler = Callable[[int, FrameType | None], object]


class Interrupted(KeyboardInterrupt):
    """Raised in the main thread when a signal asks the process to stop.

    Args:
        number (`int`): The signal.
    """

    def __init__(self, number: int) -> None:
        super().__init__()
        self.number = number


class Interrupts:
    """Turns signals into one [`Interrupted`]. A second signal, some time later, ends the process at once."""

    def __init__(self) -> None:
        self.number: int | None = None
        self._process = os.getpid()
        self._time = 0.0

    def __call__(self, number: int, frame: FrameType | None) -> None:
        """The handler."""
        if os.getpid() != self._process:  # a forked worker ends as if there were no handler
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
        elif self.number is None:
            self.number = number
            self._time = time.monotonic()
            raise Interrupted(number)
        elif time.monotonic() - self._time > SECONDS:
            os._exit(128 + number)


@contextmanager
def handling(handler: Handler) -> Iterator[None]:
    """Inside the block, the signals call `handler`, except those that the process was started to ignore (`nohup`)."""
    numbers = [number for number in SIGNALS if signal.getsignal(number) != signal.SIG_IGN]
    if threading.current_thread() is not threading.main_thread():
        numbers = []  # only the main thread may set handlers
    before = {number: signal.signal(number, handler) for number in numbers}
    try:
        yield
    finally:
        for number, old in before.items():
            signal.signal(number, old)


def say_once(line: str) -> None:
    """Prints a line on stderr, unless another of the launched processes has printed the same one."""
    if SAID in os.environ:
        digest = hashlib.sha256(line.encode(errors="replace")).hexdigest()
        try:
            Path(f"{os.environ[SAID]}-{digest}").touch(exist_ok=False)
        except FileExistsError:
            return
        except OSError:  # no folder to note it in, or a full disk
            pass
    print(line, file=sys.stderr)


def end(verb: str, number: int, message: str = "", *, training: bool) -> NoReturn:
    """Ends the process after a signal, with one line.

    Args:
        verb: The verb.
        number: The signal.
        message: What to print. By default, how to go on in general.
        training: Whether the verb trains a model.
    """
    if os.environ.get("RANK", "0") == "0":  # other processes would say the same
        remedy = REMEDIES.get(verb, TRAINING_REMEDY if training else "run the same command again")
        print(f"\ntrl-rec {verb}: {message or f'interrupted; {remedy}'}", file=sys.stderr)
        if SAID in os.environ:
            Path(os.environ[SAID]).touch()

    # A process of several would wait at its end for processes that are gone already.
    if os.environ.get("WORLD_SIZE", "1") != "1":
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(128 + number)
    sys.exit(128 + number)
