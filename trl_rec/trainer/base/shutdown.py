"""Works around a crash of gloo under DeepSpeed when the interpreter exits."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable

import torch.distributed


SECONDS = 1.0


def end_processes(end: Callable[[], object]) -> None:
    """Calls `end`, which destroys the process group, and then gives gloo's threads a moment if DeepSpeed is loaded.

    Destroying the group should join its threads, but DeepSpeed keeps a reference to it. A thread that releases the
    tensors of the last collective only while Python shuts down waits for a lock that nobody will release, and aborts
    the process after all work is done (torch 2.13: "terminate called without an active exception"). This can go
    once torch or DeepSpeed joins those threads.
    """
    uses_gloo = torch.distributed.is_initialized() and "gloo" in torch.distributed.get_backend()
    end()
    if uses_gloo and "deepspeed" in sys.modules:
        time.sleep(SECONDS)
