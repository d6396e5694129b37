"""The scripts of `trl-rec`, one per verb."""

import signal
import sys


# While a launched script imports its libraries, Ctrl-C ends it without a traceback; then `parsing.run` takes over.
# Python calls a script "-m" until it has found the module.
if sys.argv[:1] == ["-m"] and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    signal.signal(signal.SIGINT, signal.SIG_DFL)
