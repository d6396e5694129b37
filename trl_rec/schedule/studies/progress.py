"""Counts the remaining runs of a study, and estimates their time from the run times measured so far."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np


class Progress:
    """Counts the runs of a study by kind, such as an arm's trainings or the measurements of the test split.

    Args:
        kinds (`Sequence[str]`): The kind of each run.
        jobs (`int`): Number of runs at the same time.
        finished (`Sequence[tuple[str, float]]`): Kind and seconds of each run that is finished already.
    """

    def __init__(self, kinds: Sequence[str], jobs: int, finished: Sequence[tuple[str, float]] = ()) -> None:
        self._left = Counter(kinds)
        self._num_runs = len(kinds)
        self._jobs = jobs
        self._seconds: dict[str, list[float]] = {}
        for kind, seconds in finished:
            self.done(kind, seconds)

    def done(self, kind: str, seconds: float) -> None:
        """Counts a finished run."""
        self._left[kind] -= 1
        self._seconds.setdefault(kind, []).append(seconds)

    @property
    def place(self) -> str:
        """Number of finished runs and of all runs, such as `3/14`."""
        return f"{self._num_runs - self._left.total()}/{self._num_runs}"

    def remaining(self) -> str:
        """Returns what remains in words, such as `11 runs remain, about 8 min`."""
        left = self._left.total()
        if not left:
            return "nothing remains"
        runs = "1 run remains" if left == 1 else f"{left} runs remain"
        seconds = self._estimate()
        if seconds is None:
            return f"{runs}; the time will be estimated after the first run"
        return f"{runs}, about {in_words(seconds)}"

    def _estimate(self) -> float | None:
        """Returns the estimated seconds of the remaining runs, or None if no run is finished.

        A kind without a finished run is assumed to take the mean time of all finished runs.
        """
        measured = [seconds for of_kind in self._seconds.values() for seconds in of_kind]
        if not measured:
            return None
        total = sum(
            count * float(np.mean(self._seconds.get(kind, measured))) for kind, count in self._left.items() if count
        )
        return total / self._jobs


def in_words(seconds: float) -> str:
    """Returns a duration in words, such as `45 s`, `8 min` or `3 h 20 min`."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60} min"
