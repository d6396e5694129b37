"""Contains the scripts of `trl-rec`, one per verb (subcommand)."""

import signal
import sys

from trl_rec.threads import wait_passively


# `trl-rec` starts the script of a training verb with `accelerate launch --module`, which uses `python -m`. Let Ctrl-C
# end such a script without a traceback while it imports its libraries. Once they are imported, `running.run` handles
# Ctrl-C. `sys.argv[0]` is "-m" only under `python -m`, until Python has found the module to run.
if sys.argv[:1] == ["-m"] and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    signal.signal(signal.SIGINT, signal.SIG_DFL)

wait_passively()  # before a script imports torch
