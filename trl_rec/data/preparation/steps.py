"""The steps that make the contents of a dataset from a log: filtering, splitting, and the catalogue."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
from datasets import Dataset
from datasets.table import InMemoryTable

from trl_rec.data.filtering import drop_repeats, k_core
from trl_rec.data.indexed_log import IndexedLog, index_log
from trl_rec.data.leaks import check_leaks
from trl_rec.data.log import SPLITS, Log
from trl_rec.data.splits import split_log, split_windows
from trl_rec.data.windows import index_windows
from trl_rec.items import ItemCatalog
from trl_rec.ragged import Ragged


logger = logging.getLogger(__name__)


def filter_and_split(log: Log, settings: dict[str, Any]) -> Made:
    """Filters and splits a log. Windows, which the source has already filtered and split, are used unchanged."""
    return _from_windows(log) if log.windows else _from_interactions(log, settings)


@dataclass(frozen=True, eq=False)
class Made:
    """A filtered log, its splits, and counts for the card."""

    log: IndexedLog
    splits: dict[str, pa.Table]
    cold_users: dict[str, int]
    dropped: dict[str, int]
    left_out: dict[str, int] = field(default_factory=dict)
    merged_timestamps: int = 0


def checked_splits(tables: dict[str, pa.Table], rule: str) -> dict[str, Dataset]:
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


def make_catalog(items: pa.Table, group_column: str | None) -> ItemCatalog:
    """Makes the catalogue. If `items` has a column `semantic_id`, it becomes the semantic IDs of the catalogue."""
    if "semantic_id" not in items.column_names:
        return ItemCatalog(items, group_column=group_column)
    tokens = Ragged.from_arrow(items["semantic_id"])
    return ItemCatalog(items.drop_columns(["semantic_id"]), group_column=group_column, semantic_ids=tokens)


def _from_interactions(log: Log, settings: dict[str, Any]) -> Made:
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
    return Made(kept, splits, cold_users, dropped, left_out, counts["merged_timestamps"])


def _from_windows(log: Log) -> Made:
    """Uses the windows and splits of the source unchanged."""
    indexed, windows = index_windows(log)
    logger.info("using the source's %s windows", " + ".join(str(len(windows[split].user)) for split in SPLITS))
    cold_users = {}
    for split in ("validation", "test"):
        cold_users[split] = len(np.setdiff1d(windows[split].user, windows["train"].user))
    return Made(indexed, split_windows(windows), cold_users, {"users": 0, "items": 0, "interactions": 0})
