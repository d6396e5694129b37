"""Saves, loads and checks the catalogue and the settings in a run folder."""

from __future__ import annotations

import hashlib
import json
from functools import cache
from pathlib import Path
from typing import Any

from trl_rec.files import write_json
from trl_rec.items import ItemCatalog
from trl_rec.items.user_ids import FILE as USER_IDS
from trl_rec.ranges import COUNT, FINITE


SETTINGS = "recommender.json"
CATALOG = "catalog"
RECORD = "catalog"  # key under which the settings record the catalogue
REMEDY = "restore the file from a copy of the run folder, or train again"
MISSING = (
    "restore it from a copy of the run folder, give the dataset that the model was trained on (catalog=, or --dataset "
    "of 'trl-rec recommend' and 'trl-rec serve'), or train again"
)
# The keys of the prompt's texts are `head`, `item`, ... in the JSON files, but `prompt_head`, `prompt_item`, ...
# everywhere else.
TEXT_KEYS = ("head", "item", "separator", "candidates", "tail")


# Ranges of the numeric settings, and names of the settings that must be true or false.
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
    SETTINGS: {"head", "item", "tail", "separator", "chat_template", "list_length"},
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


def load_run(
    folder: str | Path, name: str, given: ItemCatalog | str | Path | None = None
) -> tuple[dict[str, Any], ItemCatalog]:
    """Loads the settings of a run folder from the file `name`, and the catalogue.

    Raises `ValueError` if the settings or the catalogue are damaged, or if the catalogue is not the one that the model
    was trained with. Folders of earlier versions do not record the catalogue. Their catalogue is only compared with
    the tokens in `tokenizer.json`.

    Args:
        folder: The run folder.
        name: The file with the settings.
        given (*optional*): The catalogue, or the dataset folder that contains it, for a run folder that was published
            without its catalogue. If the settings record a surface, it replaces the surface of the given catalogue.
    """
    folder = Path(folder)
    settings = _read_settings(folder / name)
    trained = settings.pop(RECORD, None)
    if given is None:
        place: str | Path = folder / CATALOG
        catalog = ItemCatalog.load(folder / CATALOG, remedy=MISSING)
    else:
        place = "the given catalogue" if isinstance(given, ItemCatalog) else Path(given) / CATALOG
        catalog = given if isinstance(given, ItemCatalog) else ItemCatalog.load(Path(given) / CATALOG)
        if trained is not None:
            catalog = catalog.with_surface(str(trained.get("surface")))

    if trained is None:
        _check_tokens(folder, place, catalog, is_given=given is not None)
    else:
        _check_record(place, catalog, trained, is_given=given is not None)
    return settings, catalog


def missing_catalog(folder: Path, dataset: str | Path | None) -> str | Path | None:
    """Returns `dataset` if the run folder lacks the catalogue, or lacks the semantic IDs of users although the prompts
    contain them. Returns None otherwise."""
    has_catalog = (folder / CATALOG / "catalog.json").is_file()
    lacks_users = names_users(folder) and not (folder / CATALOG / USER_IDS).is_file()
    return None if has_catalog and not lacks_users else dataset


def check_users(name: str | Path, catalog: ItemCatalog, prompt: dict[str, Any]) -> None:
    """Raises ValueError if a model's prompts contain the user's semantic ID, but the catalogue has none for users.

    Args:
        name: The run folder or hub id of the model.
        catalog: The catalogue in the run folder, or the given one.
        prompt: The settings of the prompts.
    """
    if "{user}" in (prompt.get("prompt_head") or "") and catalog.user_ids is None:
        raise ValueError(
            f"{name} was trained on prompts that contain the user's semantic ID, and these IDs are never published; "
            "pass the dataset folder that the model was trained on, which contains them, as catalog= (--dataset of "
            "'trl-rec recommend' and 'trl-rec serve')"
        )


def _check_record(place: str | Path, catalog: ItemCatalog, trained: dict[str, Any], *, is_given: bool) -> None:
    """Raises ValueError if the catalogue at `place` differs from the recorded one."""
    if catalog.fingerprint != trained.get("fingerprint"):
        raise ValueError(f"{place} does not contain the items that the model was trained with; {_remedy(is_given)}")
    if catalog.surface != trained.get("surface"):
        raise _wrong_surface(place, catalog.surface, str(trained.get("surface")), is_given=is_given)
    if _record(catalog)["surfaces"] != trained.get("surfaces"):
        raise ValueError(
            f"{place} does not contain the semantic IDs that the model was trained with; {_remedy(is_given)}"
        )


def _check_tokens(folder: Path, place: str | Path, catalog: ItemCatalog, *, is_given: bool) -> None:
    """Raises ValueError if the tokens in `tokenizer.json` reveal that the model was trained with another surface, or
    with more items than the catalogue at `place` has."""
    path = folder / "tokenizer.json"
    if not path.is_file():
        return
    vocabulary = path.read_text(encoding="utf-8", errors="replace")
    if catalog.surface == "title":
        others = ["item_token", *(["semantic_id"] if catalog.semantic_ids is not None else [])]
        for surface in others:
            if f'"{catalog.with_surface(surface).item_tokens[0]}"' in vocabulary:
                raise _wrong_surface(place, "title", surface, is_given=is_given)
    if catalog.surface == "item_token" and f'"<item_{len(catalog)}>"' in vocabulary:
        raise ValueError(
            f"{place} has {len(catalog)} items, fewer than the model was trained with; {_remedy(is_given)}"
        )


