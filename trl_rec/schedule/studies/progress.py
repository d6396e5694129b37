"""Counts the remaining runs of a study, and uses the times of the finished runs to estimate the remaining time."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from trl_rec.evaluation.kept.files import METRICS
from trl_rec.printing import in_words


if TYPE_CHECKING:
    from trl_rec.schedule.studies.study import Study

# The kind of the runs that measure arms (the recommenders that a study compares) on the test split.
TEST = "test split"


class Progress:
    """Counts the runs of a study by kind, such as an arm's trainings or the measurements on the test split.

    Args:
        kinds (`Sequence[str]`): The kind of each run.
        jobs (`int`): Number of runs at the same time.
        finished (`Sequence[tuple[str, float]]`): Kind and seconds of each run that is already finished.
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
        """The number of finished runs and the number of all runs, such as `3/14`."""
        return f"{self._num_runs - self._left.total()}/{self._num_runs}"

    def remaining(self) -> str:
        """Describes the remaining runs in words, such as `11 runs remain, about 8 min`."""
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

        If no run of a kind is finished, each run of this kind is assumed to take the mean time of all finished runs.
        """
        measured = [seconds for of_kind in self._seconds.values() for seconds in of_kind]
        if not measured:
            return None
        total = sum(
            count * float(np.mean(self._seconds.get(kind, measured))) for kind, count in self._left.items() if count
        )
        return total / self._jobs


def progress_of(study: Study) -> Progress:
    """Returns the progress of a study, including the runs that are already finished.

    Call this function after deciding which arms to leave out, because the runs of those arms are not counted.
    """
    kinds = [name for name, arm in study.trainings.items() for _ in range(len(arm.grid) + len(arm.seeds) - 1)]
    if study.config.only_validation:
        return Progress(kinds, study.config.jobs, _finished(study))
    others = [name for name, arm in study.arms.items() if arm.lists is not None and name not in study.left_out]
    again = [arm for name, arm in study.arms.items() if arm.evaluation and name not in study.left_out]
    of_baselines = not any(arm.verb == "alro" for arm in study.trainings.values())
    measured = [*study.trainings.values(), *again]
    kinds += [TEST] * (of_baselines + len(others) + sum(len(arm.seeds) for arm in measured))
    return Progress(kinds, study.config.jobs, _finished(study))


def _finished(study: Study) -> list[tuple[str, float]]:
    """Returns the kind and the seconds of each finished run of a study."""
    found = []
    names = {arm.slug: name for name, arm in study.trainings.items()}
    for path in study.folder.glob("[rt]*s*/**/*.json"):  # the files in the folders `runs` and `test`
        top, name, *_ = path.relative_to(study.folder).parts
        kind = TEST if top == "test" else names.get(name)
        has_results = (path.with_suffix("") / METRICS).is_file()
        if kind is not None and has_results and path.with_suffix(".yaml").is_file():
            found.append((kind, float(json.loads(path.read_text(encoding="utf-8"))["seconds"])))
    return found
