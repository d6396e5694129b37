"""Finds and reads data files: delimited text, JSON and JSON Lines (optionally gzipped), and Parquet.

Every error message names the file.
"""

from __future__ import annotations

import csv
import gzip
import json
import re
import zlib
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow import csv as arrow_csv
from pyarrow import json as arrow_json


T = TypeVar("T")

DELIMITERS = (",", ";", "\t", "|")
# Block sizes to try, in bytes. Arrow cannot read a row that is longer than a block.
BLOCK_SIZES = (1 << 20, 1 << 24, 1 << 28)
DEEPEST = 64  # maximum nesting depth of JSON Lines; Arrow crashes the process at a depth of a few thousand
JSON_TEXT = re.compile(rb'"(?:\\.|[^"\\])*"')
JSON_TOKEN = re.compile(rb"[][{}]|[^][{}\s]+")  # a bracket, or a word without brackets


def find_file(folder: Path, names: Sequence[str]) -> Path | None:
    """Returns the file with one of these names, optionally gzipped, or None. Raises ValueError if several exist."""
    candidates = [folder / f"{name}{suffix}" for name in names for suffix in ("", ".gz")]
    paths = [path for path in candidates if path.is_file()]
    check_single(paths, folder)
    return paths[0] if paths else None


def check_single(paths: list[Path], folder: Path) -> None:
    """Raises ValueError if a folder contains several files where one is expected."""
    if len(paths) > 1:
        raise ValueError(f"{folder} contains {' and '.join(path.name for path in paths)}; keep only one of them")


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Converts errors while reading a file to ValueErrors that name the file."""
    try:
        yield
    except UnicodeDecodeError as error:
        raise ValueError(f"{path.name} is not UTF-8 text; convert it") from error
    except RecursionError as error:
        raise ValueError(f"{path.name} contains values that are nested too deeply; flatten them") from error
    except (OSError, EOFError, zlib.error, csv.Error, pa.ArrowException, MemoryError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0].rstrip(".")
        raise ValueError(f"{path.name} cannot be read: {reason}; correct the file") from error


def is_gzip(path: Path) -> bool:
    """Returns whether the content of a file is gzipped, whatever the name of the file is."""
    with path.open("rb") as file:
        return file.read(2) == b"\x1f\x8b"


def without_gz(path: Path) -> str:
    """Returns the name of a file without `.gz`."""
    return path.name.removesuffix(".gz")


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
    """Reads a delimited text file as an Arrow table. Empty cells of text columns become empty text, not null.

    Args:
        path: The file.
        delimiter (*optional*, defaults to `","`): Separates the cells of a row.
        quoted (*optional*, defaults to `True`): Whether cells may be quoted. Quoted cells may contain line breaks.
        columns (*optional*): The columns to read. By default, all columns are read.
        text (*optional*): The columns to read as text. Arrow infers the types of the other columns. By default, all
            columns are read as text.
        names (*optional*): The column names of a file without a header.
        encoding (*optional*, defaults to `"utf8"`): Encoding of the file.
    """
    # Read the header here rather than with Arrow, to strip white space from names and to reject repeated names.
    header = names or read_header(path, delimiter)
    wanted = [name for name in header if columns is None or name in columns]
    text = wanted if text is None else text
    parsing = arrow_csv.ParseOptions(
        delimiter=delimiter, quote_char='"' if quoted else False, newlines_in_values=quoted
    )
    conversion = arrow_csv.ConvertOptions(include_columns=wanted, column_types={name: pa.string() for name in text})

    def _read(file: pa.NativeFile, block_size: int) -> pa.Table:
        reading = arrow_csv.ReadOptions(
            column_names=header, skip_rows=0 if names else 1, encoding=encoding, block_size=block_size
        )
        try:
            return arrow_csv.read_csv(file, read_options=reading, parse_options=parsing, convert_options=conversion)
        except pa.ArrowInvalid as error:
            # Arrow raises an error for a file with a header and no rows. Return a table without rows instead.
            if "Empty CSV" in str(error):
                return pa.table({name: pa.array([], pa.string()) for name in wanted})
            raise

    return _in_blocks(path, _read)


def read_columns(path: Path, contents: str = "") -> pa.Table:
    """Reads a CSV, TSV or Parquet file, or a folder of Parquet files. Columns of CSV and TSV files are read as text.

    Args:
        path: The file or folder.
        contents (*optional*): What the file must contain, such as `" with lists"`, for the error message if the file
            is missing.
    """
    name = without_gz(path)
    if not path.exists():
        raise ValueError(f"there is no file {path}; give a CSV, TSV or Parquet file{contents}")
    if path.is_file() and name.endswith((".csv", ".tsv")):
        return read_delimited(path, delimiter=find_delimiter(path))
    if path.is_dir() or name.endswith(".parquet"):
        with naming(path):
            return pq.read_table(path)
    raise ValueError(
        f"{path} is not a CSV, TSV or Parquet file; its name must end in .csv, .tsv, .csv.gz, .tsv.gz or .parquet"
    )


def read_header(path: Path, delimiter: str = ",") -> list[str]:
    """Returns the names in the first row of a file. Raises ValueError if a name is repeated."""
    names = [name.strip() for name in _first_row(path, delimiter)]
    if any("\n" in name or "\r" in name for name in names):
        raise ValueError(f"{path.name} has a header of several lines; is a quotation mark missing?")
    return check_repeats(names, path)


def find_delimiter(path: Path) -> str:
    """Returns the delimiter (comma, semicolon, tab or vertical bar) that splits the header into the most names."""
    # If several delimiters give the same number of names, `max` returns the first of them.
    return max(DELIMITERS, key=lambda delimiter: len(_first_row(path, delimiter)))


def check_repeats(names: list[str], path: Path) -> list[str]:
    """Returns the names of the columns of a file unchanged. Raises ValueError if a name is repeated."""
    repeated = next((name for name in names if names.count(name) > 1), None)
    if repeated is not None:
        raise ValueError(f"{path.name} has several columns named {repeated!r}; rename or remove all but one")
    return names


def load_json(path: Path, kind: type) -> Any:
    """Returns the JSON value in a file. Raises ValueError if the value does not have the type `kind`."""
    with naming(path), _open_text(path) as file:
        text = file.read()
        try:
            value = json.loads(text)
            if "\\ud" in text.lower():  # half of a surrogate pair is valid JSON, but cannot be encoded
                json.dumps(value, ensure_ascii=False).encode()
        except json.JSONDecodeError as error:
            place = f"line {error.lineno}: {error.msg}"
            raise ValueError(f"{path.name} is not JSON ({place}); correct the file") from error
        except UnicodeEncodeError as error:
            raise ValueError(f"{path.name} contains half of a surrogate pair; correct the file") from error
        except ValueError as error:
            raise ValueError(f"{path.name} contains a number with too many digits; correct the file") from error
    if not isinstance(value, kind):
        raise ValueError(
            f"{path.name} contains a JSON {type(value).__name__} where a {kind.__name__} is expected; correct the file"
        )
    return value


def read_json_lines(path: Path, schema: pa.Schema | None = None) -> pa.Table:
    """Reads a JSON Lines file as an Arrow table.

    Args:
        path: The file.
        schema (*optional*): Types of some columns. Arrow infers the types of other columns.
    """
    with naming(path):
        _check_objects(path)

    def _read(file: pa.NativeFile, block_size: int) -> pa.Table:
        return arrow_json.read_json(
            file,
            read_options=arrow_json.ReadOptions(block_size=block_size),
            parse_options=arrow_json.ParseOptions(explicit_schema=schema, newlines_in_values=False),
        )

    table = _in_blocks(path, _read)
    check_repeats(table.column_names, path)
    return table


def _open_text(path: Path, encoding: str = "utf-8-sig") -> Any:
    """Opens a file as text, gzipped or not. Skips a byte order mark, which files from Windows may have."""
    opener = gzip.open if is_gzip(path) else open
    return opener(path, "rt", encoding=encoding, newline="")


def _first_row(path: Path, delimiter: str) -> list[str]:
    """Returns the cells in the first row of a file."""
    with naming(path), _open_text(path) as file:
        names = next(csv.reader(file, delimiter=delimiter), None)
    if not names:
        raise ValueError(f"{path.name} is empty; give a file with a header and at least one row")
    return names


def _in_blocks(path: Path, read: Callable[[pa.NativeFile, int], T]) -> T:
    """Opens a file, and returns `read(file, block_size)` for the smallest block size that fits the longest row."""
    with naming(path):
        for block_size in BLOCK_SIZES:
            result = _try_block_size(path, read, block_size)
            if result is not None:
                return result
    raise ValueError(
        f"{path.name} has a row of more than {BLOCK_SIZES[-1] >> 20} MiB; is a quotation mark or a line break missing?"
    )


def _try_block_size(path: Path, read: Callable[[pa.NativeFile, int], T], block_size: int) -> T | None:
    """Opens a file, decompresses it if necessary, and returns `read(file, block_size)`.

    Returns None if a row of the file is longer than the block size.
    """
    try:
        with pa.OSFile(str(path)) as file:
            return read(pa.CompressedInputStream(file, "gzip") if is_gzip(path) else file, block_size)
    except pa.ArrowInvalid as error:
        if "straddl" in str(error):
            return None
        raise


def _check_objects(path: Path) -> None:
    """Raises ValueError unless a JSON Lines file is a sequence of objects that are not nested too deeply.

    Arrow 26 crashes the process if a value `null` occurs between the objects, or if values are nested very deeply.
    """
    opener = gzip.open if is_gzip(path) else open
    depth = 0
    with opener(path, "rb") as file:
        for number, line in enumerate(file, 1):
            line.decode()  # Arrow does not check that text is UTF-8
            stripped = line.strip(b" \t\r\n\xef\xbb\xbf")
            is_object = stripped.startswith(b"{") and stripped.endswith(b"}")
            if not depth and (not stripped or (is_object and stripped.count(b"{") == 1 and stripped.count(b"[") < 9)):
                continue  # most lines: one flat object
            depth = _depth_after(stripped, depth, f"{path.name}, line {number}")


def _depth_after(line: bytes, depth: int, where: str) -> int:
    """Returns the nesting depth after a line.

    `depth` is the depth before the line. It is greater than 0 if an object began on an earlier line and has not ended.
    """
    for token in JSON_TOKEN.findall(JSON_TEXT.sub(b'""', line)):
        if not depth and token != b"{":
            raise ValueError(f"{where}: the file must have one object per line, such as {{...}}; correct it")
        depth += (token in b"[{") - (token in b"]}")
        if depth > DEEPEST:
            raise ValueError(f"{where}: the values are nested more than {DEEPEST} levels deep; flatten them")
    return depth
