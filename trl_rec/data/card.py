"""Makes the card of a dataset. The card describes the dataset's contents, its source and its settings.

The card contains no creation time. The same source and settings therefore give the same card, as long as the versions
of Python and of the libraries are the same.
"""

from __future__ import annotations

import platform
from collections.abc import Mapping
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from trl_rec.data.filtering import is_repeated
from trl_rec.data.indexed_log import IndexedLog
from trl_rec.data.splits import describe_rule
from trl_rec.items import ItemCatalog
from trl_rec.ragged import Ragged, is_in
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
    license: str | None = None,
) -> dict[str, Any]:
    """Returns the fields of the card, in the order in which they are written.

    The names of most fields explain their contents. The following fields need an explanation:

    - `rows`, `targets`: numbers of rows and targets per split.
    - `sparsity`: 1 - interactions / (users x items).
    - `tied_timestamps`: share of the interactions that have the same timestamp as another interaction of the same
      user. If the source consists of windows (each a history and one target), the share of the windows that have the
      same timestamp as another window of the same user.
    - `cold_users`: for validation and test, the number of users who have items in the split but no history before it,
      and therefore no row. If the source consists of windows, the number of users who have a row in the split but no
      training row.
    - `cold_targets`: for validation and test, the number of targets that occur in no training row.
    - `repeated_interactions`: number of interactions with an item that the user had chosen before.
    - `repeated_targets`: for validation and test, the number of targets that are in the history of their row.
      Recommenders that exclude histories cannot recommend them.
    - `left_out`: numbers of interactions that an option dropped, by reason: `events`, `empty_ratings`, `unknown_items`
      and `repeats`.
    - `merged_timestamps`: number of interactions whose timestamp differs from that of the user's previous interaction,
      but equals it after rounding to float64. These interactions are sorted by their exact timestamps.

    Args:
        log: The interactions after filtering.
        catalog: The items.
        splits: The rows of each split.
        settings: All settings that affect the contents of the dataset.
        sources: SHA-256 of each file of the source.
        dropped: Numbers of users, items and interactions that were dropped because users or items had too few
            interactions.
        cold_users: The field `cold_users`.
        left_out: The field `left_out`. Reasons with a count of 0 are allowed, but are not written to the card.
        merged_timestamps: The field `merged_timestamps`.
        notes: Remarks on the source, as in `Log.notes`.
        license (*optional*): The licence of the data, if it is known.
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
        "targets": {name: pc.sum(pc.list_value_length(rows["targets"])).as_py() or 0 for name, rows in splits.items()},
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
        "license": license,
        "sources": dict(sources),
        "settings": dict(settings),
        "fingerprint": catalog.fingerprint,
        # The versions are informational. `prepare` ignores them, so a dataset remains valid after an upgrade.
        "versions": {
            "python": platform.python_version(),
            "trl-rec": __version__,
            "datasets": datasets.__version__,
            "numpy": np.__version__,
            "pyarrow": pa.__version__,
        },
    }


def describe(card: Mapping[str, Any]) -> str:
    """Returns a summary of the card in a few lines of text."""
    rows = ", ".join(f"{name} {count:,}" for name, count in card["rows"].items())
    dropped = ", ".join(f"{count:,} {name}" for name, count in card["dropped"].items() if count)
    interactions = "rows" if card["split"] == "windows" else "interactions"
    lines = [
        f"{card['num_users']:,} users, {card['num_items']:,} items, {card['num_interactions']:,} interactions",
        f"split {card['split']}: {card['split_rule']}",
        f"rows: {rows}",
        f"{card['tied_timestamps']:.0%} of the {interactions} have the same timestamp as others of the same user",
        *card["notes"],
    ]
    if dropped:
        lines.append(f"dropped: {dropped}")
    if card.get("license"):
        lines.append(f"licence of the data: {card['license']}")
    left_out = ", ".join(f"{count:,} for {reason}" for reason, count in card.get("left_out", {}).items())
    if left_out:
        lines.append(f"interactions left out on request: {left_out.replace('_', ' ')}")
    if card.get("repeated_interactions"):
        lines.append(f"{card['repeated_interactions']:,} interactions repeat an item that the user had chosen before")
    return "\n".join(lines)


def _share_of_ties(log: IndexedLog, splits: Mapping[str, pa.Table], split: str) -> float:
    """Returns the share of interactions (or windows) whose timestamp occurs more than once for the same user."""
    user = log.user
    timestamp = log.timestamp
    if split == "windows":
        # All interactions of a window have its timestamp, so count windows instead of interactions. A row is a window.
        user = np.concatenate([rows["user"].to_numpy() for rows in splits.values()])
        timestamp = np.concatenate([rows["timestamp"].to_numpy() for rows in splits.values()])
        order = np.lexsort((timestamp, user))
        user = user[order]
        timestamp = timestamp[order]

    # Rows are sorted by user and time, so rows with equal timestamps are neighbours. Compare each row with the next.
    same_as_next = user[1:] == user[:-1]
    same_as_next &= timestamp[1:] == timestamp[:-1]
    tied = np.zeros(len(user), bool)
    tied[1:] |= same_as_next
    tied[:-1] |= same_as_next
    return round(float(tied.mean()), 4)


def _count_cold_targets(splits: Mapping[str, pa.Table], num_items: int) -> dict[str, int]:
    """Returns the numbers of validation and test targets that occur in no training row."""
    seen = np.zeros(num_items, bool)  # items that occur in a training row
    for column in ("history", "targets"):
        for chunk in splits["train"][column].chunks:  # one per block of users
            seen[chunk.flatten().to_numpy()] = True
    cold = {}
    for name in ("validation", "test"):
        cold[name] = sum(int((~seen[chunk.flatten().to_numpy()]).sum()) for chunk in splits[name]["targets"].chunks)
    return cold


def _count_repeated_targets(rows: pa.Table) -> int:
    """Returns the number of targets that are in the history of their row."""
    count = 0
    for batch in rows.select(["targets", "history"]).to_batches():  # one per block of users
        # Encode each pair of row and item as one number. An item index is an int32, so it fits in the lower 32 bits.
        targets, history = (Ragged.from_arrow(column) for column in batch.columns)
        known = history.row_ids << 32 | history.values
        count += int(is_in(targets.row_ids << 32 | targets.values, known).sum())
    return count
