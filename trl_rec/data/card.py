"""The card of a dataset: what it contains, where it comes from and how it was made.

The card contains no time of day, so the same source and settings give the same card.
"""

from __future__ import annotations

import platform
from collections.abc import Mapping
from typing import Any

import datasets
import numpy as np
import pyarrow as pa

from trl_rec.data.filtering import is_repeated
from trl_rec.data.indexed_log import IndexedLog
from trl_rec.data.splits import describe_rule
from trl_rec.items import ItemCatalog
from trl_rec.ragged import Ragged
from trl_rec.version import __version__


def make_card(
    log: IndexedLog,
    catalog: ItemCatalog,
    splits: Mapping[str, pa.Table],
    *,
    settings: Mapping[str, Any],
    sources: Mapping[str, str],
    dropped: Mapping[str, int],
    cold_users: Mapping[str, int],
    left_out: Mapping[str, int],
    merged_timestamps: int,
    notes: tuple[str, ...],
) -> dict[str, Any]:
    """The card's fields, in the order in which they are written.

    Fields that their names do not explain:

    - `rows`, `targets`: counts per split.
    - `sparsity`: 1 - interactions / (users x items).
    - `tied_timestamps`: share of the interactions that have the timestamp of another one of the same user.
    - `cold_users`: per later split, the number of users who have items in the split but no history before it. Such
      users have no row in the split. For a windowed source, the number of users without a training row.
    - `cold_targets`: per split, the number of targets that occur in no training row.
    - `repeated_interactions`: number of interactions with an item that the user had chosen before.
    - `repeated_targets`: per split, the number of targets that are in their row's history. Recommenders that exclude
      histories cannot recommend them.
    - `left_out`: numbers of interactions that were left out on request: `events`, `empty_ratings`, `unknown_items` and
      `repeats`.
    - `merged_timestamps`: number of interactions whose timestamp differs from that of the interaction before, but not
      as a float64. Their order is kept.

    Args:
        log: The interactions after filtering.
        catalog: The items.
        splits: The rows of each split.
        settings: Everything that decides the dataset besides its source.
        sources: SHA-256 of each file of the source.
        dropped: Numbers of users, items and interactions that filtering dropped.
        cold_users: Number of users without a history, per later split.
        left_out: Number of interactions that were left out on request, by reason.
        merged_timestamps: As above.
        notes: Sentences of the reader about the source.
    """
    num_users = log.users.num_rows
    num_items = len(catalog)
    num_interactions = len(log.user)
    return {
        "format": settings["format"],
        "num_users": num_users,
        "num_items": num_items,
        "num_interactions": num_interactions,
        "rows": {name: rows.num_rows for name, rows in splits.items()},
        "targets": {name: len(_items(rows, "targets")) for name, rows in splits.items()},
        "sparsity": round(1 - num_interactions / (num_users * num_items), 6),
        "has_ratings": log.rating is not None,
        "split": settings["split"],
        "split_rule": describe_rule(settings["split"], settings.get("num_held_out", 1)),
        "tied_timestamps": _share_of_ties(log, splits, settings["split"]),
        "dropped": dict(dropped),
        "cold_users": dict(cold_users),
        "cold_targets": _count_cold_targets(splits, num_items),
        "repeated_interactions": int(is_repeated(log).sum()),
        "repeated_targets": {name: _count_repeated_targets(splits[name]) for name in ("validation", "test")},
        "left_out": {reason: count for reason, count in left_out.items() if count},
        "merged_timestamps": merged_timestamps,
        "notes": list(notes),
        "sources": dict(sources),
        "settings": dict(settings),
        "fingerprint": catalog.fingerprint,
        # Only for people: `prepare` ignores them, so an upgrade does not make a dataset outdated.
        "versions": {
            "python": platform.python_version(),
            "trl-rec": __version__,
            "datasets": datasets.__version__,
            "numpy": np.__version__,
            "pyarrow": pa.__version__,
        },
    }


def describe(card: Mapping[str, Any]) -> str:
    """The card in a few lines for people."""
    rows = ", ".join(f"{name} {count:,}" for name, count in card["rows"].items())
    dropped = ", ".join(f"{count:,} {name}" for name, count in card["dropped"].items() if count)
    lines = [
        f"{card['num_users']:,} users, {card['num_items']:,} items, {card['num_interactions']:,} interactions",
        f"split {card['split']}: {card['split_rule']}",
        f"rows: {rows}",
        f"{card['tied_timestamps']:.0%} of the interactions share their timestamp with another of the same user",
        *card["notes"],
    ]
    if dropped:
        lines.append(f"dropped: {dropped}")
    left_out = ", ".join(f"{count:,} for {reason}" for reason, count in card.get("left_out", {}).items())
    if left_out:
        lines.append(f"interactions left out on request: {left_out.replace('_', ' ')}")
    if card.get("repeated_interactions"):
        lines.append(f"{card['repeated_interactions']:,} interactions repeat an item that the user had chosen before")
    return "\n".join(lines)


def _items(rows: pa.Table, column: str) -> np.ndarray:
    """The items of a list column, all rows in one array."""
    return Ragged.from_arrow(rows[column]).values


def _share_of_ties(log: IndexedLog, splits: Mapping[str, pa.Table], split: str) -> float:
    """Share of the interactions, or of the windows, that have the timestamp of another one of the same user."""
    user = log.user
    timestamp = log.timestamp
    if split == "windows":
        # The log of windows is derived from them; only the rows have timestamps of their own.
        user = np.concatenate([rows["user"].to_numpy() for rows in splits.values()])
        timestamp = np.concatenate([rows["timestamp"].to_numpy() for rows in splits.values()])
        order = np.lexsort((timestamp, user))
        user = user[order]
        timestamp = timestamp[order]

    # Sorted by user and time, ties are neighbours: a row is tied with the one before it or the one after it.
    same_as_next = (np.diff(user) == 0) & (np.diff(timestamp) == 0)
    tied = np.concatenate([[False], same_as_next]) | np.concatenate([same_as_next, [False]])  # (num_rows,)
    return round(float(tied.mean()), 4)


def _count_cold_targets(splits: Mapping[str, pa.Table], num_items: int) -> dict[str, int]:
    """Per later split, the number of targets that occur in no training row."""
    seen = np.zeros(num_items, bool)  # items that occur in a training row
    for column in ("history", "targets"):
        seen[_items(splits["train"], column)] = True
    return {name: int((~seen[_items(splits[name], "targets")]).sum()) for name in ("validation", "test")}


def _count_repeated_targets(rows: pa.Table) -> int:
    """The number of targets that are in the history of their row."""
    keys = []
    for column in ("targets", "history"):
        items = Ragged.from_arrow(rows[column])
        keys.append(items.row_ids.astype(np.int64) * (1 << 32) + items.values)  # item indices are int32
    return int(np.isin(*keys).sum())
