"""Stores the chosen setting of a prior in the file `choice.json` of the output folder.

The setting consists of the kind of prior, its strength and its eps (the weight of popularity).

Once the test split has been evaluated with one setting, a different setting is refused. The setting therefore
cannot be chosen by its results on the test split.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, get_args

from trl_rec.decoding.priors import PopularityPrior
from trl_rec.decoding.priors.fitted import PriorKind
from trl_rec.evaluation.prior_choice.choice import PriorChoice, setting_in_words
from trl_rec.evaluation.prior_choice.grid import is_on_grid
from trl_rec.files import write_json


CHOICE = "choice.json"


def keep_choice(folder: str | Path, choice: PriorChoice, split: str) -> None:
    """Writes `choice.json`. Call this function before the prior is evaluated on `split`.

    Raises `ValueError` if `choice.json` records a different setting, with which the test split has been evaluated.
    """
    content = {**asdict(choice), "split": split}
    before = read_choice(folder)
    if before is not None and before.get("split") == "test":
        if {name: before.get(name) for name in choice.setting} != choice.setting:
            raise _other_choice(folder, before, f"this run chose {setting_in_words(choice.setting)}")
        content["split"] = "test"
    write_json(Path(folder) / CHOICE, content)


def check_choice(folder: str | Path, prior: str, strength: float | None) -> None:
    """Raises `ValueError` if it is already certain that [`keep_choice`] will refuse the choice of a prior.

    Call this function before the model is trained or loaded. If the strength will be chosen on the validation split,
    it is not known yet. The error is then raised only if the recorded prior is of another kind, or if [`choose_prior`]
    never tries the recorded setting.

    Args:
        folder: The output folder.
        prior: The kind of prior.
        strength: The given strength. None if the strength will be chosen on the validation split.
    """
    before = read_choice(folder)
    if before is None or before.get("split") != "test":
        return
    if before.get("prior") != prior or strength not in (None, before.get("strength")):
        wanted = prior if strength is None else f"{prior} with strength {strength}"
        raise _other_choice(folder, before, f"this run asks for {wanted}")
    has_eps = prior != PopularityPrior.kind
    if strength is None and not is_on_grid(before.get("strength"), before.get("eps"), has_eps=has_eps):
        raise _other_choice(folder, before, "prior_strength=auto never chooses this setting")


def read_choice(folder: str | Path) -> dict[str, Any] | None:
    """Reads `choice.json`, or returns None if there is none. Raises `ValueError` if it is damaged."""
    path = Path(folder) / CHOICE
    if not path.is_file():
        return None
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ValueError(f"{path} is damaged and cannot be read ({error}); choose another output_dir") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} does not contain the choice of a prior; choose another output_dir")
    return content


def _other_choice(folder: str | Path, before: Mapping[str, Any], now: str) -> ValueError:
    """Returns the error for a folder that records another choice. `now` says what this run chose or asks for."""
    kind, strength = before.get("prior"), before.get("strength")
    repeat = ""
    if kind in get_args(PriorKind) and isinstance(strength, float | int):
        repeat = f", or set prior to {kind} and prior_strength to {strength}, as recorded"
    return ValueError(
        f"{Path(folder) / CHOICE} records another choice, {setting_in_words(before)}, which has been measured on the "
        f"test split; {now}, so choose another output_dir{repeat}"
    )
