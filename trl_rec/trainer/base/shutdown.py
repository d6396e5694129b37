"""How several processes part on a CPU."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable

import torch.distributed


SECONDS = 1.0


def end_processes(end: Callable[[], object]) -> None:
    """Calls `end`, which destroys the process group, and gives gloo's threads a moment where DeepSpeed keeps the group
    alive.

    Destroying the group would join its threads, but DeepSpeed still holds it. A thread that lets go of the last
    collective's tensors only when Python is shutting down asks for a lock that nobody will give it, and aborts the
    process after all of its work is done (torch 2.13: "terminate called without an active exception"). It can go once
    torch or DeepSpeed joins them.
    """
    gloo = torch.distributed.is_initialized() and "gloo" in torch.distributed.get_backend()
    end()
    if gloo and "deepspeed" in sys.modules:
        time.sleep(SECONDS)
