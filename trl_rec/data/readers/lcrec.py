"""The LC-Rec line's files: `X.inter.json` (user to items in time order), `X.item.json` (texts), `X.index.json`
(tokens).

There are no timestamps: an interaction's is its position in the user's list, so a split by time is refused. An item
with an empty title, of which the published sets hold some, is called by its id.
"""

from __future__ import annotations

import json
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from trl_rec.data.columns import grouped, interactions_table, items_table
from trl_rec.data.log import Log, Options
from trl_rec.ragged import within


OPTIONS = frozenset({"group_column", "group_separator"})
PARTS = {"interactions": "inter", "items": "item", "semantic_ids": "index"}


def find(folder: Path) -> dict[str, Path]:
    """The files of the folder's one dataset; none without interactions."""
    found = sorted(folder.glob("*.inter.json"))
    if len(found) > 1:
        raise ValueError(f"{folder} holds {' and '.join(path.name for path in found)}; leave one dataset in it")
    stems = [path.name.removesuffix(".inter.json") for path in found]
    files = {kind: folder / f"{stem}.{part}.json" for stem in stems for kind, part in PARTS.items()}
    return {kind: path for kind, path in files.items() if path.is_file()}


def read(files: dict[str, Path], options: Options) -> Log:
    """The log in those files, with the items' semantic IDs where there are some. Without an item file titles are
    ids."""
    items, notes = _items(files) if "items" in files else (None, ())
    if "semantic_ids" in files and items is None:
        raise ValueError(f"{files['semantic_ids'].name} has no item file beside it; add the dataset's .item.json")
    names = {kind: path.name for kind, path in files.items()}
    return Log(
        interactions=_interactions(files["interactions"]),
        items=grouped(items, options, names.get("items")),
        group_column=options.group_column,
        timed=False,
        names=names,
        notes=("the source has no timestamps: they are positions in each user's list", *notes),
    )


def load_json(path: Path, kind: type) -> Any:
    """The JSON value in a file, which must be of the given type."""
    try:
        value = json.loads(path.read_text(encoding="utf-8-sig"))
    except UnicodeDecodeError as error:
        raise ValueError(f"{path.name} is not UTF-8 text; convert it") from error
    except json.JSONDecodeError as error:
        raise ValueError(f"{path.name} is not JSON (line {error.lineno}: {error.msg}); correct the file") from error
    if not isinstance(value, kind):
        raise ValueError(
            f"{path.name} holds a JSON {type(value).__name__} where a {kind.__name__} is expected; correct the file"
        )
    return value


def _interactions(path: Path) -> pa.Table:
    lists = load_json(path, dict)
    for user, row in lists.items():
        if not isinstance(row, list):
            raise ValueError(f"{path.name}: user {user!r} has no list of items but {row!r}; correct the file")
    lengths = np.fromiter(map(len, lists.values()), np.int64, len(lists))
    users = (
        pa.array(lists).take(pa.array(np.repeat(np.arange(len(lists)), lengths)))
        if lists
        else pa.array([], pa.string())
    )
    item_ids = pa.array(map(_text, chain.from_iterable(lists.values())), pa.string())
    return interactions_table(
        pa.table({"user_id": users, "item_id": item_ids, "timestamp": within(lengths).astype(float)}), path.name
    )


def _items(files: dict[str, Path]) -> tuple[pa.Table, tuple[str, ...]]:
    path = files["items"]
    entries = load_json(path, dict)
    titles = [_title(item, entry, path) for item, entry in entries.items()]
    untitled = titles.count("")
    columns: dict[str, Any] = {
        "item_id": list(entries),
        "title": [t or f"item {i}" for i, t in zip(entries, titles, strict=True)],
    }
    for name in dict.fromkeys(chain.from_iterable(entries.values())):
        if name not in columns:
            columns[name] = _column([entry.get(name) for entry in entries.values()])
    if "semantic_ids" in files:
        columns["semantic_id"] = pa.array(read_index(files["semantic_ids"], list(entries)), pa.list_(pa.string()))
    notes = (f"items with an empty title, called by their id: {untitled}",) if untitled else ()
    return items_table(pa.table(columns), path.name), notes


def read_index(path: Path, items: list[str]) -> list[list[str]]:
    """The tokens of each of the items, from an `X.index.json`."""
    index = load_json(path, dict)
    missing = next((item for item in items if not index.get(item)), None)
    if missing is not None:
        raise ValueError(f"{path.name} holds no tokens for item {missing!r}; add them, or remove the file")
    for item in items:
        tokens = index[item]
        if not isinstance(tokens, list) or not all(isinstance(token, str) and token for token in tokens):
            raise ValueError(
                f"{path.name}: item {item!r} has no list of texts as tokens but {tokens!r}; correct the file"
            )
    return [index[item] for item in items]


def _column(values: list[Any]) -> pa.Array:
    """Text, or lists of text where every value that there is is a list."""
    given = [value for value in values if value is not None]
    if given and all(isinstance(value, list) for value in given):
        return pa.array([value and [_text(part) for part in value] for value in values], pa.list_(pa.string()))
    return pa.array(map(_text, values), pa.string())


def _text(value: Any) -> str | None:
    return value if value is None or isinstance(value, str) else json.dumps(value)


def _title(item: str, entry: Any, path: Path) -> str:
    if not isinstance(entry, dict):
        raise ValueError(f"{path.name}: item {item!r} has no fields but {entry!r}; correct the file")
    if "title" not in entry:
        raise ValueError(f"{path.name}: item {item!r} has no title; add one")
    return " ".join((_text(entry["title"]) or "").split())
