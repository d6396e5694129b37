"""Saves, loads and checks the catalogue and the settings in a run folder, for `Recommender` and `trl-rec evaluate`."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from trl_rec.files import write_json
from trl_rec.items import ItemCatalog
from trl_rec.ranges import COUNT, FINITE


SETTINGS = "recommender.json"
CATALOG = "catalog"
RECORD = "catalog"  # key under which the settings record the catalogue
REMEDY = "restore the file from a copy of the run folder, or train again"
# The keys of the prompt's texts are `head`, `item`, ... in the JSON files, but `prompt_head`, `prompt_item`, ...
# everywhere else.
TEXT_KEYS = ("head", "item", "candidates", "tail")


# Types and ranges of the settings. Keys that are not listed are ignored.
NUMBERS = {
    "max_length": COUNT,
    "num_beams": COUNT,
    "length_penalty": FINITE,
    "max_history": COUNT,
    "num_candidates": COUNT,
    "list_length": COUNT,
}
FLAGS = ("renormalize", "single_pass", "chat_template")
# The keys that the prompt may have in each file.
PROMPT_KEYS = {
    SETTINGS: {"head", "item", "tail", "chat_template", "list_length"},
    "ranker.json": {"head", "item", "candidates", "tail", "chat_template", "letters"},
}


def save_recommender(folder: str | Path, catalog: ItemCatalog, settings: dict[str, Any]) -> None:
    """Saves what [`Recommender`] needs in addition to the saved model and tokenizer."""
    save_run_settings(folder, SETTINGS, catalog, settings)


def save_run_settings(folder: str | Path, name: str, catalog: ItemCatalog, settings: dict[str, Any]) -> None:
    """Writes a catalogue into a run folder, and `settings` into the file `name` there.

    The file also records the surface and the items that the model was trained with. The keys of `settings["prompt"]`
    are written without their prefix `prompt_`.
    """
    catalog.save(Path(folder) / CATALOG)
    prompt = {key.removeprefix("prompt_"): value for key, value in settings["prompt"].items()}
    write_json(Path(folder) / name, {**settings, "prompt": prompt, RECORD: _record(catalog)})


def _record(catalog: ItemCatalog) -> dict[str, str]:
    """Returns the entries that identify the catalogue that a model was trained with."""
    return {
        "surface": catalog.surface,
        "fingerprint": catalog.fingerprint,
        "surfaces": hashlib.sha256("\0".join(catalog.surfaces).encode()).hexdigest()[:16],
    }


def load_run(folder: str | Path, name: str) -> tuple[dict[str, Any], ItemCatalog]:
    """Loads the settings of a run folder from the file `name`, and the catalogue.

    Raises `ValueError` if the settings or the catalogue are damaged, or if the catalogue is not the one that the model
    was trained with.
    Folders of earlier versions do not record the catalogue. Their catalogue is only compared with the tokens in
    `tokenizer.json`.
    """
    folder = Path(folder)
    settings = _read_settings(folder / name)
    catalog = ItemCatalog.load(folder / CATALOG, remedy="restore it from a copy of the run folder, or train again")

    trained = settings.pop(RECORD, None)
    if trained is None:
        _check_tokens(folder, catalog)
    else:
        _check_record(folder, catalog, trained)
    return settings, catalog


def _check_record(folder: Path, catalog: ItemCatalog, trained: dict[str, Any]) -> None:
    """Raises ValueError if the catalogue differs from the recorded one."""
    place = folder / CATALOG
    if catalog.fingerprint != trained.get("fingerprint"):
        raise ValueError(
            f"{place} does not contain the items that the model was trained with; restore it from a copy of the run "
            "folder, or train again"
        )
    if catalog.surface != trained.get("surface"):
        raise _wrong_surface(place, catalog.surface, str(trained.get("surface")))
    if _record(catalog)["surfaces"] != trained.get("surfaces"):
        raise ValueError(
            f"{place} does not contain the semantic IDs that the model was trained with; restore it from a copy of "
            "the run folder, or train again"
        )


def _check_tokens(folder: Path, catalog: ItemCatalog) -> None:
    """Raises ValueError if the tokens in `tokenizer.json` reveal that the model was trained with another surface, or
    with more items than the catalogue has."""
    path = folder / "tokenizer.json"
    if not path.is_file():
        return
    vocabulary = path.read_text(encoding="utf-8", errors="replace")
    if catalog.surface == "title":
        others = ["item_token", *(["semantic_id"] if catalog.semantic_ids is not None else [])]
        for surface in others:
            if f'"{catalog.with_surface(surface).item_tokens[0]}"' in vocabulary:
                raise _wrong_surface(folder / CATALOG, "title", surface)
    if catalog.surface == "item_token" and f'"<item_{len(catalog)}>"' in vocabulary:
        raise ValueError(
            f"{folder / CATALOG} has {len(catalog)} items, fewer than the model was trained with; restore it from a "
            "copy of the run folder, or train again"
        )


def _wrong_surface(place: Path, surface: str, trained: str) -> ValueError:
    """Returns the error for a catalogue with the right items but the wrong surface."""
    return ValueError(
        f"{place} has the surface {surface}, but the model was trained with {trained}; restore it from "
        f"a copy of the run folder, or run ItemCatalog.load({str(place)!r}).with_surface({trained!r})"
        f".save({str(place)!r}) in Python"
    )


def settings_of_run(folder: str | Path | None) -> dict[str, Any]:
    """Returns the settings of the model in a run folder: the `surface` of items, the `prompt` as arguments of
    [`PromptFormat.for_catalog`], and how items are ranked. Returns an empty dict if the folder is not a run folder."""
    if folder is not None and (Path(folder) / "ranker.json").is_file():
        raise ValueError(
            f"the model in {folder} orders rated candidates and cannot rank a catalogue; load it with CandidateRanker"
        )
    if folder is None or not (Path(folder) / SETTINGS).is_file():
        return {}
    settings, catalog = load_run(folder, SETTINGS)
    return {"surface": catalog.surface, **settings}


def check_keys(path: Path, settings: dict[str, Any], keys: tuple[str, ...]) -> None:
    """Raises ValueError if the settings that were read from `path` lack one of the keys."""
    missing = [key for key in keys if key not in settings]
    if missing:
        raise ValueError(f"{path} has no key {missing[0]!r}; {REMEDY}")


def _read_settings(path: Path) -> dict[str, Any]:
    """Reads and checks the settings of a run folder. Adds `prompt_` to the keys of the prompt's texts."""
    try:
        settings = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ValueError(f"{path} is damaged and cannot be read ({error}); {REMEDY}") from error

    if not isinstance(settings, dict) or not isinstance(settings.get("prompt"), dict):
        raise ValueError(f"{path} does not contain the settings of a run, or lacks the key prompt; {REMEDY}")
    if not isinstance(settings.get(RECORD, {}), dict):
        raise ValueError(f"{path}: {RECORD} is {settings[RECORD]!r}, which is not a mapping; {REMEDY}")
    try:
        _check_values(settings)
        _check_values(settings["prompt"])
    except ValueError as error:
        raise ValueError(f"{path}: {error}; {REMEDY}") from error

    unknown = sorted(set(settings["prompt"]) - PROMPT_KEYS[path.name])
    if unknown:
        raise ValueError(f"{path}: the prompt contains the unknown key {unknown[0]!r}; {REMEDY}")

    prompt = {f"prompt_{key}" if key in TEXT_KEYS else key: value for key, value in settings["prompt"].items()}
    return {**settings, "prompt": prompt}


