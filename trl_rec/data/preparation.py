"""`prepare`: reads a source, filters and splits it, and saves one dataset folder, completely or not at all.

The module is not called `prepare` because that would hide the function of that name in `trl_rec.data`.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Mapping
from dataclasses import asdict, dataclass
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
from trl_rec.data.filtering import k_core
from trl_rec.data.indexed_log import IndexedLog, index_log
from trl_rec.data.leaks import check_leaks
from trl_rec.data.log import SPLITS, Log, Options
from trl_rec.data.readers import READERS, locate
from trl_rec.data.splits import split_log, split_windows
from trl_rec.data.windows import index_windows
from trl_rec.files import atomic_folder, clean_up, exclusive, is_temporary, tidy
from trl_rec.items import ItemCatalog
from trl_rec.ragged import Ragged
from trl_rec.ranges import COUNT, COUNT_FROM_0, SEED


logger = logging.getLogger(__name__)

# Everything that may be in a dataset folder, as patterns; overwriting deletes nothing else.
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
LAYOUT = 1  # raised when the folders of earlier versions have to be prepared again


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
    seed: int = 0,
    toy_users: int = 300,
    toy_items: int = 200,
    overwrite: bool = False,
) -> RecDataset:
    """Makes a dataset folder from an interaction log, and loads it.

    If the folder was made before from the same files with the same settings, it is only loaded.

    Args:
        source (`str` or `Path`): Folder of the source's files; or `"toy"`, which is generated from the seed; or
            `"ml-100k"`, which is downloaded once and cached. Write `"./toy"` for a folder of that name.
        output_dir (`str` or `Path`): The dataset folder. It appears when everything is done; a failure leaves nothing
            behind.
        format (`str`, *optional*): `table`, `recbole`, `bigrec`, `lcrec`, `ml-100k` or `toy`; detected from the files
            by default.
        split (`str`, *optional*): `"leave_one_out"` (the default), `"leave_last"` or `"time"`. Sources of windows,
            such as `bigrec`, are split already.
        num_held_out (`int`, *optional*): With `"leave_last"`, the number of items per user in the test split, and as
            many before them in the validation split; 10 by default. Users with fewer than `2 * num_held_out + 1`
            items are only trained on.
        min_user_interactions (`int`, *optional*, defaults to `0`): k-core: users with fewer interactions are dropped,
            repeatedly, until every user and item has enough.
        min_item_interactions (`int`, *optional*, defaults to `0`): k-core: items with fewer interactions are dropped
            in the same way.
        columns (`Mapping[str, str]`, *optional*): For `table`, our column names (`user_id item_id timestamp rating
            title`) to the source's.
        title_column (`str`, *optional*): For `recbole`, the item column that contains the title, if it is not `title`,
            `movie_title`, `name` or `item_name`.
        group_column (`str`, *optional*): The item column with the groups (genres, brands) that measures of fairness
            and diversity use.
        group_separator (`str`, *optional*, defaults to `"|"`): Separates the groups of one item where they are text.
        seed (`int`, *optional*, defaults to `0`): Seed of the toy log.
        toy_users (`int`, *optional*, defaults to `300`): Number of users of the toy log.
        toy_items (`int`, *optional*, defaults to `200`): Number of items of the toy log.
        overwrite (`bool`, *optional*, defaults to `False`): Whether to replace a dataset folder that was made with
            other settings or from other files. A shell whose current directory is that folder has to enter it again
            (`cd .`).

    Returns:
        [`RecDataset`], as [`load`] returns it.
    """
    # 1. Find the files, and collect the settings that decide what the dataset contains.
    output_dir = Path(output_dir).resolve()  # `typo/../folder` is `folder`, whether or not there is a `typo`
    format, files = locate(source, format)
    columns = {our_name: name for our_name, name in (columns or {}).items() if our_name != name} or None
    options = Options(columns, title_column, group_column, group_separator, seed, toy_users, toy_items)
    minima = {"min_user_interactions": min_user_interactions, "min_item_interactions": min_item_interactions}
    for name, number in minima.items():
        COUNT_FROM_0.check(name, number)
    SEED.check("seed", seed)
    settings = _settings(format, _split_settings(format, split, num_held_out), minima, options)
    sources = {path.name: _sha256(path) for path in files.values()}
    if _is_made(output_dir, settings, sources, overwrite):
        logger.info("%s exists already, made from the same files with the same settings", output_dir)
        tidy(output_dir)
        return load(output_dir)
    if output_dir.is_mount():
        raise ValueError(f"{output_dir} is where a disk is mounted; choose a folder in it, such as {output_dir}/data")

    # 2. Make it. In the meantime another process may have made it, or a killed process may have left it under another
    # name.
    with exclusive(output_dir):
        clean_up(output_dir)
        if not _is_made(output_dir, settings, sources, overwrite):
            logger.info("reading %s (%s)", source, format)
            log = READERS[format].read(files, options)
            _make(output_dir, log, settings, sources, overwrite)
    return load(output_dir)


def _make(output_dir: Path, log: Log, settings: dict[str, Any], sources: dict[str, str], overwrite: bool) -> None:
    """Makes the dataset folder from a log."""
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
        notes=log.notes,
    )

    # 2. Write all files to a folder beside the final one, then rename. A file that a user has put into the old folder
    # since the first check is noticed before anything is deleted.
    check_old = partial(_check_own, name=output_dir) if overwrite else None
    logger.info("writing %s", output_dir)
    with atomic_folder(output_dir, check_old=check_old) as folder:
        save(folder, catalog, made.log.users, made.log.to_table(), splits, card)


@dataclass(frozen=True, eq=False)
class _Made:
    """A log after filtering, its splits, and counts for the card."""

    log: IndexedLog
    splits: dict[str, pa.Table]
    cold_users: dict[str, int]
    dropped: dict[str, int]


def _split_settings(format: str, split: str | None, num_held_out: int | None) -> dict[str, Any]:
    """The settings of the split: its rule, and `num_held_out` if the rule uses it."""
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
    """Everything that decides the dataset besides its source; raises for an option that would have no effect."""
    reader = READERS[format]
    values = asdict(options)
    for name, default in asdict(Options()).items():
        # A seed is allowed everywhere, since recipes give one to all verbs.
        if name not in reader.options | {"seed"} and values[name] != default:
            raise ValueError(f"the format {format} takes no {name}; leave it out")
    if reader.windowed and max(minima.values()) > 0:
        raise ValueError(_is_windowed(format))
    used = {name: values[name] for name in sorted(reader.options)}
    return {"layout": LAYOUT, "format": format, **split, **minima, **used}


def _is_windowed(format: str) -> str:
    """The message for settings that a windowed source does not take."""
    return f"{format} data is filtered and split by its source; leave out split and the k-core's minima"


def _sha256(path: Path) -> str:
    """The checksum of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _is_made(output_dir: Path, settings: dict[str, Any], sources: dict[str, str], overwrite: bool) -> bool:
    """Whether the folder is this very dataset; raises if it is something that may not be replaced."""
    if not (output_dir / "card.json").is_file():
        if output_dir.exists() and (not output_dir.is_dir() or any(output_dir.iterdir())):
            raise ValueError(f"{output_dir} exists and is not a dataset folder; choose another output_dir")
        return False

    card = read_card(output_dir)  # raises for the card of something else, even with overwrite
    if overwrite:
        _check_own(output_dir, output_dir)
        return False

    written = json.loads(json.dumps(settings))  # as the card has them: JSON turns tuples into lists
    if (card["settings"], card["sources"]) != (written, sources):
        raise ValueError(
            f"{output_dir} is a dataset made with other settings or from other files; replace it with overwrite=True"
        )
    return True


