"""Reads the files `X.inter.json`, `X.item.json` and `X.index.json` of the recommender LC-Rec.

X is the name of the dataset. `X.inter.json` maps users to their items in time order, `X.item.json` maps items to their
titles and further fields, and `X.index.json` maps items to the tokens of their semantic IDs.

The files have no timestamps. The position of an interaction in the list of its user is used instead, and a split by
time raises an error. The published datasets contain a few items with an empty title. The title of such an item
becomes "item" and its id, such as "item 7".
"""

from __future__ import annotations

import json
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from trl_rec.data.columns import grouped, items_table
from trl_rec.data.interactions import interactions_table
from trl_rec.data.log import Log, Options, Reader
from trl_rec.data.readers.files import check_single, find_file, load_json, without_gz
from trl_rec.ragged import within


PARTS = {"interactions": "inter", "items": "item", "semantic_ids": "index"}


class LcRecReader(Reader):
    """Reader of LC-Rec's files: a list of items per user, and the items' semantic IDs if the source has them."""

    options = frozenset({"group_column", "group_separator"})
    has_timestamps = False

    def find(self, folder: Path) -> dict[str, Path]:
        """Returns a dict that maps the keys of `PARTS` to files. It is empty if there is no file of interactions."""
        paths = sorted([*folder.glob("*.inter.json"), *folder.glob("*.inter.json.gz")])
        check_single(paths, folder)
        if not paths:
            return {}
        stem = without_gz(paths[0]).removesuffix(".inter.json")
        files = {kind: find_file(folder, [f"{stem}.{part}.json"]) for kind, part in PARTS.items()}
        return {kind: path for kind, path in files.items() if path is not None}

    def read(self, files: dict[str, Path], options: Options) -> Log:
        """Reads the log. Without an item file, the item ids are used as titles."""
        if "semantic_ids" in files and "items" not in files:
            raise ValueError(
                f"{files['semantic_ids'].name} needs an item file in the same folder; add the dataset's .item.json"
            )
        names = {kind: path.name for kind, path in files.items()}
        notes = ["the source has no timestamps; the positions in each user's list are used instead"]

        items = None
        if "items" in files:
            items, num_untitled = _read_items(files)
            if num_untitled:
                notes.append(f'number of items whose empty title was replaced by "item" and the id: {num_untitled}')
        return Log(
            interactions=_read_interactions(files["interactions"]),
            items=grouped(items, options, names.get("items")),
            group_column=options.group_column,
            names=names,
            notes=tuple(notes),
        )


def read_index(path: Path, items: list[str]) -> list[list[str]]:
    """Returns the tokens of each item in `items`, read from an `X.index.json`."""
    index = load_json(path, dict)
    missing = next((item for item in items if not index.get(item)), None)
    if missing is not None:
        raise ValueError(f"{path.name} contains no tokens for item {missing!r}; add them, or remove the file")
    for item in items:
        tokens = index[item]
        if not isinstance(tokens, list) or not all(isinstance(token, str) and token for token in tokens):
            raise ValueError(
                f"{path.name}: the tokens of item {item!r} must be a list of strings, not {tokens!r}; correct the file"
            )
    return [index[item] for item in items]


def _read_interactions(path: Path) -> pa.Table:
    """Reads the interactions from a JSON object that maps users to lists of items."""
    lists = load_json(path, dict)
    for user, items in lists.items():
        if not isinstance(items, list):
            raise ValueError(
                f"{path.name}: the items of user {user!r} must be a list, not {items!r}; correct the file"
            )

    # Join all lists, and repeat the user for each item of a list.
    lengths = np.fromiter(map(len, lists.values()), np.int64, len(lists))
    rows = np.repeat(np.arange(len(lists)), lengths)  # index of the list of each interaction
    columns = {
        "user_id": pa.array(lists, pa.string()).take(pa.array(rows)),
        "item_id": pa.array(map(_text, chain.from_iterable(lists.values())), pa.string()),
        "timestamp": within(lengths).astype(float),
    }
    return interactions_table(pa.table(columns), path.name)


def _read_items(files: dict[str, Path]) -> tuple[pa.Table, int]:
    """Returns the table of items, and the number of items with an empty title."""
    path = files["items"]
    entries = load_json(path, dict)
    titles = [_title(item, entry, path) for item, entry in entries.items()]
    columns: dict[str, Any] = {
        "item_id": list(entries),
        "title": [title or f"item {item}" for item, title in zip(entries, titles, strict=True)],
    }

    # Add the other columns, in order of first appearance in the entries.
    for name in dict.fromkeys(chain.from_iterable(entries.values())):
        if name not in columns:
            columns[name] = _column([entry.get(name) for entry in entries.values()])
    if "semantic_ids" in files:
        columns["semantic_id"] = pa.array(read_index(files["semantic_ids"], list(entries)), pa.list_(pa.string()))
    return items_table(pa.table(columns), path.name), titles.count("")


def _title(item: str, entry: Any, path: Path) -> str:
    """Returns the title of an item on one line. The title may be empty."""
    if not isinstance(entry, dict):
        raise ValueError(f"{path.name}: item {item!r} must be an object with fields, not {entry!r}; correct the file")
    if "title" not in entry:
        raise ValueError(f"{path.name}: item {item!r} has no title; add one")
    return " ".join((_text(entry["title"]) or "").split())


def _column(values: list[Any]) -> pa.Array:
    """Returns a column of lists of text if every value is a list or null, else a column of text."""
    present = [value for value in values if value is not None]
    if present and all(isinstance(value, list) for value in present):
        return pa.array([value and [_text(part) for part in value] for value in values], pa.list_(pa.string()))
    return pa.array(map(_text, values), pa.string())


def _text(value: Any) -> str | None:
    """Returns text and None unchanged, and other values as JSON, so that the id 7 becomes "7"."""
    return value if value is None or isinstance(value, str) else json.dumps(value)