def _check_values(settings: dict[str, Any]) -> None:
    """Raises ValueError if a value is invalid for its key. Optional values may be None."""
    for key, value in settings.items():
        if key in FLAGS and not isinstance(value, bool):
            raise ValueError(f"{key} must be true or false, not {value!r}")
        if key in TEXT_KEYS and not isinstance(value, str | None):
            raise ValueError(f"{key} must be a string, not {value!r}")
        if key in NUMBERS and (value is not None or key in ("num_beams", "length_penalty")):
            NUMBERS[key].check(key, value)
    if "ratings" in settings:
        ratings = settings["ratings"]
        if not isinstance(ratings, list) or not ratings:
            raise ValueError(f"ratings must be a list of numbers, not {ratings!r}")
        for rating in ratings:
            FINITE.check("ratings", rating)
    if not isinstance(settings.get("letters"), bool | None):
        raise ValueError(f"letters must be true or false, not {settings['letters']!r}")


def check_same_items(folder: str | Path, catalog: ItemCatalog, where: str | Path) -> None:
    """Raises ValueError if the policy in a run folder was trained on other items, another surface or other semantic
    IDs than those of `catalog`, the catalogue of the dataset folder `where`. Does nothing if `folder` is not a run
    folder."""
    if not (Path(folder) / CATALOG / "catalog.json").is_file():
        return

    trained = ItemCatalog.load(Path(folder) / CATALOG)
    subject = f"the policy in {folder} was trained on"
    if trained.fingerprint != catalog.fingerprint:
        raise ValueError(
            f"{subject} items other than those in {where}; train the policy again, or pass the dataset that it was "
            "trained on"
        )
    if trained.surface != catalog.surface:
        raise ValueError(
            f"{subject} items with the surface {trained.surface}, not {catalog.surface}; set surface: "
            f"{trained.surface}"
        )
    same_users = not _names_users(folder) or trained.user_surfaces == catalog.user_surfaces
    if trained.surfaces != catalog.surfaces or not same_users:
        raise ValueError(f"{subject} semantic IDs other than those in {where}; train the policy again")


def _names_users(folder: str | Path) -> bool:
    """Returns whether the prompts of the policy in a run folder name the user. Prompts of rankers never do."""
    if (Path(folder) / "ranker.json").is_file():
        return False
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
            f"there is no folder {folder}, and a hub repository of that name cannot be downloaded: {reason}"
        ) from error