def _check_own(folder: Path, name: Path) -> None:
    """Raises if a dataset folder, which the message calls `name`, contains files that we have not written."""
    for path in sorted(folder.rglob("*")):
        relative = path.relative_to(folder).as_posix()
        if not is_temporary(path) and not any(fnmatchcase(relative, pattern) for pattern in OWN):
            raise ValueError(
                f"{name} also contains {relative}, which overwriting would delete; move it elsewhere first"
            )


def _from_interactions(log: Log, settings: dict[str, Any]) -> _Made:
    """Filters and splits a log."""
    indexed = index_log(log)
    kept = k_core(indexed, settings["min_user_interactions"], settings["min_item_interactions"])
    dropped = {
        "users": indexed.users.num_rows - kept.users.num_rows,
        "items": indexed.items.num_rows - kept.items.num_rows,
        "interactions": len(indexed.user) - len(kept.user),
    }
    counts = (len(kept.user), kept.users.num_rows, kept.items.num_rows)
    logger.info("splitting %d interactions of %d users and %d items", *counts)
    splits, cold_users = split_log(kept, settings["split"], settings.get("num_held_out", 1))
    return _Made(kept, splits, cold_users, dropped)


def _from_windows(log: Log) -> _Made:
    """Takes the source's windows and splits as they are."""
    indexed, windows = index_windows(log)
    logger.info("using the source's %s windows", " + ".join(str(len(windows[split].user)) for split in SPLITS))
    cold_users = {}
    for split in ("validation", "test"):
        cold_users[split] = len(np.setdiff1d(windows[split].user, windows["train"].user))
    return _Made(indexed, split_windows(windows), cold_users, {"users": 0, "items": 0, "interactions": 0})


def _checked_splits(tables: dict[str, pa.Table], rule: str) -> dict[str, Dataset]:
    """The splits as datasets; raises if one is empty or leaks into another."""
    for name, table in tables.items():
        if table.num_rows == 0:
            raise ValueError(
                f"the {name} split is empty under {rule}; give a longer log, lower minima, or another split"
            )
    splits = {name: Dataset(InMemoryTable(table), split=name) for name, table in tables.items()}
    check_leaks(**splits, split=rule)
    return splits


def _make_catalog(items: pa.Table, group_column: str | None) -> ItemCatalog:
    """The catalogue, with the semantic IDs of the column `semantic_id` if the source has them."""
    if "semantic_id" not in items.column_names:
        return ItemCatalog(items, group_column=group_column)
    tokens = Ragged.from_arrow(items["semantic_id"])
    return ItemCatalog(items.drop_columns(["semantic_id"]), group_column=group_column, semantic_ids=tokens)