def _wrong_surface(place: str | Path, surface: str, trained: str, *, is_given: bool) -> ValueError:
    """Returns the error for a catalogue with the right items but the wrong surface."""
    if is_given:
        loaded = f"ItemCatalog.load({str(place)!r})" if isinstance(place, Path) else "catalog"
        remedy = f"give catalog={loaded}.with_surface({trained!r}) in Python"
    else:
        remedy = (
            f"restore it from a copy of the run folder, or run ItemCatalog.load({str(place)!r})"
            f".with_surface({trained!r}).save({str(place)!r}) in Python"
        )
    return ValueError(f"{place} has the surface {surface!r}, but the model was trained with {trained!r}; {remedy}")


def _remedy(is_given: bool) -> str:
    """Returns the remedy for a catalogue that the model was not trained with: a given one, or the run folder's."""
    if is_given:
        return (
            "give the catalogue or the dataset that the model was trained on (catalog=, or --dataset of "
            "'trl-rec recommend' and 'trl-rec serve')"
        )
    return "restore it from a copy of the run folder, or train again"


def settings_of_run(folder: str | Path | None) -> dict[str, Any]:
    """Returns the settings of the model in a run folder: the `surface` of items, the `prompt` as arguments of
    [`PromptFormat.for_catalog`], and how items are ranked. Returns an empty dict if the folder is not a run folder.
    Raises `ValueError` if the model orders candidates.

    The catalogue may be missing, as in a folder that was published without it.
    """
    if folder is not None and (Path(folder) / "ranker.json").is_file():
        raise ValueError(
            f"the model in {folder} orders rated candidates and cannot rank a catalogue; load it with CandidateRanker"
        )
    if folder is None or not (Path(folder) / SETTINGS).is_file():
        return {}
    trained = _trained_record(Path(folder), SETTINGS)
    if trained is not None:
        settings = _read_settings(Path(folder) / SETTINGS)
        return {**settings, "surface": trained.get("surface")}
    settings, catalog = load_run(folder, SETTINGS)
    return {"surface": catalog.surface, **settings}


def _trained_record(folder: Path, name: str) -> dict[str, Any] | None:
    """Returns the record of the catalogue in the settings, if the folder was published without the catalogue.

    Returns None otherwise.
    """
    if (folder / CATALOG / "catalog.json").is_file() or not (folder / name).is_file():
        return None
    record: dict[str, Any] | None = _read_settings(folder / name).get(RECORD)
    return record


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
        raise ValueError(f"{path} does not contain the settings of a run, or lacks the key 'prompt'; {REMEDY}")
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
    """Raises ValueError if the policy in a run folder was trained with items, a surface or semantic IDs other than
    those of `catalog`. Does nothing if `folder` is not a run folder. `where` names the dataset folder in messages.

    Items that are retired in the run folder's catalogue may be missing from `catalog`.
    """
    # 1. Find out which catalogue the policy was trained with. If the run folder was published without its catalogue,
    # use the record of the catalogue in the settings.
    name = "ranker.json" if (Path(folder) / "ranker.json").is_file() else SETTINGS
    record = _trained_record(Path(folder), name)
    same_users = True
    if (Path(folder) / CATALOG / "catalog.json").is_file():
        trained = ItemCatalog.load(Path(folder) / CATALOG)
        if len(catalog) != len(trained) and len(catalog) == trained.num_recommendable:
            trained = trained.without_retired()
        record = _record(trained)
        # A published run folder lacks the semantic IDs of users, so they cannot be compared.
        is_published = trained.user_ids is None and catalog.user_ids is not None
        same_users = not names_users(folder) or is_published or trained.user_surfaces == catalog.user_surfaces
    if record is None:
        return

    # 2. Compare the recorded catalogue with `catalog`.
    subject = f"the policy in {folder} was trained on"
    if record.get("fingerprint") != catalog.fingerprint:
        raise ValueError(
            f"{subject} items other than those in {where}; train the policy again, or pass the dataset that it was "
            "trained on"
        )
    if record.get("surface") != catalog.surface:
        raise ValueError(
            f"{subject} items with the surface {record.get('surface')!r}, not {catalog.surface!r}; set surface: "
            f"{record.get('surface')}"
        )
    if record.get("surfaces") != _record(catalog)["surfaces"] or not same_users:
        raise ValueError(f"{subject} semantic IDs other than those in {where}; train the policy again")


def names_users(folder: str | Path) -> bool:
    """Returns whether the prompts of a run folder's policy contain `{user}`, the user's semantic ID. The prompts of a
    model that orders candidates never do."""
    path = Path(folder) / SETTINGS
    return path.is_file() and "{user}" in (_read_settings(path)["prompt"].get("prompt_head") or "")


def model_folder(model: str | Path) -> str:
    """Returns where the files of a model are. For the hub id of a repository that was pushed from a run folder, this
    is the local copy, which is downloaded if necessary. A folder, a file or any other hub id is returned unchanged."""
    if Path(model).exists():
        return str(model)
    from huggingface_hub import constants

    return _hub_run(str(model), str(constants.HF_HUB_CACHE)) or str(model)


@cache
def _hub_run(repo: str, place: str) -> str | None:
    """Returns the local copy of a hub repository, or None if it has no settings of a run or cannot be reached.

    The result is cached until the process ends, because it takes long until a request to an unreachable hub fails.

    Args:
        repo: The hub id.
        place: The folder in which the hub's files are cached. Used only by `functools.cache`, as part of the key of
            the result.
    """
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError

    for name in (SETTINGS, "ranker.json"):
        try:
            hf_hub_download(repo, name)
        except EntryNotFoundError:
            continue
        except (OSError, ValueError):  # no such repository, or not a valid name; loading the model raises the error
            return None
        return str(local_folder(repo))
    return None


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
