"""What lies beside a trained model: its items, and how it is asked. `Recommender` and `trl-rec evaluate` read it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from trl_rec.files import write_json
from trl_rec.items import ItemCatalog


SETTINGS = "recommender.json"
CATALOG = "catalog"
# The prompt's texts are `head`, `item`, ... in the JSON files, and `prompt_head`, `prompt_item`, ... everywhere else.
TEXT_KEYS = ("head", "item", "candidates", "tail")


def save_recommender(folder: str | Path, catalog: ItemCatalog, settings: dict[str, Any]) -> None:
    """Writes what [`Recommender`] needs beside a saved model and tokenizer."""
    catalog.save(Path(folder) / CATALOG)
    write_settings(Path(folder) / SETTINGS, settings)


def settings_of_run(folder: str | Path | None) -> dict[str, Any]:
    """How the model in a run folder is asked: the `surface` of items, its `prompt` as [`PromptFormat.for_catalog`]
    takes it, and how its lists are ranked. Empty for any other model."""
    if folder is not None and (Path(folder) / "ranker.json").is_file():
        raise ValueError(
            f"{folder} puts rated candidates in order, and ranks no catalogue; ask it with CandidateRanker"
        )
    path = Path(folder or "") / SETTINGS
    if folder is None or not path.is_file():
        return {}
    return {"surface": ItemCatalog.load(Path(folder) / CATALOG).surface, **read_settings(path)}


def write_settings(path: Path, settings: dict[str, Any]) -> None:
    """Writes the settings of a run folder, with the file's keys for the texts in `settings["prompt"]`."""
    prompt = {name.removeprefix("prompt_"): value for name, value in settings["prompt"].items()}
    write_json(path, {**settings, "prompt": prompt})


def read_settings(path: Path) -> dict[str, Any]:
    """What [`write_settings`] wrote, with our names for the texts in `["prompt"]`."""
    settings = json.loads(path.read_text(encoding="utf-8"))
    prompt = {f"prompt_{key}" if key in TEXT_KEYS else key: value for key, value in settings["prompt"].items()}
    return {**settings, "prompt": prompt}


def check_same_items(folder: str | Path, given: ItemCatalog, where: str | Path) -> None:
    """Raises where the policy in a run folder learned other items, or wrote them otherwise, than those in the dataset
    folder `where`. Any other model may write whatever its tokenizer knows."""
    if not (Path(folder) / CATALOG / "catalog.json").is_file():
        return
    own, told = ItemCatalog.load(Path(folder) / CATALOG), f"the policy in {folder} was trained on"
    if own.fingerprint != given.fingerprint:
        raise ValueError(f"{told} other items than {where} holds; train it again, or name its own dataset")
    if own.surface != given.surface:
        raise ValueError(f"{told} the surface {own.surface}, not {given.surface}; choose that surface")
    if own.surfaces != given.surfaces or (_names_users(folder) and own.user_surfaces != given.user_surfaces):
        raise ValueError(f"{told} other semantic IDs than {where} holds now; train it again on these")


def _names_users(folder: str | Path) -> bool:
    return "{user}" in (settings_of_run(folder).get("prompt", {}).get("prompt_head") or "")


def local_folder(folder: str | Path) -> Path:
    """The folder itself, or that of a hub repository once it is fetched."""
    if Path(folder).is_dir():
        return Path(folder)
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(str(folder)))
    except (OSError, ValueError) as error:  # no such repository, no connection, no name of one
        told = str(error).split("\n", 1)[0]
        raise ValueError(
            f"there is no folder {folder}, and no repository of that name could be fetched: {told}"
        ) from error
