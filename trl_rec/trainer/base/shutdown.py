"""Works around a crash of gloo under DeepSpeed when the interpreter exits."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable

import torch.distributed


SECONDS = 1.0  # enough for gloo's threads to finish


def end_processes(end: Callable[[], object]) -> None:
    """Calls `end`, which destroys the process group. Then waits for gloo's threads if DeepSpeed is loaded.

    Destroying the group should join its threads. However, DeepSpeed keeps a reference to the group, so the threads
    keep running. A thread needs Python's global interpreter lock to release the tensors of the last collective. When
    Python shuts down, the thread can no longer get the lock, and the process aborts, although all work is done (torch
    2.13: "terminate called without an active exception"). This wait can be removed once torch or DeepSpeed joins these
    threads.
    """
    uses_gloo = torch.distributed.is_initialized() and "gloo" in torch.distributed.get_backend()
    end()
    if uses_gloo and "deepspeed" in sys.modules:
        time.sleep(SECONDS)
