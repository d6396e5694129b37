"""Reads delimited text into Arrow tables, and JSON files into Python values, with errors that name the file."""

from __future__ import annotations

import csv
import json
from collections.abc import Collection
from pathlib import Path
from typing import Any

import pyarrow as pa
from pyarrow import csv as arrow_csv


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
    """A delimited text file as an Arrow table. An empty cell of a text column is empty text, not null.

    Args:
        path: The file.
        delimiter (*optional*, defaults to `","`): Separates the cells of a row.
        quoted (*optional*, defaults to `True`): Whether cells may be quoted and then contain line breaks.
        columns (*optional*): The columns to read; all by default.
        text (*optional*): The columns to read as text; all by default. Arrow infers the types of the others.
        names (*optional*): The column names of a file without a header.
        encoding (*optional*, defaults to `"utf8"`): The file's encoding.
    """
    # The header is read here rather than by Arrow, so that its names are stripped and repeated ones refused.
    header = names or read_header(path, delimiter)
    wanted = [name for name in header if columns is None or name in columns]
    text = wanted if text is None else text
    try:
        return arrow_csv.read_csv(
            path,
            read_options=arrow_csv.ReadOptions(column_names=header, skip_rows=0 if names else 1, encoding=encoding),
            parse_options=arrow_csv.ParseOptions(
                delimiter=delimiter, quote_char='"' if quoted else False, newlines_in_values=quoted
            ),
            convert_options=arrow_csv.ConvertOptions(
                include_columns=wanted, column_types={name: pa.string() for name in text}
            ),
        )
    except pa.ArrowException as error:
        # Arrow refuses a file that has a header and no rows; here it is a table without rows.
        if "Empty CSV" in str(error):
            return pa.table({name: pa.array([], pa.string()) for name in wanted})
        raise ValueError(f"{path.name} cannot be read: {str(error).splitlines()[0]}; correct the file") from error


def read_header(path: Path, delimiter: str = ",") -> list[str]:
    """The names in the file's first row."""
    try:
        # utf-8-sig: files from Windows may begin with a byte order mark, which is no part of the first name.
        with path.open(encoding="utf-8-sig", newline="") as file:
            names = next(csv.reader(file, delimiter=delimiter), None)
    except UnicodeDecodeError as error:
        raise ValueError(f"{path.name} is not UTF-8 text; convert it") from error
    if not names:
        raise ValueError(f"{path.name} is empty; give a file with a header and at least one row")
    return check_repeats([name.strip() for name in names], path)


def check_repeats(names: list[str], path: Path) -> list[str]:
    """The names of a file's columns; raises if one occurs twice."""
    repeated = next((name for name in names if names.count(name) > 1), None)
    if repeated is not None:
        raise ValueError(f"{path.name} has more than one column {repeated}; rename or remove the others")
    return names


def load_json(path: Path, kind: type) -> Any:
    """The JSON value in a file; raises unless it has the given type."""
    try:
        value = json.loads(path.read_text(encoding="utf-8-sig"))
    except UnicodeDecodeError as error:
        raise ValueError(f"{path.name} is not UTF-8 text; convert it") from error
    except json.JSONDecodeError as error:
        raise ValueError(f"{path.name} is not JSON (line {error.lineno}: {error.msg}); correct the file") from error
    if not isinstance(value, kind):
        raise ValueError(
            f"{path.name} contains a JSON {type(value).__name__} where a {kind.__name__} is expected; correct the file"
        )
    return value


def check_single(paths: list[Path], folder: Path) -> None:
    """Raises if a folder has several files where one is expected."""
    if len(paths) > 1:
        raise ValueError(f"{folder} contains {' and '.join(path.name for path in paths)}; keep only one of them")
