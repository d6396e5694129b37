"""Chooses a point of each arm's grid by the primary measure on validation, before the test split is measured.

`choice.json` contains the chosen points and the validation measures. This file is never replaced. If a
later call would write other contents, an error is raised, because the test split may have been measured with the first
choice.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from trl_rec.files import write_json
from trl_rec.schedule.studies.arms import Arm, point_name
from trl_rec.trainer.base.fingerprint import as_json


CHOICE = "choice.json"


def choose(arm: Arm, values: Mapping[int, float | None], primary: str) -> int:
    """Returns the index in `arm.grid` of the point with the highest value, or the first such index if there are ties.

    Args:
        arm: The arm.
        values: Maps the index of each point to its primary measure on validation. If the grid has a single point, the
            measure may be None.
        primary: Name of the primary measure, used in the error message.
    """
    if len(values) == 1:
        return next(iter(values))
    lacking = [number for number, value in values.items() if value is None]
    if lacking:
        raise ValueError(
            f"arms: {arm.name}: the runs of this arm do not measure {primary} on validation, so no point of the grid "
            "can be chosen; set primary to a measure in the metrics.json of these runs"
        )
    return max(values, key=lambda number: values[number] or 0.0)


def write_choice(
    folder: Path,
    arms: Mapping[str, Arm],
    values: Mapping[str, Mapping[int, float | None]],
    chosen: Mapping[str, int],
    decided: Mapping[str, Any],
) -> None:
    """Writes the choice. If the file already exists, raises `ValueError` unless its content is the same.

    Args:
        folder: The study's folder.
        arms: The arms by name, including all trainings.
        values: The values of each training, as given to [`choose`].
        chosen: Maps each training to the index of its chosen point in `Arm.grid`.
        decided: Other entries of the file, which are also fixed before the test split is measured: the primary
            measure, the seed used for the choice, the smallest difference that the study can detect, and the arms that
            are left out.
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
                f"{path} contains the choice of {was} for {name}, but the runs now lead to {now}; the test split may "
                "have been measured with the first choice, so use another output_dir for a new study"
            )
    raise ValueError(
        f"the study would now write other values to {path}, such as other validation measures; use another output_dir "
        "for a new study"
    )
