"""Ends a verb (a subcommand of trl-rec) cleanly on Ctrl-C (SIGINT), `kill` (SIGTERM) or a closed terminal (SIGHUP).

The process prints one line that says how to continue, and exits with the status that shells use, 128 + the signal
number. Context managers exit as they do after an error, so no file is half-written and locks are released. This module
imports only the standard library.
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
# Environment variable that the launcher (the process that starts a training verb under `accelerate launch`) sets to a
# path. After printing a message, [`end`] creates a file at this path, so that the launcher does not print a message of
# its own. Before printing a line, [`say_once`] creates a file whose name is this path and a hash of the line, so that
# only one process prints the line.
SAID = "TRL_REC_SAID"
# A signal within this time after the first one is ignored, because the terminal and the launcher may both send one.
SECONDS = 2.0
# What the user can do after one of these verbs was interrupted. TRAINING_REMEDY is for the other verbs that train a
# model. For all remaining verbs, [`end`] says to run the same command again.
REMEDIES = {
    "align3gr": "the same command continues where it stopped",
    "study": "the same command continues where it stopped",
    "prepare": "nothing was written; run the same command again",
    "evaluate": "the same command continues where it stopped",
    "recommend": "the same command continues where it stopped",
    "tokenize": "run the same command again; finished vectors are reused",
}
TRAINING_REMEDY = "the same command with --resume_from_checkpoint true continues from the newest checkpoint"

Handler = Callable[[int, FrameType | None], object]


class Interrupted(KeyboardInterrupt):
    """Raised in the main thread when a signal asks the process to stop.

    Args:
        number (`int`): Number of the signal.
    """

    def __init__(self, number: int) -> None:
        super().__init__()
        self.number = number


class Interrupts:
    """Signal handler that raises [`Interrupted`] on the first signal.

    Further signals are ignored for `SECONDS`. A signal that arrives later ends the process immediately.
    """

    def __init__(self) -> None:
        self.number: int | None = None
        self._process = os.getpid()
        self._time = 0.0

    def __call__(self, number: int, frame: FrameType | None) -> None:
        """Handles a signal."""
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
    def raised_again(self) -> Iterator[None]:
        """Inside the block, an [`Interrupted`] that Python discards is raised again, so that the process still ends.

        Python discards exceptions that are raised in a finalizer (`__del__`) or in the callback of a weak reference.
        """
        before = sys.unraisablehook

        def repeat(unraisable: sys.UnraisableHookArgs) -> None:
            """Sends the signal of a discarded [`Interrupted`] again. Passes other exceptions to the previous hook."""
            lost = unraisable.exc_value
            if not isinstance(lost, Interrupted):
                before(unraisable)
                return
            # Send the signal a little later, when the finalizer has ended. The signal is then handled as if it were
            # the first one.
            self.number = None
            timer = threading.Timer(0.05, os.kill, (os.getpid(), lost.number))
            timer.daemon = True
            timer.start()

        sys.unraisablehook = repeat
        try:
            yield
        finally:
            sys.unraisablehook = before


@contextmanager
def handling(handler: Handler) -> Iterator[None]:
    """Inside the block, `SIGNALS` call `handler`, except for signals that the process ignores (as under `nohup`)."""
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
    """Prints a line on stderr, unless another launched process has already printed the same line."""
    if SAID in os.environ:
        digest = hashlib.sha256(line.encode(errors="replace")).hexdigest()
        try:
            Path(f"{os.environ[SAID]}-{digest}").touch(exist_ok=False)
        except FileExistsError:
            return
        except OSError:  # the marker file cannot be made, so the line may be printed more than once
            pass
    print(line, file=sys.stderr)


def end(verb: str, number: int, message: str = "", *, training: bool) -> NoReturn:
    """Prints one line and ends the process after a signal.

    Args:
        verb: The verb.
        number: Number of the signal.
        message: The message to print. By default, the message says how to continue.
        training: Whether the verb trains a model.
    """
    if os.environ.get("RANK", "0") == "0":  # the other processes would print the same line
        remedy = REMEDIES.get(verb, TRAINING_REMEDY if training else "run the same command again")
        print(f"\ntrl-rec {verb}: {message or f'interrupted; {remedy}'}", file=sys.stderr)
        if SAID in os.environ:
            Path(os.environ[SAID]).touch()

    # With several processes, a normal exit would wait for peers that have already exited.
    if os.environ.get("WORLD_SIZE", "1") != "1":
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(128 + number)
    sys.exit(128 + number)
