"""Plain tables: `interactions`, `items` and perhaps `users` as CSV, Parquet or JSON Lines, with names of the user's
own.

Interactions may lack a rating. Without an item table the titles are the ids.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow import json

from trl_rec.data.columns import grouped, interactions_table, items_table, users_table
from trl_rec.data.delimited import check_repeats, read_delimited, read_header
from trl_rec.data.log import Log, Options


OPTIONS = frozenset({"columns", "group_column", "group_separator"})
NAMES = ("user_id", "item_id", "timestamp", "rating")
SUFFIXES = (".csv", ".parquet", ".jsonl")


def find(folder: Path) -> dict[str, Path]:
    """The tables of the folder; none without interactions."""
    files: dict[str, Path] = {}
    for kind in ("interactions", "items", "users"):
        found = [folder / f"{kind}{suffix}" for suffix in SUFFIXES if (folder / f"{kind}{suffix}").is_file()]
        if len(found) > 1:
            raise ValueError(f"{folder} holds {' and '.join(path.name for path in found)}; leave one of them")
        if found:
            files[kind] = found[0]
    return files if "interactions" in files else {}


def read(files: dict[str, Path], options: Options) -> Log:
    """The log in those tables, the columns renamed as `options.columns` says."""
    theirs = dict(options.columns or {})
    _check_unknown(theirs, files)
    tables = {kind: _renamed(_read(path, theirs, kind == "interactions"), theirs) for kind, path in files.items()}
    names = {kind: path.name for kind, path in files.items()}
    items = items_table(tables["items"], names["items"]) if "items" in tables else None
    return Log(
        interactions=interactions_table(tables["interactions"], names["interactions"]),
        items=grouped(items, options, names.get("items")),
        users=users_table(tables["users"], names["users"]) if "users" in tables else None,
        group_column=options.group_column,
        names=names,
    )


def _read(path: Path, theirs: Mapping[str, str], only_ours: bool) -> pa.Table:
    ours = {*NAMES, "title", *theirs.values()}
    if path.suffix == ".csv":
        columns = [name for name in read_header(path) if name in ours] if only_ours else None
        return read_delimited(path, columns=columns, text=ours)
    with _readable(path):
        if path.suffix == ".jsonl":
            table = _read_json(path, theirs.get("timestamp", "timestamp"))
            return table.select([name for name in table.column_names if name in ours]) if only_ours else table
        names = check_repeats(_header(path), path)
        columns = [name for name in names if name in ours] if only_ours else None
        return pq.read_table(path, columns=columns)


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, pa.ArrowException) as error:
        raise ValueError(f"{path.name} cannot be read: {str(error).splitlines()[0]}; correct the file") from error


def _read_json(path: Path, timestamp: str) -> pa.Table:
    """The file's columns, text as it is written: Arrow makes dates of text that looks like some, which only a
    timestamp may."""
    table = json.read_json(path)
    texts = {field.name: _as_text(field.type) for field in table.schema if field.name != timestamp}
    changed = {name: kind for name, kind in texts.items() if kind != table.schema.field(name).type}
    if not changed:
        return table
    return json.read_json(path, parse_options=json.ParseOptions(explicit_schema=pa.schema(changed))).select(
        table.column_names
    )


def _as_text(kind: pa.DataType) -> pa.DataType:
    if pa.types.is_list(kind):
        return pa.list_(_as_text(kind.value_type))
    return pa.string() if pa.types.is_timestamp(kind) else kind


def _header(path: Path) -> list[str]:
    if path.suffix == ".csv":
        return read_header(path)
    with _readable(path):
        return (pq.read_schema(path) if path.suffix == ".parquet" else json.read_json(path).schema).names


def _check_unknown(theirs: Mapping[str, str], files: dict[str, Path]) -> None:
    present = {name for path in files.values() for name in _header(path)} if theirs else set()
    for ours, name in theirs.items():
        if name not in present:
            raise ValueError(
                f"columns maps {ours} to {name!r}, which is in none of {', '.join(p.name for p in files.values())}"
            )


def _renamed(table: pa.Table, theirs: Mapping[str, str]) -> pa.Table:
    """Their names replaced by ours; a column of theirs that had our name already gives way."""
    ours = {name: our for our, name in theirs.items() if name in table.column_names}
    table = table.select([name for name in table.column_names if name in ours or name not in ours.values()])
    return table.rename_columns([ours.get(name, name) for name in table.column_names])
