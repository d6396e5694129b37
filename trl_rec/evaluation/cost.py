"""Estimates how long it takes to rank items for all users of a split, by timing a few users first.

An evaluation makes one or more passes over the users, such as one with 10 beams and one with 50. The time per user
depends on the model, the beams and the device, so it is measured. First, every pass ranks items for one user per
process. If the evaluation seems to take long, batches of growing size are timed for a better estimate. The first
estimate is too high, because a device takes less time for a batch of users than for the same users one by one.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from typing import TypeAlias

import numpy as np
from accelerate import PartialState
from accelerate.utils import broadcast_object_list
from tqdm.auto import tqdm

from trl_rec.printing import in_words


MOST_SECONDS = 15.0  # maximum number of seconds to spend on larger batches, after the first estimate
SHARE = 0.05  # maximum time to spend on larger batches, as a share of the expected time of the evaluation
SHORT = 30.0  # seconds; shorter evaluations are not announced, and not estimated more closely
GROWTH = 4  # ratio of the sizes of successive batches
RankSome: TypeAlias = Callable[[np.ndarray], object]  # takes row numbers, and ranks items for these rows


def seconds_per_user(passes: Sequence[RankSome], lengths: np.ndarray, batch_size: int) -> list[float]:
    """Returns the seconds that each pass takes per user.

    All processes must call this function. It returns the same times on every process.

    Args:
        passes: Functions that rank items for the given rows. Each divides these rows among the processes.
        lengths: The length of each row's prompt, `(num_rows,)`, in any unit.
        batch_size: Number of rows in a batch of one process.
    """
    num_processes = PartialState().num_processes
    order = _around_the_mean(lengths)

    def _time(rank: RankSome, size: int) -> float:
        """Returns the seconds to rank items for `size` rows on each process."""
        start = time.perf_counter()
        rank(np.sort(order[: size * num_processes]))
        seconds: float = broadcast_object_list([time.perf_counter() - start])[0]
        return seconds

    # 1. Time one row per process. In a larger batch, a row takes at most this long.
    times = [_time(rank, 1) for rank in passes]
    total = sum(times) * len(lengths) / num_processes
    if total < SHORT:
        return [seconds / num_processes for seconds in times]

    # 2. Time larger batches, as long as the allowed time suffices. A batch that is n times as large as the previous
    #    one takes at most n times as long.
    largest = min(batch_size, len(lengths) // num_processes)
    per_user = []
    for rank, seconds in zip(passes, times, strict=True):
        allowed = min(MOST_SECONDS, SHARE * total) * seconds / sum(times)
        size = 1
        spent = 0.0
        while size < largest and spent + seconds * min(GROWTH, largest / size) <= allowed:
            size = min(size * GROWTH, largest)
            seconds = _time(rank, size)
            spent += seconds
        per_user.append(seconds / size / num_processes)
    return per_user


def _around_the_mean(lengths: np.ndarray) -> np.ndarray:
    """Returns the row numbers, sorted by how far the length of each row's prompt is from the mean length."""
    return np.argsort(np.abs(lengths - lengths.mean()), kind="stable")


def say_cost(num_users: int, seconds: float, *, name: str, remedy: str) -> None:
    """Prints how long an evaluation takes, unless it is short.

    Args:
        num_users: Number of users to rank items for.
        seconds: The estimated time.
        name: Name of the evaluation, with which the printed line begins.
        remedy: How to shorten the evaluation. The printed sentence ends with this text.
    """
    if seconds >= SHORT:
        say(f"{name}: {num_users:,} users, about {in_words(seconds)}; {remedy}")


def say(line: str) -> None:
    """Prints a line immediately, and only on the main process, without breaking progress bars."""
    if PartialState().is_main_process:
        tqdm.write(line)
        sys.stdout.flush()
