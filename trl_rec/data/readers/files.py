"""Finds and reads source files: delimited text, JSON and JSON Lines, gzipped or not. Every error names the file."""

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
from pyarrow import csv as arrow_csv
from pyarrow import json as arrow_json


T = TypeVar("T")

DELIMITERS = (",", ";", "\t", "|")
# Arrow reads blocks of whole rows. A row that is longer than a block needs a larger one.
BLOCK_SIZES = (1 << 20, 1 << 24, 1 << 28)
DEEPEST = 64  # levels of JSON; from some thousands on, Arrow ends the whole process
JSON_TEXT = re.compile(rb'"(?:\\.|[^"\\])*"')
JSON_TOKEN = re.compile(rb"[][{}]|[^][{}\s]+")  # a bracket, or what stands between brackets


def find_file(folder: Path, names: Sequence[str]) -> Path | None:
    """The file with one of these names, gzipped or not; raises if a folder has several of them."""
    candidates = [folder / f"{name}{suffix}" for name in names for suffix in ("", ".gz")]
    paths = [path for path in candidates if path.is_file()]
    check_single(paths, folder)
    return paths[0] if paths else None


def check_single(paths: list[Path], folder: Path) -> None:
    """Raises if a folder has several files where one is expected."""
    if len(paths) > 1:
        raise ValueError(f"{folder} contains {' and '.join(path.name for path in paths)}; keep only one of them")


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Names the file in every error that reading it may cause."""
    try:
        yield
    except UnicodeDecodeError as error:
        raise ValueError(f"{path.name} is not UTF-8 text; convert it") from error
    except RecursionError as error:
        raise ValueError(f"{path.name} has values that are nested too deeply; flatten them") from error
    except (OSError, EOFError, zlib.error, csv.Error, pa.ArrowException, MemoryError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0].rstrip(".")
        raise ValueError(f"{path.name} cannot be read: {reason}; correct the file") from error


def is_gzip(path: Path) -> bool:
    """Whether the file's content is gzipped, whatever its name is."""
    with path.open("rb") as file:
        return file.read(2) == b"\x1f\x8b"


def without_gz(path: Path) -> str:
    """The file's name without `.gz`."""
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
            # Arrow refuses a file that has a header and no rows; here it is a table without rows.
            if "Empty CSV" in str(error):
                return pa.table({name: pa.array([], pa.string()) for name in wanted})
            raise

    return _in_blocks(path, _read)


def read_header(path: Path, delimiter: str = ",") -> list[str]:
    """The names in the file's first row."""
    names = [name.strip() for name in _first_row(path, delimiter)]
    if any("\n" in name or "\r" in name for name in names):
        raise ValueError(f"{path.name} has a header of several lines; is a quotation mark missing?")
    return check_repeats(names, path)


def find_delimiter(path: Path) -> str:
    """The delimiter that cuts the file's header into the most names: a comma, semicolon, tab or vertical bar."""
    return max(DELIMITERS, key=lambda delimiter: len(_first_row(path, delimiter)))  # the first one if several tie


def check_repeats(names: list[str], path: Path) -> list[str]:
    """The names of a file's columns; raises if one occurs twice."""
    repeated = next((name for name in names if names.count(name) > 1), None)
    if repeated is not None:
        raise ValueError(f"{path.name} has more than one column {repeated!r}; rename or remove the others")
    return names


def load_json(path: Path, kind: type) -> Any:
    """The JSON value in a file; raises unless it has the given type."""
    with naming(path), _open_text(path) as file:
        text = file.read()
        try:
            value = json.loads(text)
            if "\\ud" in text.lower():  # half of a surrogate pair is JSON, but no text
                json.dumps(value, ensure_ascii=False).encode()
        except json.JSONDecodeError as error:
            place = f"line {error.lineno}: {error.msg}"
            raise ValueError(f"{path.name} is not JSON ({place}); correct the file") from error
        except UnicodeEncodeError as error:
            raise ValueError(f"{path.name} contains half of a surrogate pair; correct the file") from error
        except ValueError as error:
            raise ValueError(f"{path.name} contains a number of too many digits; correct the file") from error
    if not isinstance(value, kind):
        raise ValueError(
            f"{path.name} contains a JSON {type(value).__name__} where a {kind.__name__} is expected; correct the file"
        )
    return value


def read_json_lines(path: Path, schema: pa.Schema | None = None) -> pa.Table:
    """A JSON Lines file as an Arrow table.

    Args:
        path: The file.
        schema (*optional*): Types of some columns. Arrow infers the others.
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
    """The file opened as text. A byte order mark, as files from Windows may have, is no part of it."""
    opener = gzip.open if is_gzip(path) else open
    return opener(path, "rt", encoding=encoding, newline="")


def _first_row(path: Path, delimiter: str) -> list[str]:
    """The cells of the file's first row."""
    with naming(path), _open_text(path) as file:
        names = next(csv.reader(file, delimiter=delimiter), None)
    if not names:
        raise ValueError(f"{path.name} is empty; give a file with a header and at least one row")
    return names


def _in_blocks(path: Path, read: Callable[[pa.NativeFile, int], T]) -> T:
    """What `read` makes of the open file, with blocks as large as its longest row needs."""
    with naming(path):
        for block_size in BLOCK_SIZES:
            try:
                with pa.OSFile(str(path)) as file:
                    return read(pa.CompressedInputStream(file, "gzip") if is_gzip(path) else file, block_size)
            except pa.ArrowInvalid as error:
                if "straddl" not in str(error):
                    raise
    raise ValueError(
        f"{path.name} has a row of more than {BLOCK_SIZES[-1] >> 20} MiB; is a quotation mark or a line break missing?"
    )


def _check_objects(path: Path) -> None:
    """Raises unless a JSON Lines file is one object after another, none of them nested too deeply.

    Arrow 26 ends the whole process at a value `null` between the objects, and at very deep nesting.
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

            # An object may also extend over several lines.
            for token in JSON_TOKEN.findall(JSON_TEXT.sub(b'""', stripped)):
                if not depth and token != b"{":
                    problem = "the file must have one object per line, such as {...}"
                    raise ValueError(f"{path.name}, line {number}: {problem}; correct it")
                depth += (token in b"[{") - (token in b"]}")
                if depth > DEEPEST:
                    problem = f"the values are nested more than {DEEPEST} levels deep"
                    raise ValueError(f"{path.name}, line {number}: {problem}; flatten them")
