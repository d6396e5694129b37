"""Measures the steps of a trainer on a device: seconds, peak memory, and how often the host waits for the device."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from statistics import median
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile
from transformers import Trainer, TrainerCallback


GB = 10**9
# The profiler's names of calls in which the host waits for the device. cudaDeviceSynchronize is missing, because the
# profiler itself calls it.
WAITS = ("cudaStreamSynchronize", "cudaEventSynchronize")
READS = ("aten::_local_scalar_dense",)  # a number that the host reads, such as by `tensor.item()`


class Clock(TrainerCallback):
    """Callback that records the seconds of each step.

    Args:
        device (`torch.device`): The device.
        profiled (`bool`): Whether the last step is profiled, to count how often the host reads a number from the
            device and waits for the device. The seconds of this step are left out, because the profiler slows it
            down.
    """

    def __init__(self, device: torch.device, *, profiled: bool) -> None:
        self.device = device
        self.profiled = profiled
        self.seconds: list[float] = []
        self.counts: dict[str, int | None] = {}
        self._profile: profile | None = None

    def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Starts the clock, or the profiler."""
        synchronize(self.device)
        if self.profiled and state.global_step == args.max_steps - 1:
            cuda = [ProfilerActivity.CUDA] if self.device.type == "cuda" else []
            self._profile = profile(activities=[ProfilerActivity.CPU, *cuda])
            self._profile.start()
        self._start = time.perf_counter()

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Stops the clock, or the profiler."""
        if self._profile is None:
            synchronize(self.device)
            self.seconds.append(time.perf_counter() - self._start)
            return
        self._profile.stop()
        events = {event.key: event.count for event in self._profile.key_averages()}
        self.counts = {
            "reads": sum(events.get(name, 0) for name in READS),
            "waits": sum(events.get(name, 0) for name in WAITS) if self.device.type == "cuda" else None,
        }
        self._profile = None

    def figures(self) -> dict[str, Any]:
        """Returns the median seconds of the steps after the first one, the peak memory so far, and the counts of reads
        and waits."""
        return {
            "seconds": median(self.seconds[1:]),
            "peak_bytes": peak_bytes(self.device),
            **self.counts,
        }


@contextmanager
def clocks(make: Callable[[], Clock]) -> Iterator[list[Clock]]:
    """Adds a clock to every trainer that trains within this context, and yields the list of these clocks."""
    train = Trainer.train
    made: list[Clock] = []

    def watched(self: Trainer, *arguments: Any, **options: Any) -> Any:
        made.append(make())
        self.add_callback(made[-1])
        return train(self, *arguments, **options)

    Trainer.train = watched
    try:
        yield made
    finally:
        Trainer.train = train


def synchronize(device: torch.device) -> None:
    """Waits for the device."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def peak_bytes(device: torch.device) -> int | None:
    """Returns the largest number of bytes of GPU memory that torch has reserved since [`start_afresh`].

    Returns None on a CPU.
    """
    return torch.cuda.max_memory_reserved(device) if device.type == "cuda" else None


def start_afresh(device: torch.device, cap: int | None = None) -> None:
    """Frees unused memory, and resets the peak memory. From now on, torch may reserve at most `cap` * 10**9 bytes of
    GPU memory, or all of it if `cap` is None.

    `cap` is the nominal size, in GB, of the card that is imitated. A card of 16 GB has about 16 * 2**30 bytes; the
    difference from 16 * 10**9 is left for the CUDA context.
    """
    gc.collect()
    if device.type != "cuda":
        return
    torch.cuda.empty_cache()
    total = torch.cuda.get_device_properties(device).total_memory
    torch.cuda.set_per_process_memory_fraction(1.0 if cap is None else min(1.0, cap * GB / total), device)
    torch.cuda.reset_peak_memory_stats(device)
