"""Runs the `main` function of a verb (a subcommand of `trl-rec`).

After a user error or an interrupt, one line is printed instead of a traceback. This module imports no library that
takes long to import, so that verbs with little work stay fast.
"""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable

from trl_rec.printing import printable_lines
from trl_rec.scripts.interrupts import Interrupts, end, handling, say_once
from trl_rec.scripts.verbs import TRAINING


def run(verb: str, main: Callable[[list[str]], None], argv: list[str]) -> None:
    """Runs the `main` function of a verb.

    If the function raises a `ValueError` or `OSError`, only the message is printed, and the exit status is 2. If it is
    interrupted, one line is printed (see [`end`]).
    """
    interrupts = Interrupts()
    try:
        with handling(interrupts), interrupts.raised_again():
            main(argv)
    except (Exception, KeyboardInterrupt) as error:
        is_interrupt = isinstance(error, KeyboardInterrupt)
        if is_interrupt or interrupts.number is not None:
            # A signal may cause other errors, for example in a process whose peers have already exited.
            number = getattr(error, "number", None) or interrupts.number or signal.SIGINT
            end(verb, number, str(error) if is_interrupt else "", training=verb in TRAINING)
        if not isinstance(error, ValueError | OSError):
            raise
        say_once(printable_lines(f"trl-rec {verb}: {error}"))
        sys.exit(2)
