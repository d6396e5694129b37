"""Chooses a point of each arm's grid by its results on validation, before the test split is used.

A grid lists the points to try. Each point is one combination of values of recipe keys. Points are compared by the
measure in the study's key `choose_by` or, by default, by the study's primary measure.

The best value of a measure is the highest one or, for measures such as `disliked@10`, the lowest one.

`choice.json` contains the chosen points and the validation measures. This file is never replaced. If a later call
would write other contents, an error is raised, because arms may already have been measured on the test split with the
first choice.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

from trl_rec.evaluation.tables import direction_of
from trl_rec.files import write_json
from trl_rec.schedule.studies.arms import Arm, point_name
from trl_rec.trainer.base.saving.fingerprint import as_json


CHOICE = "choice.json"
Key = TypeVar("Key")


def check_primary(primary: str, arms: Mapping[str, Arm], *, recommend: bool) -> None:
    """Raises `ValueError` if the study has to choose by a measure, but it is not known whether high values are better.

    Args:
        primary: Name of the measure.
        arms: The arms by name.
        recommend: Whether the study ends with a recommendation.
    """
    with_grid = [name for name, arm in arms.items() if len(arm.grid) > 1]
    if direction_of(primary) != 0 or not (with_grid or recommend):
        return
    purpose = f"no point of the grid of {with_grid[0]} can be chosen" if with_grid else "no arm can be recommended"
    raise ValueError(
        f"it is not known whether high or low values of {primary!r} are better, so {purpose} by it; set "
        f"primary or choose_by to a measure such as ndcg@10, or leave {'grid' if with_grid else 'recommend'} out"
    )


def best(values: Mapping[Key, float], primary: str) -> Key:
    """Returns the key with the best value of the measure, or the first of several such keys."""
    direction = direction_of(primary)
    return max(values, key=lambda key: direction * values[key])


def choose(arm: Arm, values: Mapping[int, float | None], primary: str) -> int:
    """Returns the index in `arm.grid` of the point with the best value, or the first of several such indices.

    Args:
        arm: The arm.
        values: Maps the index of each point to its measure on validation, which may be None if the grid has a single
            point.
        primary: Name of the measure.
    """
    if len(values) == 1:
        return next(iter(values))
    known = {number: value for number, value in values.items() if value is not None}
    if len(known) < len(values):
        raise ValueError(
            f"arms: {arm.name}: the runs of this arm do not measure {primary} on validation, so no point of the grid "
            "can be chosen; set choose_by to a measure in the metrics.json of these runs"
        )
    return best(known, primary)


def write_choice(
    folder: Path,
    arms: Mapping[str, Arm],
    values: Mapping[str, Mapping[int, float | None]],
    chosen: Mapping[str, int],
    decided: Mapping[str, Any],
) -> None:
    """Writes `choice.json`. Raises `ValueError` if the file already exists with different content.

    Args:
        folder: The study's folder.
        arms: The arms by name, including all trainings.
        values: The values of each training, as given to [`choose`].
        chosen: Maps each training to the index of its chosen point in `Arm.grid`.
        decided: Other entries of the file, which are also fixed before any arm is measured on the test split: the
            primary measure, the measure and the seed used for the choice, the smallest difference that the study can
            detect, and the arms that are left out of the study.
    """
    choice: dict[str, Any] = as_json(
        {
            **decided,
            "split": "validation",
            "arms": {
                name: {
                    "chosen": arms[name].grid[point],
                    "grid": [
                        {"point": arms[name].grid[number], "value": value} for number, value in values[name].items()
                    ],
                }
                for name, point in chosen.items()
            },
        }
    )
    path = folder / CHOICE
    if not path.is_file():
        write_json(path, choice)
        return

    before = json.loads(path.read_text(encoding="utf-8"))
    if before == choice:
        return
    for name, entry in choice["arms"].items():
        old = before.get("arms", {}).get(name)
        if old is None or old["chosen"] != entry["chosen"]:
            was = "nothing" if old is None else point_name(old["chosen"]) or "the recipe without grid values"
            now = point_name(entry["chosen"]) or "the recipe without grid values"
            raise ValueError(
                f"according to {path}, {was} was chosen for {name}, but the runs now lead to {now}; the arm may have "
                "been measured on the test split with the first choice, so use another output_dir for a new study"
            )
    raise ValueError(
        f"the values that the study would now write, such as the validation measures, differ from those in {path}; "
        "use another output_dir for a new study"
    )
