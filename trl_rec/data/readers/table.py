"""Plain tables: `interactions`, `items` and `users` as CSV, Parquet or JSON Lines, with columns of any name.

Only the interactions are required, and their ratings are optional. Without an item table the ids serve as titles.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow import json

from trl_rec.data.columns import grouped, interactions_table, items_table, users_table
from trl_rec.data.log import Log, Options, Reader
from trl_rec.data.readers.files import check_repeats, check_single, read_delimited, read_header


NAMES = ("user_id", "item_id", "timestamp", "rating")
SUFFIXES = (".csv", ".parquet", ".jsonl")


class TableReader(Reader):
    """Reads tables, and renames their columns as `Options.columns` says."""

    options = frozenset({"columns", "group_column", "group_separator"})

    def find(self, folder: Path) -> dict[str, Path]:
        """The tables in the folder; empty without interactions."""
        files: dict[str, Path] = {}
        for kind in ("interactions", "items", "users"):
            paths = [folder / f"{kind}{suffix}" for suffix in SUFFIXES if (folder / f"{kind}{suffix}").is_file()]
            check_single(paths, folder)
            if paths:
                files[kind] = paths[0]
        return files if "interactions" in files else {}

    def read(self, files: dict[str, Path], options: Options) -> Log:
        """The log in those tables."""
        renames = dict(options.columns or {})
        _check_renames(renames, files)
        tables = {}
        for kind, path in files.items():
            # Extra columns of items and users are kept; those of interactions are never used, and may be large.
            tables[kind] = _renamed(_read(path, renames, only_known=kind == "interactions"), renames)

        names = {kind: path.name for kind, path in files.items()}
        items = items_table(tables["items"], names["items"]) if "items" in tables else None
        return Log(
            interactions=interactions_table(tables["interactions"], names["interactions"]),
            items=grouped(items, options, names.get("items")),
            users=users_table(tables["users"], names["users"]) if "users" in tables else None,
            group_column=options.group_column,
            names=names,
        )


def _check_renames(renames: Mapping[str, str], files: dict[str, Path]) -> None:
    """Raises if a column to rename is in none of the files; `renames` maps our names to the source's."""
    columns = {name for path in files.values() for name in _column_names(path)} if renames else set()
    for our_name, name in renames.items():
        if name not in columns:
            file_names = ", ".join(path.name for path in files.values())
            raise ValueError(f"columns maps {our_name} to {name!r}, which is in none of {file_names}")


def _column_names(path: Path) -> list[str]:
    """The names of a file's columns."""
    if path.suffix == ".csv":
        return read_header(path)
    with _naming(path):
        schema = pq.read_schema(path) if path.suffix == ".parquet" else json.read_json(path).schema
        return list(schema.names)


def _read(path: Path, renames: Mapping[str, str], only_known: bool) -> pa.Table:
    """Reads a file under its own column names. With `only_known`, columns that nothing uses are left out."""
    known = {*NAMES, "title", *renames.values()}
    if path.suffix == ".csv":
        # Known columns are read as text, or Arrow would turn the id "007" into 7.
        columns = [name for name in read_header(path) if name in known] if only_known else None
        return read_delimited(path, columns=columns, text=known)
    with _naming(path):
        if path.suffix == ".jsonl":
            table = _read_json(path, renames.get("timestamp", "timestamp"))
            return table.select([name for name in table.column_names if name in known]) if only_known else table
        names = check_repeats(_column_names(path), path)
        columns = [name for name in names if name in known] if only_known else None
        return pq.read_table(path, columns=columns)


@contextmanager
def _naming(path: Path) -> Iterator[None]:
    """Names the file in errors of Arrow."""
    try:
        yield
    except (OSError, pa.ArrowException) as error:
        raise ValueError(f"{path.name} cannot be read: {str(error).splitlines()[0]}; correct the file") from error


def _read_json(path: Path, timestamp: str) -> pa.Table:
    """A JSON Lines file in which only the column `timestamp` may contain dates.

    Arrow parses any text that looks like a date, such as the title "2001-01-01"; such columns are read again as text.
    """
    table = json.read_json(path)
    texts = {field.name: _without_dates(field.type) for field in table.schema if field.name != timestamp}
    changed = {name: kind for name, kind in texts.items() if kind != table.schema.field(name).type}
    if not changed:
        return table
    options = json.ParseOptions(explicit_schema=pa.schema(changed))
    return json.read_json(path, parse_options=options).select(table.column_names)


def _without_dates(kind: pa.DataType) -> pa.DataType:
    """The type with text in place of dates."""
    if pa.types.is_list(kind):
        return pa.list_(_without_dates(kind.value_type))
    return pa.string() if pa.types.is_timestamp(kind) else kind


def _renamed(table: pa.Table, renames: Mapping[str, str]) -> pa.Table:
    """Renames columns to our names. A column that already has the new name of another column is dropped."""
    ours = {name: our_name for our_name, name in renames.items() if name in table.column_names}
    table = table.select([name for name in table.column_names if name in ours or name not in ours.values()])
    return table.rename_columns([ours.get(name, name) for name in table.column_names])
