"""Works around a crash of gloo under DeepSpeed when the interpreter exits."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable

import torch.distributed


SECONDS = 1.0


def end_processes(end: Callable[[], object]) -> None:
    """Calls `end`, which destroys the process group. Then waits for gloo's threads if DeepSpeed is loaded.

    Destroying the group should join its threads, but DeepSpeed keeps a reference to the group, so they keep running.
    A thread that still has to release the tensors of the last collective while Python shuts down needs a lock that it
    never gets. This aborts the process, although all work is done (torch 2.13: "terminate called without an active
    exception"). The wait can go once torch or DeepSpeed joins these threads.
    """
    uses_gloo = torch.distributed.is_initialized() and "gloo" in torch.distributed.get_backend()
    end()
    if uses_gloo and "deepspeed" in sys.modules:
        time.sleep(SECONDS)
