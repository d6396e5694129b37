"""Defines `prepare`, which reads, filters and splits a source, and writes the dataset folder atomically.

The module is not named `prepare`, because it would then hide the function `trl_rec.data.prepare`.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from fnmatch import fnmatchcase
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from datasets import Dataset
from datasets.table import InMemoryTable

from trl_rec.data.card import make_card
from trl_rec.data.dataset import RecDataset, load, read_card, save
from trl_rec.data.filtering import drop_repeats, k_core
from trl_rec.data.indexed_log import IndexedLog, index_log
from trl_rec.data.leaks import check_leaks
from trl_rec.data.log import SPLITS, Log, Options
from trl_rec.data.option_checks import check_options
from trl_rec.data.readers import READERS, locate
from trl_rec.data.splits import split_log, split_windows
from trl_rec.data.windows import index_windows
from trl_rec.files import atomic_folder, clean_up, exclusive, is_temporary, resolved, tidy
from trl_rec.items import ItemCatalog
from trl_rec.ragged import Ragged
from trl_rec.ranges import COUNT, COUNT_FROM_0, SEED


logger = logging.getLogger(__name__)

# Patterns of all files that may be in a dataset folder. A folder with any other file is not overwritten.
OWN = [
    "catalog",
    "catalog/catalog.json",
    "catalog/items.parquet",
    "users.parquet",
    "interactions.parquet",
    *SPLITS,
    *(f"{split}/{name}" for split in SPLITS for name in ("*.arrow", "tmp*", "dataset_info.json", "state.json")),
    "card.json",
    ".lock",
    # Written by `trl-rec tokenize`.
    "catalog/user_ids.parquet",
    "catalog/semantic_ids.json",
    "catalog/semantic_ids.unfinished",
    "vectors",
    "vectors/*.safetensors",
    "id_encoder.json",
    "id_encoder.safetensors",
    "semantic_ids.svg",
]
# Options that a card lists even if they are not set, provided that the reader uses them.
FIRST_OPTIONS = {"columns", "title_column", "group_column", "group_separator", "seed", "toy_users", "toy_items"}
LAYOUT = 1  # increased when existing dataset folders have to be prepared again


def prepare(
    source: str | Path,
    output_dir: str | Path,
    *,
    format: str | None = None,
    split: str | None = None,
    num_held_out: int | None = None,
    min_user_interactions: int = 0,
    min_item_interactions: int = 0,
    columns: Mapping[str, str] | None = None,
    title_column: str | None = None,
    group_column: str | None = None,
    group_separator: str = "|",
    timestamp_format: str | None = None,
    event_column: str | None = None,
    event_ratings: Mapping[str, float | None] | None = None,
    empty_ratings: str = "refuse",
    unknown_items: str = "refuse",
    repeats: str | None = None,
    seed: int = 0,
    toy_users: int = 300,
    toy_items: int = 200,
    overwrite: bool = False,
) -> RecDataset:
    """Makes a dataset folder from an interaction log, and loads it.

    If the folder already exists and was made from the same files with the same settings, it is only loaded.

    Args:
        source (`str` or `Path`): Folder with the files of the source; `"toy"`, which is generated from the seed; or
            `"ml-100k"`, which is downloaded once and cached. Write `"./toy"` for a folder of that name.
        output_dir (`str` or `Path`): The dataset folder. It is created in one step at the end, so a failure leaves no
            incomplete folder.
        format (`str`, *optional*): `table`, `recbole`, `bigrec`, `lcrec`, `ml-100k` or `toy`; detected from the files
            by default.
        split (`str`, *optional*): `"leave_one_out"` (the default), `"leave_last"` or `"time"`. Sources of windows,
            such as `bigrec`, are already split and take no other value than `"windows"`.
        num_held_out (`int`, *optional*): With `"leave_last"`, the number of items per user in the test split, and in
            the validation split before it; 10 by default. Users with fewer than `2 * num_held_out + 1` items are used
            for training only.
        min_user_interactions (`int`, *optional*, defaults to `0`): k-core: users with fewer interactions are dropped,
            repeatedly, until every user and item has enough.
        min_item_interactions (`int`, *optional*, defaults to `0`): k-core: items with fewer interactions are dropped
            in the same way.
        columns (`Mapping[str, str]`, *optional*): For `table`, maps our column names (`user_id item_id timestamp
            rating title`) to the source's.
        title_column (`str`, *optional*): For `recbole`, the item column that contains the title, if it is not `title`,
            `movie_title`, `name` or `item_name`.
        group_column (`str`, *optional*): The item column with the groups (genres, brands) that measures of fairness
            and diversity use.
        group_separator (`str`, *optional*, defaults to `"|"`): Separates the groups of an item if they are given
            as text.
        timestamp_format (`str`, *optional*): Format of timestamps that are neither numbers nor ISO 8601, as in
            `datetime.strptime`: `"%d/%m/%Y"` for `28/03/2024`.
        event_column (`str`, *optional*): For `table` and `recbole`, the column of the interactions that contains
            events, such as `view` and `purchase`. Their `event_ratings` become the ratings, and replace any column
            `rating`.
        event_ratings (`Mapping[str, float | None]`, *optional*): The rating of each event, such as
            `{"view": 2, "cart": 4, "purchase": 5}`. Interactions with an event whose rating is None are dropped.
        empty_ratings (`str`, *optional*, defaults to `"refuse"`): `"drop"` drops interactions without a rating;
            `"refuse"` raises a ValueError.
        unknown_items (`str`, *optional*, defaults to `"refuse"`): `"drop"` drops interactions with items that are not
            in the item table; `"refuse"` raises a ValueError.
        repeats (`str`, *optional*): Which interactions to keep if a user chose an item several times: `"first"`,
            `"last"`, or `"keep"` for all. By default all are kept, with a warning if targets are in their histories,
            because such targets cannot be recommended if histories are excluded. If all targets of a split are in
            their histories, a ValueError is raised, except for windows.
        seed (`int`, *optional*, defaults to `0`): Seed of the toy log.
        toy_users (`int`, *optional*, defaults to `300`): Number of users of the toy log.
        toy_items (`int`, *optional*, defaults to `200`): Number of items of the toy log.
        overwrite (`bool`, *optional*, defaults to `False`): Whether to replace an existing dataset folder. A shell
            whose current directory is that folder has to enter it again (`cd .`).

    Returns:
        [`RecDataset`], as [`load`] returns it.
    """
    # 1. Find the files, and collect the settings that affect the contents of the dataset.
    if not str(output_dir):
        raise ValueError("output_dir is empty; name the dataset folder")
    output_dir = resolved(output_dir)
    format, files = locate(source, format)
    if isinstance(columns, Mapping):
        columns = {our_name: name for our_name, name in columns.items() if our_name != name} or None
    options = Options(
        columns=columns,
        title_column=title_column,
        group_column=group_column,
        group_separator=group_separator,
        timestamp_format=timestamp_format,
        empty_ratings=empty_ratings,
        event_column=event_column,
        event_ratings=event_ratings,
        seed=seed,
        toy_users=toy_users,
        toy_items=toy_items,
    )
    check_options(options, unknown_items, repeats)
    minima = {"min_user_interactions": min_user_interactions, "min_item_interactions": min_item_interactions}
    for name, number in minima.items():
        COUNT_FROM_0.check(name, number)
    SEED.check("seed", seed)
    settings = _settings(format, _split_settings(format, split, num_held_out), minima, options)
    settings |= _row_settings(format, unknown_items, repeats)
    sources = {path.name: _sha256(path) for path in files.values()}
    if _is_made(output_dir, settings, sources, overwrite):
        logger.info(
            "%s already exists and was made from the same files with the same settings; nothing was changed",
            output_dir,
        )
        tidy(output_dir)
        return load(output_dir)
    if output_dir.is_mount():
        raise ValueError(
            f"{output_dir} is a mount point, which cannot be replaced; choose a folder in it, such as "
            f"{output_dir}/data"
        )

    # 2. Make the dataset, unless another process has made it in the meantime. First clean up what a killed process may
    # have left under a temporary name.
    with exclusive(output_dir):
        clean_up(output_dir)
        if not _is_made(output_dir, settings, sources, overwrite):
            logger.info("reading %s (%s)", source, format)
            log = READERS[format].read(files, options)
            _make(output_dir, log, settings, sources, overwrite)
    return load(output_dir)


def _make(output_dir: Path, log: Log, settings: dict[str, Any], sources: dict[str, str], overwrite: bool) -> None:
    """Filters and splits a log, and writes the dataset folder."""
    # 1. Filter and split.
    made = _from_windows(log) if log.windows else _from_interactions(log, settings)
    splits = _checked_splits(made.splits, settings["split"])
    catalog = _make_catalog(made.log.items, log.group_column)
    card = make_card(
        made.log,
        catalog,
        made.splits,
        settings=settings,
        sources=sources,
        dropped=made.dropped,
        cold_users=made.cold_users,
        left_out={**log.left_out, **made.left_out},
        merged_timestamps=made.merged_timestamps,
        notes=log.notes,
    )
    _report_repeats(card, settings)

    # 2. Write all files to a temporary folder next to the final one, then rename it. The old folder is checked again
    # before it is deleted, because a user may have added a file since the first check.
    check_old = partial(_check_own, name=output_dir) if overwrite else None
    logger.info("writing %s", output_dir)
    with atomic_folder(output_dir, check_old=check_old) as folder:
        save(folder, catalog, made.log.users, made.log.to_table(), splits, card)


@dataclass(frozen=True, eq=False)
class _Made:
    """A filtered log, its splits, and counts for the card."""

    log: IndexedLog
    splits: dict[str, pa.Table]
    cold_users: dict[str, int]
    dropped: dict[str, int]
    left_out: dict[str, int] = field(default_factory=dict)
    merged_timestamps: int = 0


def _split_settings(format: str, split: str | None, num_held_out: int | None) -> dict[str, Any]:
    """Returns the settings of the split: its rule, and `num_held_out` if the rule uses it."""
    reader = READERS[format]
    if reader.windowed:
        if split not in (None, "windows"):
            raise ValueError(_is_windowed(format))
        split = "windows"
    elif split not in (None, "leave_one_out", "leave_last", "time"):
        raise ValueError(f"unknown split {split!r}; choose leave_one_out, leave_last or time")
    split = split or "leave_one_out"
    if split == "time" and not reader.has_timestamps:
        raise ValueError("the source has no timestamps to split by; use split leave_one_out")

    if split == "leave_last":
        num_held_out = 10 if num_held_out is None else num_held_out
        COUNT.check("num_held_out", num_held_out)
        return {"split": split, "num_held_out": num_held_out}
    if num_held_out is not None:
        raise ValueError(f"num_held_out has no effect with the split {split}; leave it out, or choose leave_last")
    return {"split": split}


def _settings(format: str, split: dict[str, Any], minima: dict[str, int], options: Options) -> dict[str, Any]:
    """Returns all settings that affect the contents of the dataset, except those of `_row_settings`.

    Raises ValueError if an option would have no effect.
    """
    reader = READERS[format]
    values = asdict(options)
    for name, default in asdict(Options()).items():
        # A seed is always allowed, because recipes pass the same seed to all commands.
        if name not in reader.options | {"seed"} and values[name] != default:
            raise ValueError(f"{name} has no effect with the format {format}; leave it out")
    if reader.windowed and max(minima.values()) > 0:
        raise ValueError(_is_windowed(format))
    # List newer options only if they are set, so that the same settings still equal those in cards of older folders.
    used = {name: values[name] for name in sorted(reader.options) if name in FIRST_OPTIONS or values[name] is not None}
    used = {name: value for name, value in used.items() if name in FIRST_OPTIONS or value != "refuse"}
    return {"layout": LAYOUT, "format": format, **split, **minima, **used}


def _row_settings(format: str, unknown_items: str, repeats: str | None) -> dict[str, Any]:
    """Returns the settings that determine which rows are kept, if they differ from the defaults."""
    settings = {"unknown_items": unknown_items, "repeats": repeats}
    settings = {name: value for name, value in settings.items() if value not in (None, "refuse")}
    if settings and READERS[format].windowed:
        raise ValueError(
            f"{format} data is already split by its source, so no rows can be dropped; leave out "
            f"{' and '.join(settings)}"
        )
    return settings


def _is_windowed(format: str) -> str:
    """Returns the error message for settings that have no effect on a windowed source."""
    return (
        f"{format} data is already filtered and split by its source; leave out split, min_user_interactions and "
        "min_item_interactions"
    )


def _sha256(path: Path) -> str:
    """Returns the SHA-256 of a file, or of all files in a folder of parts."""
    if path.is_dir():
        parts = [part for part in sorted(path.rglob("*")) if part.is_file()]
        names = [f"{part.relative_to(path).as_posix()} {_sha256(part)}" for part in parts]
        return hashlib.sha256("\n".join(names).encode()).hexdigest()
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _report_repeats(card: Mapping[str, Any], settings: Mapping[str, Any]) -> None:
    """Warns about targets that are in their histories, unless `repeats` is set.

    Raises ValueError if all targets of a split are in their histories, except in splits of windows.
    """
    repeated = card["repeated_targets"]
    every = [name for name, count in repeated.items() if count and count == card["targets"][name]]
    if "repeats" in settings or not card["repeated_interactions"]:
        return
    if settings["split"] == "windows":
        remedy = "measure with exclude_history: false"
    else:
        remedy = "set repeats: first or last, or set repeats: keep and measure with exclude_history: false"
        if every:
            raise ValueError(
                f"every target of the {every[0]} split is in its user's history, so nothing can be measured when "
                f"histories are excluded; {remedy}"
            )
    if any(repeated.values()):
        logger.warning(
            "%d of %d validation and test targets are in their user's history, and cannot be recommended when "
            "histories are excluded; to avoid this, %s",
            sum(repeated.values()),
            card["targets"]["validation"] + card["targets"]["test"],
            remedy,
        )


def _is_made(output_dir: Path, settings: dict[str, Any], sources: dict[str, str], overwrite: bool) -> bool:
    """Returns whether the folder contains the dataset of these settings and sources, and can be used as it is.

    With `overwrite`, the result is always False. Raises ValueError if the folder contains anything that must not be
    replaced.
    """
    if not (output_dir / "card.json").is_file():
        if output_dir.exists() and (not output_dir.is_dir() or any(output_dir.iterdir())):
            raise ValueError(f"{output_dir} exists and is not a dataset folder; choose another output_dir")
        return False

    card = read_card(output_dir)  # raises if the card is not the card of a dataset, even with overwrite
    if overwrite:
        _check_own(output_dir, output_dir)
        return False

    written = json.loads(json.dumps(settings))  # as in the card, since JSON turns tuples into lists
    if (card["settings"], card["sources"]) != (written, sources):
        raise ValueError(
            f"{output_dir} is a dataset that was made with other settings or from other files; replace it with "
            "overwrite=True (--overwrite true of trl-rec prepare)"
        )
    return True


def _check_own(folder: Path, name: Path) -> None:
    """Raises ValueError if a dataset folder contains files of the user. The message calls the folder `name`."""
    for path in sorted(folder.rglob("*")):
        relative = path.relative_to(folder).as_posix()
        if not is_temporary(path) and not any(fnmatchcase(relative, pattern) for pattern in OWN):
            raise ValueError(f"{name} also contains {relative}, which would be deleted; move it elsewhere first")


def _from_interactions(log: Log, settings: dict[str, Any]) -> _Made:
    """Filters and splits a log."""
    # 1. Replace ids by row numbers, and drop repeated interactions.
    indexed, counts = index_log(log, drop_unknown_items=settings.get("unknown_items") == "drop")
    left_out = {"unknown_items": counts["unknown_items"]}
    if counts["merged_timestamps"]:
        logger.warning(
            "%d timestamps differ from the previous one by less than float64 can represent; their order is kept",
            counts["merged_timestamps"],
        )
    if settings.get("repeats") in ("first", "last"):
        num_interactions = len(indexed.user)
        indexed = drop_repeats(indexed, settings["repeats"])
        left_out["repeats"] = num_interactions - len(indexed.user)

    # 2. Filter.
    kept = k_core(indexed, settings["min_user_interactions"], settings["min_item_interactions"])
    dropped = {
        "users": indexed.users.num_rows - kept.users.num_rows,
        "items": indexed.items.num_rows - kept.items.num_rows,
        "interactions": len(indexed.user) - len(kept.user),
    }

    # 3. Split.
    sizes = (len(kept.user), kept.users.num_rows, kept.items.num_rows)
    logger.info("splitting %d interactions of %d users and %d items", *sizes)
    splits, cold_users = split_log(kept, settings["split"], settings.get("num_held_out", 1))
    return _Made(kept, splits, cold_users, dropped, left_out, counts["merged_timestamps"])


def _from_windows(log: Log) -> _Made:
    """Uses the windows and splits of the source unchanged."""
    indexed, windows = index_windows(log)
    logger.info("using the source's %s windows", " + ".join(str(len(windows[split].user)) for split in SPLITS))
    cold_users = {}
    for split in ("validation", "test"):
        cold_users[split] = len(np.setdiff1d(windows[split].user, windows["train"].user))
    return _Made(indexed, split_windows(windows), cold_users, {"users": 0, "items": 0, "interactions": 0})


def _checked_splits(tables: dict[str, pa.Table], rule: str) -> dict[str, Dataset]:
    """Converts the splits to datasets. Raises ValueError if a split is empty or overlaps with another."""
    for name, table in tables.items():
        if table.num_rows == 0:
            raise ValueError(
                f"the {name} split is empty with split {rule}; use a longer log, lower min_user_interactions and "
                "min_item_interactions, or choose another split"
            )
    splits = {name: Dataset(InMemoryTable(table), split=name) for name, table in tables.items()}
    check_leaks(**splits, split=rule)
    return splits


def _make_catalog(items: pa.Table, group_column: str | None) -> ItemCatalog:
    """Makes the catalogue. A column `semantic_id` becomes its semantic IDs."""
    if "semantic_id" not in items.column_names:
        return ItemCatalog(items, group_column=group_column)
    tokens = Ragged.from_arrow(items["semantic_id"])
    return ItemCatalog(items.drop_columns(["semantic_id"]), group_column=group_column, semantic_ids=tokens)
