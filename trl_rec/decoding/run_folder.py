"""Saves, loads and checks the catalogue and the settings in a run folder, for `Recommender` and `trl-rec evaluate`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from trl_rec.files import write_json
from trl_rec.items import ItemCatalog


SETTINGS = "recommender.json"
CATALOG = "catalog"
# The keys of the prompt's texts are `head`, `item`, ... in the JSON files, but `prompt_head`, `prompt_item`, ...
# everywhere else.
TEXT_KEYS = ("head", "item", "candidates", "tail")


def save_recommender(folder: str | Path, catalog: ItemCatalog, settings: dict[str, Any]) -> None:
    """Saves what [`Recommender`] needs in addition to the saved model and tokenizer."""
    catalog.save(Path(folder) / CATALOG)
    write_settings(Path(folder) / SETTINGS, settings)


def settings_of_run(folder: str | Path | None) -> dict[str, Any]:
    """Returns the settings of the model in a run folder: the `surface` of items, the `prompt` as arguments of
    [`PromptFormat.for_catalog`], and how items are ranked. Returns an empty dict if the folder is not a run folder."""
    if folder is not None and (Path(folder) / "ranker.json").is_file():
        raise ValueError(
            f"the model in {folder} orders rated candidates and cannot rank a catalogue; load it with CandidateRanker"
        )
    path = Path(folder or "") / SETTINGS
    if folder is None or not path.is_file():
        return {}
    return {"surface": ItemCatalog.load(Path(folder) / CATALOG).surface, **read_settings(path)}


def write_settings(path: Path, settings: dict[str, Any]) -> None:
    """Writes the settings of a run folder. The texts in `settings["prompt"]` get the keys of the JSON file."""
    prompt = {name.removeprefix("prompt_"): value for name, value in settings["prompt"].items()}
    write_json(path, {**settings, "prompt": prompt})


def read_settings(path: Path) -> dict[str, Any]:
    """Reads what [`write_settings`] wrote. The texts in `["prompt"]` get back their keys with `prompt_`."""
    settings = json.loads(path.read_text(encoding="utf-8"))
    prompt = {f"prompt_{key}" if key in TEXT_KEYS else key: value for key, value in settings["prompt"].items()}
    return {**settings, "prompt": prompt}


def check_same_items(folder: str | Path, catalog: ItemCatalog, where: str | Path) -> None:
    """Raises ValueError if the policy in a run folder was trained on other items or another surface than `catalog`,
    the catalogue of the dataset folder `where`. A model that is not a run folder is not checked."""
    if not (Path(folder) / CATALOG / "catalog.json").is_file():
        return

    trained = ItemCatalog.load(Path(folder) / CATALOG)
    subject = f"the policy in {folder} was trained on"
    if trained.fingerprint != catalog.fingerprint:
        raise ValueError(f"{subject} other items than those in {where}; train it again, or pass its own dataset")
    if trained.surface != catalog.surface:
        raise ValueError(
            f"{subject} the surface {trained.surface}, not {catalog.surface}; set surface: {trained.surface}"
        )
    same_users = not _names_users(folder) or trained.user_surfaces == catalog.user_surfaces
    if trained.surfaces != catalog.surfaces or not same_users:
        raise ValueError(f"{subject} other semantic IDs than those now in {where}; train it again on the new ones")


def _names_users(folder: str | Path) -> bool:
    """Returns whether the prompts of the policy in a run folder name the user."""
    return "{user}" in (settings_of_run(folder).get("prompt", {}).get("prompt_head") or "")


def local_folder(folder: str | Path) -> Path:
    """Returns the folder itself, or the local copy of a hub repository, which is downloaded if necessary."""
    if Path(folder).is_dir():
        return Path(folder)
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(str(folder)))
    except (OSError, ValueError) as error:  # no such repository, no connection, or not a valid name
        reason = str(error).split("\n", 1)[0]
        raise ValueError(
            f"there is no folder {folder}, and no hub repository of that name could be downloaded: {reason}"
        ) from error
