"""Trains the arms of a study: every point of every grid with one seed, then the chosen points with the other seeds.

The grid of an arm contains the settings to try. Each point of the grid is one combination of settings.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Mapping
from typing import TYPE_CHECKING

from trl_rec.evaluation.kept.files import METRICS
from trl_rec.schedule.studies.arms import point_name
from trl_rec.schedule.studies.choice import choose, write_choice
from trl_rec.schedule.studies.resolution import Resolution
from trl_rec.schedule.studies.runs import Run


if TYPE_CHECKING:
    from trl_rec.schedule.studies.study import Study


def choose_points(study: Study, resolved: Resolution) -> dict[str, int]:
    """Trains every point of every grid with the first seed, chooses a point of each grid, and writes the choice.

    Returns a mapping from the name of each trained arm to the index of the chosen point in `Arm.grid`.
    """
    measure = study.config.choice_measure
    chosen: dict[str, int] = {}
    values: dict[str, dict[int, float | None]] = {}
    while len(chosen) < len(study.trainings):
        # Train all points of the arms that can be trained now. An arm that starts from another arm has to wait until a
        # point of the other arm is chosen.
        ready = [
            arm
            for name, arm in study.trainings.items()
            if name not in chosen and (arm.start is None or arm.start in chosen)
        ]
        runs = {
            (arm.name, number): study.training(arm, number, arm.seeds[0], chosen)
            for arm in ready
            for number in range(len(arm.grid))
        }
        study.finish(list(runs.values()), {run.path: name for (name, _), run in runs.items()})
        for arm in ready:
            values[arm.name] = {
                number: validation_value(runs[arm.name, number], measure) for number in range(len(arm.grid))
            }
            chosen[arm.name] = choose(arm, values[arm.name], measure)
            if len(arm.grid) > 1:
                study.say(
                    f"{arm.name}: {point_name(arm.grid[chosen[arm.name]])} is chosen, because it has the best "
                    f"{measure} on validation"
                )
    decided = {
        "primary": study.config.primary,
        "chosen by": measure,
        "seed": study.config.seeds[0],
        "smallest difference": resolved.smallest,
        "left out": list(study.left_out),
    }
    write_choice(study.folder, study.arms, values, chosen, decided)
    return chosen


def train_chosen(study: Study, chosen: Mapping[str, int]) -> dict[str, dict[int, Run]]:
    """Trains the chosen points with the other seeds. Returns the runs of all seeds, by arm and seed."""
    trained: dict[str, dict[int, Run]] = {}
    while len(trained) < len(chosen):
        ready = [
            arm
            for name, arm in study.trainings.items()
            if name not in trained and (arm.start is None or arm.start in trained)
        ]
        for arm in ready:
            trained[arm.name] = {seed: study.training(arm, chosen[arm.name], seed, chosen) for seed in arm.seeds}
        # Train all arms with the second seed, then all with the third, and so on. If the study is stopped early, some
        # seeds are complete.
        later = {run.path: arm.name for arm in ready for run in list(trained[arm.name].values())[1:]}
        by_seed = itertools.zip_longest(*(list(trained[arm.name].values())[1:] for arm in ready))
        study.finish([run for of_seed in by_seed for run in of_seed if run is not None], later)
    return trained


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
