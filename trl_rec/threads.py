"""Lets threads that wait for work sleep, so that a process does not slow down on a machine with other work.

By default, the threads of OpenMP spin while they wait for each other. On a busy machine, a thread then spins while
the thread that it waits for has no processor. OpenMP reads its settings when torch is imported, so this module imports
only the standard library.
"""

from __future__ import annotations

import os


# GNU's OpenMP, which PyTorch's wheels contain, reads the first variable. Those of Intel and LLVM read both.
PASSIVE = {"OMP_WAIT_POLICY": "PASSIVE", "KMP_BLOCKTIME": "0"}
# Variables with which a user chooses the number of threads.
NUMBERS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS")


def wait_passively() -> None:
    """Sets the environment variables in `PASSIVE`, unless the user has set them. Call this before importing torch."""
    for name, value in PASSIVE.items():
        os.environ.setdefault(name, value)
