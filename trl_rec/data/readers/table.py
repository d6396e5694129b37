"""Reads plain tables: `interactions`, `items` and `users` as CSV, Parquet or JSON Lines, with any column names.

Only the table of interactions is required, and ratings are optional. Without an item table, the item ids are used as
titles. The columns of CSV files may be separated by commas, semicolons, tabs or vertical bars. CSV and JSON Lines
files may be gzipped. A Parquet table may be a folder of parts, as Spark and DuckDB write it: `interactions/` or
`interactions.parquet/`. A table may also be a folder that `save_to_disk` of `datasets` has written. A saved
`DatasetDict` is therefore a valid source if its splits have the names of the tables, and a saved `Dataset` is a valid
source that contains only interactions.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from datasets import Dataset

from trl_rec.data.columns import Columns, grouped, items_table, plain, require_names, users_table
from trl_rec.data.interactions import REQUIRED, check_event_column, read_interactions
from trl_rec.data.log import Log, Options, Reader
from trl_rec.data.readers.files import (
    check_repeats,
    check_single,
    find_delimiter,
    naming,
    read_delimited,
    read_header,
    read_json_lines,
    without_gz,
)


NAMES = ("user_id", "item_id", "timestamp", "rating")
KINDS = ("interactions", "items", "users")
SUFFIXES = (".csv", ".csv.gz", ".jsonl", ".jsonl.gz", ".parquet")


class TableReader(Reader):
    """Reader of plain tables, whose columns are renamed as `Options.columns` specifies."""

    options = frozenset({"columns", "group_column", "group_separator", "timestamp_format", "empty_ratings"}) | {
        "event_column",
        "event_ratings",
    }

    def find(self, folder: Path) -> dict[str, Path]:
        """Returns a dict that maps table names to files or folders.

        The dict is empty if there is no table of interactions.
        """
        if is_saved(folder):
            return {"interactions": folder}
        files: dict[str, Path] = {}
        for kind in KINDS:
            paths = [folder / f"{kind}{suffix}" for suffix in SUFFIXES if (folder / f"{kind}{suffix}").is_file()]
            folders = (folder / kind, folder / f"{kind}.parquet")
            paths += [path for path in folders if is_saved(path) or _has_parts(path)]
            check_single(paths, folder)
            if paths:
                files[kind] = paths[0]
        return files if "interactions" in files else {}

    def read(self, files: dict[str, Path], options: Options) -> Log:
        """Reads the log from the tables."""
        renames = dict(options.columns or {})
        _check_renames(renames, files)
        # Keep extra columns of items and users. Extra columns of interactions are unused and may be large, so skip
        # them.
        log = _read_interactions(files["interactions"], renames, options.event_column)
        others = {kind: path for kind, path in files.items() if kind != "interactions"}
        tables = {kind: _renamed(_read(path, renames), renames) for kind, path in others.items()}

        names = {kind: path.name for kind, path in files.items()}
        items = items_table(plain(tables["items"], names["items"]), names["items"]) if "items" in tables else None
        users = users_table(plain(tables["users"], names["users"]), names["users"]) if "users" in tables else None
        interactions, left_out = read_interactions(log, names["interactions"], options)
        return Log(
            interactions=interactions,
            items=grouped(items, options, names.get("items")),
            users=users,
            group_column=options.group_column,
            names=names,
            left_out=left_out,
        )


class FolderColumns:
    """The columns of a Parquet file, a folder of Parquet files or a saved `Dataset`. Each column is read on request.

    Args:
        path (`Path`): The file or folder.
        names (`Mapping[str, str]`): Maps our name of each column to its name in the files.
    """

    def __init__(self, path: Path, names: Mapping[str, str]) -> None:
        self._path = path
        self._names = names

    @property
    def column_names(self) -> list[str]:
        """Our names of the columns."""
        return list(self._names)

    @property
    def num_rows(self) -> int:
        """The number of rows of all parts."""
        if is_saved(self._path):
            return len(_open_saved(self._path))
        with naming(self._path):
            return sum(fragment.count_rows() for fragment in pq.ParquetDataset(self._path).fragments)

    def column(self, name: str) -> pa.ChunkedArray:
        """Reads a column from all parts."""
        return _read_columns(self._path, [self._names[name]]).column(0)


def is_saved(folder: Path) -> bool:
    """Returns whether `Dataset.save_to_disk` wrote the folder."""
    return (folder / "state.json").is_file() and (folder / "dataset_info.json").is_file()


def _open_saved(folder: Path) -> Dataset:
    try:
        return Dataset.load_from_disk(str(folder))
    except (OSError, ValueError, KeyError, TypeError, pa.ArrowException) as error:
        raise ValueError(f"{folder.name} is not a complete Dataset ({error!r}); save it again") from error


def _read_columns(path: Path, names: list[str]) -> pa.Table:
    """Reads columns of a Parquet file, a folder of Parquet files or a saved `Dataset`."""
    if is_saved(path):
        table: pa.Table = _open_saved(path).select_columns(names).with_format("arrow")[:]
        return table
    with naming(path):
        return pq.read_table(path, columns=names)


def _has_parts(folder: Path) -> bool:
    """Returns whether a folder contains Parquet files, directly or in subfolders."""
    return folder.is_dir() and next(folder.rglob("*.parquet"), None) is not None


def _check_renames(renames: Mapping[str, str], files: dict[str, Path]) -> None:
    """Raises ValueError if a column to rename is in none of the files. `renames` maps our names to the old names."""
    columns = {name for path in files.values() for name in _column_names(path)} if renames else set()
    for our_name, name in renames.items():
        if name not in columns:
            file_names = " or ".join(path.name for path in files.values())
            raise ValueError(
                f"the option 'columns' maps {our_name} to {name!r}, which is not a column of {file_names}; correct "
                "it, or leave it out"
            )


def _column_names(path: Path) -> list[str]:
    """Returns the column names of a file."""
    name = without_gz(path)
    if is_saved(path):
        return list(_open_saved(path).column_names)
    if not _is_text(path):
        with naming(path):
            return check_repeats(list(pq.ParquetDataset(path).schema.names), path)
    if name.endswith(".csv"):
        return read_header(path, find_delimiter(path))
    return list(read_json_lines(path).column_names)


def _read_interactions(path: Path, renames: Mapping[str, str], event_column: str | None) -> Columns:
    """Returns the used columns of the interactions, renamed. Unless the file is text, columns are read on request."""

    def check(names: list[str]) -> None:
        """Raises ValueError if a column is missing. `names` are all columns, so that the message can list them."""
        present = _new_names(names, renames).values()
        require_names(present, REQUIRED, path.name)
        if event_column is not None:
            check_event_column(present, event_column, path.name)

    used = {*NAMES, event_column or "rating"}
    if _is_text(path):
        table: Columns = _renamed(_read(path, renames, used, check), renames)
        return table
    names = _column_names(path)
    check(names)
    known = {*used, *renames.values()}
    names = [name for name in names if name in known]
    return FolderColumns(path, {our_name: name for name, our_name in _new_names(names, renames).items()})


def _is_text(path: Path) -> bool:
    """Returns whether a table is a text file, not a Parquet file or a folder."""
    return path.is_file() and without_gz(path).endswith((".csv", ".jsonl"))


def _read(
    path: Path,
    renames: Mapping[str, str],
    used: set[str] | None = None,
    check: Callable[[list[str]], None] | None = None,
) -> pa.Table:
    """Reads a file without renaming its columns.

    If `used` is given and the file is text, only some columns are returned: those in `used`, those that already have
    our names, and those to be renamed. Otherwise, all columns are returned. If the file is text, `check` is called
    with the names of all its columns.
    """
    if not _is_text(path):
        return _read_columns(path, _column_names(path))
    known = {*NAMES, "title", *(used or ()), *renames.values()}
    name = without_gz(path)
    if name.endswith(".csv"):
        # Read known columns as text, because Arrow would convert the id "007" to 7.
        delimiter = find_delimiter(path)
        header = read_header(path, delimiter)
        columns = [name for name in header if name in known] if used else None
        table = read_delimited(path, delimiter=delimiter, columns=columns, text=known)
        # Check after reading, so that a damaged file raises an error about the damage, not about a missing column.
        if check is not None:
            check(header)
        return table
    table = _read_json(path, renames.get("timestamp", "timestamp"))
    if check is not None:
        check(table.column_names)
    return table.select([name for name in table.column_names if name in known]) if used else table


def _read_json(path: Path, timestamp: str) -> pa.Table:
    """Reads a JSON Lines file. Text that looks like a date stays text, except in the column named by `timestamp`.

    Arrow converts text that looks like a date, such as the title "2001-01-01", to timestamps. If it has converted
    columns other than `timestamp`, the file is read again with those columns as text.
    """
    table = read_json_lines(path)
    texts = {field.name: _without_dates(field.type) for field in table.schema if field.name != timestamp}
    changed = {name: kind for name, kind in texts.items() if kind != table.schema.field(name).type}
    if not changed:
        return table
    return read_json_lines(path, pa.schema(changed)).select(table.column_names)


def _without_dates(kind: pa.DataType) -> pa.DataType:
    """Returns the type with text in place of timestamps, including timestamps in lists."""
    if pa.types.is_list(kind):
        return pa.list_(_without_dates(kind.value_type))
    return pa.string() if pa.types.is_timestamp(kind) else kind


def _renamed(table: pa.Table, renames: Mapping[str, str]) -> pa.Table:
    """Renames columns to our names. A column that is not renamed, but already has one of the new names, is dropped."""
    names = _new_names(table.column_names, renames)
    return table.select(list(names)).rename_columns(list(names.values()))


def _new_names(names: list[str], renames: Mapping[str, str]) -> dict[str, str]:
    """Returns a dict that maps each kept column to its new name."""
    ours = {name: our_name for our_name, name in renames.items() if name in names}
    return {name: ours.get(name, name) for name in names if name in ours or name not in ours.values()}
