"""Reads RecBole's atomic files `X.inter`, `X.item` and `X.user`.

Atomic files are tab-separated, with the type of each column in the header. Columns of the types `token_seq` and
`float_seq` are split at spaces into lists, except the title: it stays text, although its type is `token_seq`.
"""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from trl_rec.data.columns import cast, grouped, items_table, numbers, split_lists, users_table
from trl_rec.data.interactions import read_interactions
from trl_rec.data.log import Log, Options, Reader
from trl_rec.data.readers.files import check_repeats, check_single, find_file, read_delimited, read_header, without_gz


SUFFIXES = {"interactions": ".inter", "items": ".item", "users": ".user"}
READ_LATER = ("timestamp", "rating")  # columns of interactions that `read_interactions` converts
TITLES = ("title", "movie_title", "name", "item_name")  # default names of the title column, in order of preference


class RecBoleReader(Reader):
    """Reader of RecBole's atomic files."""

    options = frozenset({"title_column", "group_column", "group_separator", "timestamp_format", "empty_ratings"}) | {
        "event_column",
        "event_ratings",
    }

    def find(self, folder: Path) -> dict[str, Path]:
        """Returns a dict that maps table names to atomic files. It is empty if there is no file of interactions."""
        paths = sorted([*folder.glob("*.inter"), *folder.glob("*.inter.gz")])
        check_single(paths, folder)
        if not paths:
            return {}
        stem = without_gz(paths[0]).removesuffix(".inter")
        files = {kind: find_file(folder, [f"{stem}{suffix}"]) for kind, suffix in SUFFIXES.items()}
        return {kind: path for kind, path in files.items() if path is not None}

    def read(self, files: dict[str, Path], options: Options) -> Log:
        """Reads the log. Without an item file, the item ids are used as titles."""
        names = {kind: path.name for kind, path in files.items()}
        items = _read_items(files["items"], options) if "items" in files else None
        table = read_atomic(files["interactions"], texts=READ_LATER)
        interactions, left_out = read_interactions(table, names["interactions"], options)
        return Log(
            interactions=interactions,
            items=grouped(items, options, names.get("items")),
            users=users_table(read_atomic(files["users"]), names["users"]) if "users" in files else None,
            group_column=options.group_column,
            names=names,
            left_out=left_out,
        )


def read_atomic(path: Path, texts: tuple[str, ...] = ()) -> pa.Table:
    """Reads a file, and converts each column to the type in the header. Removes the types from the column names.

    The columns in `texts` stay text.
    """
    table = read_delimited(path, delimiter="\t", quoted=False)  # a quotation mark is part of the text
    check_repeats([header.partition(":")[0] for header in table.column_names], path)
    columns = {}
    for header, column in zip(table.column_names, table.columns, strict=True):
        name, _, kind = header.partition(":")
        if kind not in ("token", "float", "token_seq", "float_seq"):
            raise ValueError(
                f"{path.name}: the column {header!r} has no known type; write {name}:token, :float, :token_seq or "
                ":float_seq"
            )
        columns[name] = column if name in texts else _typed(column, kind, name, path.name)
    return pa.table(columns)


def _typed(column: pa.ChunkedArray, kind: str, name: str, where: str) -> pa.ChunkedArray:
    """Converts a column to the type in its header."""
    if kind == "token":
        return column
    if kind == "float":
        return _floats(column, name, where)
    lists = split_lists(column, " ")
    return lists if kind == "token_seq" else cast(lists, pa.list_(pa.float64()), name, where)


def _floats(column: pa.ChunkedArray, name: str, where: str) -> pa.ChunkedArray:
    """Converts a column to float64. Empty cells become null."""
    present = pc.not_equal(column, "")
    numbers(pc.if_else(present, column, "0"), name, where)  # raises for a cell that is neither empty nor a number
    return pc.if_else(present, column, None).cast(pa.float64())


def _read_items(path: Path, options: Options) -> pa.Table:
    """Reads the items, and renames the title column to `title`."""
    names = [name.partition(":")[0] for name in read_header(path, "\t")]
    wanted = (options.title_column,) if options.title_column else TITLES
    # Take the first name in `wanted` that is a column of the file.
    title = next((name for name in wanted if name in names), None)
    if title is None:
        raise ValueError(
            f"{path.name} has no title column ({', '.join(wanted)}); set title_column to one of {', '.join(names)}"
        )

    # If another column is used as the title, drop the column `title`.
    items = read_atomic(path, texts=(title,))
    items = items.select([name for name in items.column_names if name == title or name != "title"])
    items = items.rename_columns(["title" if name == title else name for name in items.column_names])
    return items_table(items, path.name)
