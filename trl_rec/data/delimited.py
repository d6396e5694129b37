"""CSV and its relatives as Arrow tables: quoted line breaks are allowed, an empty cell of text is empty text, not
null."""

from __future__ import annotations

import csv
from collections.abc import Collection
from pathlib import Path

import pyarrow as pa
from pyarrow import csv as arrow_csv


def read_header(path: Path, delimiter: str = ",") -> list[str]:
    """The names in the file's first row."""
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            names = next(csv.reader(file, delimiter=delimiter), None)
    except UnicodeDecodeError as error:
        raise ValueError(f"{path.name} is not UTF-8 text; convert it") from error
    if not names:
        raise ValueError(f"{path.name} is empty; give a file with a header and at least one row")
    return check_repeats([name.strip() for name in names], path)


def check_repeats(names: list[str], path: Path) -> list[str]:
    """The names of a file's columns, if they are distinct."""
    repeated = next((name for name in names if names.count(name) > 1), None)
    if repeated is not None:
        raise ValueError(f"{path.name} has more than one column {repeated}; rename or remove the others")
    return names


def read_delimited(
    path: Path,
    *,
    delimiter: str = ",",
    quoted: bool = True,
    columns: Collection[str] | None = None,
    text: Collection[str] | None = None,
    names: list[str] | None = None,
    encoding: str = "utf8",
) -> pa.Table:
    """The file's `columns` (all by default), those of `text` (all by default) as strings and the others as they look.

    `names` are the column names of a file without a header.
    """
    header = names or read_header(path, delimiter)
    wanted = [name for name in header if columns is None or name in columns]
    try:
        return arrow_csv.read_csv(
            path,
            read_options=arrow_csv.ReadOptions(column_names=header, skip_rows=0 if names else 1, encoding=encoding),
            parse_options=arrow_csv.ParseOptions(
                delimiter=delimiter, quote_char='"' if quoted else False, newlines_in_values=quoted
            ),
            convert_options=arrow_csv.ConvertOptions(
                include_columns=wanted, column_types={name: pa.string() for name in (wanted if text is None else text)}
            ),
        )
    except pa.ArrowException as error:
        if "Empty CSV" in str(error):
            return pa.table({name: pa.array([], pa.string()) for name in wanted})
        raise ValueError(f"{path.name} cannot be read: {str(error).splitlines()[0]}; correct the file") from error
