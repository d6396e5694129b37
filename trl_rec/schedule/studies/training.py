"""Trains the arms of a study: every point of every grid with one seed, and the chosen points with the other seeds.

The grid of an arm contains the settings to try. Each point of the grid is one combination of settings. A run can be
started as soon as the runs that it needs are finished: the other seeds of an arm need the choice of its point, and an
arm that starts from another arm needs the policy of the other arm.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Collection
from pathlib import Path
from typing import TYPE_CHECKING

from trl_rec.evaluation.kept.files import METRICS
from trl_rec.schedule.studies.arms import Arm, point_name
from trl_rec.schedule.studies.choice import choose, write_choice
from trl_rec.schedule.studies.resolution import Resolution
from trl_rec.schedule.studies.runs import Run


if TYPE_CHECKING:
    from trl_rec.schedule.studies.study import Study


def train_arms(study: Study, resolved: Resolution) -> tuple[dict[str, int], dict[str, dict[int, Run]]]:
    """Trains all arms, chooses a point of each grid, and writes the choice.

    Returns two mappings from the name of each trained arm: the index of the chosen point in `Arm.grid`, and the run of
    each seed.
    """
    # 1. Train.
    queue = _Queue(study)
    study.finish_ready(queue.ready, lambda run: queue.arms[run.path])

    # 2. Write the choice.
    measure = study.config.choice_measure
    decided = {
        "primary": study.config.primary,
        "chosen by": measure,
        "seed": study.config.seeds[0],
        "smallest difference": resolved.smallest,
        "left out": list(study.left_out),
    }
    arms = study.trainings.values()
    values = {
        arm.name: {number: validation_value(run, measure) for number, run in enumerate(queue.first_runs(arm))}
        for arm in arms
    }
    write_choice(study.folder, study.arms, values, queue.chosen, decided)
    return queue.chosen, {arm.name: {seed: queue.run(arm, seed) for seed in arm.seeds} for arm in arms}


class _Queue:
    """Decides which trainings of a study can be started.

    Args:
        study: The study.

    Attributes:
        chosen (`dict[str, int]`): For each arm whose point is chosen, the index of this point in `Arm.grid`.
        arms (`dict[Path, str]`): Maps the folder of each run to the name of its arm. A run is added as soon as its
            settings are known.
    """

    def __init__(self, study: Study) -> None:
        self.study = study
        self.chosen: dict[str, int] = {}
        self.arms: dict[Path, str] = {}

    def run(self, arm: Arm, seed: int) -> Run:
        """Returns the run of an arm with its chosen point."""
        return self.study.training(arm, self.chosen[arm.name], seed, self.chosen)

    def first_runs(self, arm: Arm) -> list[Run]:
        """Returns the runs of all points of an arm's grid with the first seed."""
        return [self.study.training(arm, number, arm.seeds[0], self.chosen) for number in range(len(arm.grid))]

    def ready(self, finished: Collection[Path]) -> list[Run]:
        """Returns the runs that do not need any unfinished run (see `Ready` in `runs.py`).

        Also chooses the point of each arm: at once if its grid has only one point, otherwise when the runs of all
        points are finished.
        """
        first: list[Run] = []
        later: list[list[Run | None]] = []
        for arm in self.study.trainings.values():  # an arm comes after the arm that it starts from
            if arm.start is not None and arm.start not in self.chosen:
                continue

            # 1. Train all points with the first seed.
            runs = self.first_runs(arm)
            self.arms |= {run.path: arm.name for run in runs}
            if self._has_start(arm, arm.seeds[0], finished):
                first += runs

            # 2. Then choose a point, and train it with the other seeds.
            if arm.name not in self.chosen and (len(runs) == 1 or all(run.path in finished for run in runs)):
                self._choose(arm, runs)
            if arm.name in self.chosen:
                others = {seed: self.run(arm, seed) for seed in arm.seeds[1:]}
                self.arms |= {run.path: arm.name for run in others.values()}
                later.append([run if self._has_start(arm, seed, finished) else None for seed, run in others.items()])

        # 3. Begin with the first seed of all arms, and continue with the second seed of all arms, and so on. If the
        # study is stopped early, the arms then have about equally many finished seeds.
        by_seed = itertools.chain.from_iterable(itertools.zip_longest(*later))
        return [*first, *(run for run in by_seed if run is not None)]

    def _has_start(self, arm: Arm, seed: int, finished: Collection[Path]) -> bool:
        """Returns whether an arm can be trained with a seed.

        An arm that starts from another arm needs the policy that was trained with the other arm's chosen point and the
        same seed. Any other arm can always be trained.
        """
        return arm.start is None or self.run(self.study.arms[arm.start], seed).path in finished

    def _choose(self, arm: Arm, runs: list[Run]) -> None:
        """Chooses a point of an arm's grid. If there are several points, tells the user which one."""
        if len(runs) == 1:
            self.chosen[arm.name] = 0
            return
        measure = self.study.config.choice_measure
        values = {number: validation_value(run, measure) for number, run in enumerate(runs)}
        self.chosen[arm.name] = choose(arm, values, measure)
        self.study.say(
            f"{arm.name}: {point_name(arm.grid[self.chosen[arm.name]])} is chosen, because it has the best {measure} "
            "on validation"
        )


def validation_value(run: Run, measure: str) -> float | None:
    """Returns the value of a measure on the validation split, or None if the run did not compute this measure."""
    content = json.loads((run.path / METRICS).read_text(encoding="utf-8"))
    if content.get("split") != "validation":
        raise ValueError(
            f"{run.path} was measured on the {content.get('split')} split, not on validation; remove this folder and "
            f"{run.record}, so that the run is repeated"
        )
    recommender = content.get("recommender") or list(content["results"])[-1]
    value = content["results"][recommender]["metrics"].get(measure)
    return None if value is None else float(value)
