"""Makes waiting OpenMP threads sleep instead of spin, so that a process is not slowed down on a busy machine.

By default, the threads of OpenMP spin while they wait for each other. On a busy machine, a spinning thread may occupy
the processor that the awaited thread needs. OpenMP reads its settings when torch is imported, so this module imports
only the standard library.
"""

from __future__ import annotations

import os


# The OpenMP library of GNU, which PyTorch's wheels contain, reads only OMP_WAIT_POLICY. The OpenMP libraries of Intel
# and LLVM read both variables.
PASSIVE = {"OMP_WAIT_POLICY": "PASSIVE", "KMP_BLOCKTIME": "0"}
# Variables with which a user chooses the number of threads.
NUMBERS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS")


def wait_passively() -> None:
    """Sets the environment variables in `PASSIVE`, unless the user has set them. Call this before importing torch."""
    for name, value in PASSIVE.items():
        os.environ.setdefault(name, value)
