"""The scripts of `trl-rec`, one per verb."""

import signal
import sys


# While a launched script imports its libraries, Ctrl-C ends it without a traceback. Once the libraries are imported,
# `parsing.run` handles Ctrl-C. Under `python -m`, `sys.argv[0]` is "-m" until Python has found the module to run.
if sys.argv[:1] == ["-m"] and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    signal.signal(signal.SIGINT, signal.SIG_DFL)
