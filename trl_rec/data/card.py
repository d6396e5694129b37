"""The card of a dataset: what is in it, where it comes from and how it was made.

It tells no time of day: the same source and settings give the same card.
"""

from __future__ import annotations

import platform
from collections.abc import Mapping
from typing import Any

import datasets
import numpy as np
import pyarrow as pa

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
    notes: tuple[str, ...],
) -> dict[str, Any]:
    """The card's fields, in the order in which they are written.

    `rows` and `targets` are counted a split; `sparsity` is 1 - interactions / (users x items); `tied_timestamps` is
    the share of interactions that share their timestamp with another of the same user. `cold_users` counts, of a log,
    the users with something in a split but nothing before it, who have no row there; of windows, the users without a
    training row. `cold_targets` counts targets that occur nowhere in the training rows. `sources` holds the sha256 of
    each file.
    """
    num_users, num_items, num_interactions = log.users.num_rows, len(catalog), len(log.user)
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
        "tied_timestamps": _tied(log, splits, settings["split"]),
        "dropped": dict(dropped),
        "cold_users": dict(cold_users),
        "cold_targets": _cold_targets(splits, num_items),
        "notes": list(notes),
        "sources": dict(sources),
        "settings": dict(settings),
        "fingerprint": catalog.fingerprint,
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
    lines = [
        f"{card['num_users']:,} users, {card['num_items']:,} items, {card['num_interactions']:,} interactions",
        f"split {card['split']}: {card['split_rule']}",
        f"rows: {rows}",
        f"{card['tied_timestamps']:.0%} of the interactions share their timestamp with another of the same user",
        *card["notes"],
    ]
    dropped = ", ".join(f"{count:,} {name}" for name, count in card["dropped"].items() if count)
    return "\n".join([*lines, f"dropped: {dropped}"] if dropped else lines)


def _items(rows: pa.Table, column: str) -> np.ndarray:
    return Ragged.from_arrow(rows[column]).values


def _tied(log: IndexedLog, splits: Mapping[str, pa.Table], split: str) -> float:
    """For windows the rows are looked at, as only they have times of their own."""
    user, timestamp = log.user, log.timestamp
    if split == "windows":
        user, timestamp = (
            np.concatenate([rows[name].to_numpy() for rows in splits.values()]) for name in ("user", "timestamp")
        )
        order = np.lexsort((timestamp, user))
        user, timestamp = user[order], timestamp[order]
    same = (np.diff(user) == 0) & (np.diff(timestamp) == 0)
    tied = np.concatenate([[False], same]) | np.concatenate([same, [False]])
    return round(float(tied.mean()), 4)


def _cold_targets(splits: Mapping[str, pa.Table], num_items: int) -> dict[str, int]:
    seen = np.zeros(num_items, bool)
    for column in ("history", "targets"):
        seen[_items(splits["train"], column)] = True
    return {name: int((~seen[_items(splits[name], "targets")]).sum()) for name in ("validation", "test")}
