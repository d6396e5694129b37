"""Makes the contents of a dataset from a source: reads the log, filters and splits it, and makes the catalogue."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from datasets import Dataset
from datasets.table import InMemoryTable

from trl_rec.data.filtering import drop_repeats, k_core
from trl_rec.data.indexed_log import IndexedLog, code_log, place_unlisted, separate_unlisted, sort_log
from trl_rec.data.leaks import check_leaks
from trl_rec.data.log import SPLITS, Log, Options, Reader
from trl_rec.data.splits import split_log, split_windows
from trl_rec.data.windows import index_windows
from trl_rec.items import ItemCatalog
from trl_rec.ragged import Ragged


logger = logging.getLogger(__name__)


def read_and_split(reader: Reader, files: dict[str, Path], options: Options, settings: dict[str, Any]) -> Made:
    """Reads a log, filters it and splits it.

    If the source consists of windows (a history and its target), it is already split, and is used unchanged.
    """
    # 1. Read the log, and replace ids by row numbers in the tables of users and items.
    log = reader.read(files, options)
    if log.windows:
        return _from_windows(log)
    coded, num_unknown = code_log(log, unknown_items=settings.get("unknown_items", "refuse"))
    left_out = {**log.left_out, "unknown_items": num_unknown}

    # 2. Sort. First release the table that the coded log replaces, and the memory that Arrow keeps for later use.
    log = replace(log, interactions=None)
    pa.default_memory_pool().release_unused()
    indexed, num_merged = sort_log(coded)
    unlisted_ids = coded.unlisted_ids
    del coded
    if num_merged:
        logger.warning(
            "%d timestamps differ from the user's previous timestamp by less than float64 can represent; "
            "such interactions are sorted by their exact timestamps",
            num_merged,
        )

    # 3. Filter. Each step replaces `indexed`, so that earlier logs do not stay in memory.
    if settings.get("repeats") in ("first", "last"):
        num_interactions = len(indexed.user)
        indexed = drop_repeats(indexed, settings["repeats"])
        left_out["repeats"] = num_interactions - len(indexed.user)
    unlisted = None
    if unlisted_ids is not None:
        indexed, unlisted = separate_unlisted(indexed, unlisted_ids)
    users = indexed.users
    sizes = _sizes(indexed)
    indexed = k_core(indexed, settings["min_user_interactions"], settings["min_item_interactions"])
    kept = _sizes(indexed)
    dropped = {name: size - kept[name] for name, size in sizes.items()}

    # 4. Split.
    logger.info("splitting %d interactions (%d items, %d users)", *reversed(kept.values()))
    splits, cold_users = split_log(indexed, settings["split"], settings.get("num_held_out", 1))
    if unlisted is not None:
        num_unlisted = unlisted.num_rows
        unlisted = place_unlisted(unlisted, users, indexed)
        left_out["unknown_items"] += num_unlisted - unlisted.num_rows  # interactions of dropped users
        logger.info("keeping %d interactions with unknown items, for use in histories only", unlisted.num_rows)
    return Made(
        indexed,
        splits,
        cold_users,
        dropped,
        group_column=log.group_column,
        left_out=left_out,
        merged_timestamps=num_merged,
        unlisted=unlisted,
        notes=log.notes,
    )


@dataclass(frozen=True, eq=False)
class Made:
    """A filtered log, its splits, and counts for the card."""

    log: IndexedLog
    splits: dict[str, pa.Table]
    cold_users: dict[str, int]
    dropped: dict[str, int]
    group_column: str | None = None
    left_out: dict[str, int] = field(default_factory=dict)
    merged_timestamps: int = 0
    unlisted: pa.Table | None = None  # interactions with items that the catalogue lacks, as in `RecDataset`
    notes: tuple[str, ...] = ()


def checked_splits(tables: dict[str, pa.Table], rule: str) -> dict[str, Dataset]:
    """Converts the splits to datasets.

    Raises ValueError if a split is empty, or if validation or test items leak into training rows.
    """
    for name, table in tables.items():
        if table.num_rows == 0:
            raise ValueError(
                f"the {name} split is empty with the split rule {rule!r}; use a longer log, lower "
                "min_user_interactions and min_item_interactions, or choose another split"
            )
    splits = {name: Dataset(InMemoryTable(table), split=name) for name, table in tables.items()}
    check_leaks(**splits, split=rule)
    return splits


def make_catalog(items: pa.Table, group_column: str | None, license: str | None) -> ItemCatalog:
    """Makes the catalogue. Its semantic IDs are taken from the column `semantic_id` of `items`, if there is one."""
    if "semantic_id" not in items.column_names:
        return ItemCatalog(items, group_column=group_column, license=license)
    tokens = Ragged.from_arrow(items["semantic_id"])
    items = items.drop_columns(["semantic_id"])
    return ItemCatalog(items, group_column=group_column, semantic_ids=tokens, license=license)


def _sizes(log: IndexedLog) -> dict[str, int]:
    """Returns the numbers of users, items and interactions."""
    return {"users": log.users.num_rows, "items": log.items.num_rows, "interactions": len(log.user)}


def _from_windows(log: Log) -> Made:
    """Uses the windows and splits of the source unchanged."""
    indexed, windows = index_windows(log)
    counts = ", ".join(f"{split} {len(windows[split].user)}" for split in SPLITS)
    logger.info("using the windows of the source (%s)", counts)
    cold_users = {}
    for split in ("validation", "test"):
        cold_users[split] = len(np.setdiff1d(windows[split].user, windows["train"].user))
    return Made(
        indexed,
        split_windows(windows),
        cold_users,
        dict.fromkeys(_sizes(indexed), 0),
        group_column=log.group_column,
        left_out=dict(log.left_out),
        notes=log.notes,
    )
