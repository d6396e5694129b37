"""Saves and loads the prior of a model in its run folder. The prior is stored in `prior.safetensors`, and some of its
settings also in `recommender.json`.

In `recommender.json`, the key `prior` contains the kind, `strength` and, for some kinds, `eps`. This `strength` and
`eps` override those in `prior.safetensors`, and may be edited. Without the key `prior`, the model has no prior.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from trl_rec.decoding.priors.counted import PopularityPrior
from trl_rec.decoding.priors.files import PRIOR
from trl_rec.decoding.priors.fitted import SavedPrior, load_prior
from trl_rec.decoding.priors.own import ArrayPrior
from trl_rec.decoding.run_folder import SETTINGS
from trl_rec.files import write_json
from trl_rec.ranges import NOT_NEGATIVE, POSITIVE


KEY = "prior"  # the key of `recommender.json` that contains the settings of the prior
REMEDY = f"restore the run folder from a copy, or remove the key 'prior' from {SETTINGS}"


def save_run_prior(folder: str | Path, prior: SavedPrior) -> None:
    """Adds a prior to a run folder, in which the model is already saved.

    `recommender.json` is written last, so that it never refers to a file that does not exist yet.
    """
    folder = Path(folder)
    if not (folder / SETTINGS).is_file():
        raise ValueError(f"{folder} has no {SETTINGS}, so it is not a run folder; save the model there first")
    prior.save(folder / PRIOR)
    settings = json.loads((folder / SETTINGS).read_text(encoding="utf-8"))
    write_json(folder / SETTINGS, {**settings, KEY: prior_entry(prior)})


def prior_entry(prior: SavedPrior) -> dict[str, Any]:
    """Returns the settings of a prior, as the value of the key `prior` of `recommender.json`."""
    eps = getattr(prior, "eps", None)
    return {"kind": prior.kind, "strength": prior.strength, **({} if eps is None else {"eps": eps})}


def drop_run_prior(folder: str | Path) -> None:
    """Removes the key `prior` from the `recommender.json` of a run folder, if the key is there."""
    path = Path(folder) / SETTINGS
    if not path.is_file():
        return
    settings = json.loads(path.read_text(encoding="utf-8"))
    if settings.pop(KEY, None) is not None:
        write_json(path, settings)


def load_run_prior(folder: str | Path, settings: Mapping[str, Any], num_items: int) -> SavedPrior | None:
    """Loads the prior of a run folder. Returns None if `settings` has no key `prior`.

    Args:
        folder (`str` or `Path`): The run folder.
        settings (`Mapping`): The content of its `recommender.json`.
        num_items (`int`): Number of items that the prior must have weights for.
    """
    described = settings.get(KEY)
    if described is None:
        return None

    # 1. Check the settings.
    place = Path(folder) / SETTINGS
    if not isinstance(described, dict):
        raise ValueError(f"{place}: {KEY} is {described!r:.80}, which is not a mapping; {REMEDY}")
    try:
        NOT_NEGATIVE.check("strength", described.get("strength"))
        if "eps" in described:
            POSITIVE.check("eps", described["eps"])
    except ValueError as error:
        raise ValueError(f"{place}: the prior's {error}; {REMEDY}") from error

    # 2. Load the prior, and replace its settings by those of `recommender.json`.
    prior = load_prior(Path(folder) / PRIOR, num_items=num_items)
    if prior.kind != described.get("kind"):
        raise ValueError(
            f"{place} describes a prior of the kind {described.get('kind')!r:.80}, but {PRIOR} contains the kind "
            f"{prior.kind!r}; {REMEDY}"
        )
    if isinstance(prior, PopularityPrior | ArrayPrior):
        return replace(prior, strength=described["strength"])
    return replace(prior, strength=described["strength"], eps=described.get("eps", prior.eps))
