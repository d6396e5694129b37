"""Damages files of every text format at random. Preparing them must end in an error of one sentence, or in a dataset
that loads."""

from __future__ import annotations

import gzip
import json
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.data.readers import test_bigrec, test_lcrec, test_ml_100k, test_recbole
from tests.data.sources import LOG, write_table
from trl_rec.data import load, prepare


def as_json_lines(folder: Path) -> None:
    """Writes the small log `LOG` and a table of its items as JSON Lines."""
    folder.mkdir()
    names = ("user_id", "item_id", "timestamp", "rating")
    rows = [json.dumps(dict(zip(names, row, strict=True))) for row in LOG]
    (folder / "interactions.jsonl").write_text("\n".join(rows) + "\n")
    items = [json.dumps({"item_id": item, "title": item * 3, "groups": [item]}) for item in "abcd"]
    (folder / "items.jsonl").write_text("\n".join(items) + "\n")


FORMATS: dict[str, Callable[[Path], object]] = {
    "csv": write_table,
    "jsonl": as_json_lines,
    "recbole": partial(test_recbole.write, inter=test_recbole.INTER, item=test_recbole.ITEM, user=test_recbole.USER),
    "bigrec": test_bigrec.write,
    "lcrec": partial(test_lcrec.write, index=test_lcrec.INDEX),
    "ml-100k": test_ml_100k.as_grouplens,
}
# Bytes to insert into files. Each entry has a meaning for at least one of the parsers.
PIECES = [
    *(b'"', b",", b";", b"\t", b"|", b"\n", b"\r", b"[", b"]", b"{", b"}", b":", b"-", b".", b" ", b"\\", b"\0"),
    *(
        b"null",
        b"nan",
        b"inf",
        b"true",
        b"1e999",
        b"0",
        b"-1",
        b"9" * 25,
        b"\\ud800",
        b"\\u0000",
        b"\xff",
        b"\xef\xbb\xbf",
    ),
    *(b"2024-01-01T00:00:00Z", b"2024-01-01", b"user_id", b"item_id", b"semantic_id", b":token", b":float_seq"),
    *(b"[1, 2]", b'["a", null]', b'{"a": 1}', b"\x1f\x8b", b"\xf0\x9f\x98\x80", b"\xc2\x85"),
]
piece = st.sampled_from(PIECES) | st.binary(min_size=1, max_size=4)
# The kind of an edit, its place and length as shares of the file's length, and the new bytes.
edit = st.tuples(
    st.sampled_from(["insert", "replace", "delete", "repeat", "cut"]), st.floats(0, 1), st.floats(0, 0.3), piece
)


def edited(content: bytes, kind: str, place: float, length: float, new: bytes) -> bytes:
    """Returns the content after one edit."""
    start = int(place * len(content))
    stop = start + (len(new) if kind == "replace" else int(length * len(content)))
    if kind == "insert":
        return content[:start] + new + content[start:]
    if kind == "cut":
        return content[:start]
    middle = {"replace": new, "delete": b"", "repeat": content[start:stop] * 2}[kind]
    return content[:start] + middle + content[stop:]


def check(source: Path, output: Path, **options: Any) -> None:
    """Prepares the source. The result must be an error of one sentence, or a dataset that loads."""
    try:
        prepare(source, output, **options)
    except ValueError as error:
        sentence = str(error)
        assert sentence and "\n" not in sentence.strip() and type(error).__name__ != "UnicodeDecodeError", repr(error)
        assert not output.exists()
    else:
        load(output)


def fuzz(name: str, data: st.DataObject) -> None:
    """Writes the source, makes a few edits in one of its files, sometimes compresses this file, and prepares the
    source."""
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder, "source")
        FORMATS[name](source)
        path = data.draw(st.sampled_from(sorted(source.iterdir())))
        content = path.read_bytes()
        for kind, place, length, new in data.draw(st.lists(edit, min_size=1, max_size=4)):
            content = edited(content, kind, place, length, new)
        if data.draw(st.integers(0, 9)) == 0:
            content = gzip.compress(content)
        path.write_bytes(content)
        check(source, Path(folder, "out"))


def fuzz_bytes(name: str, content: bytes) -> None:
    """Writes the same random content to every file of the source, and prepares the source."""
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder, "source")
        FORMATS[name](source)
        for path in source.iterdir():
            path.write_bytes(content)
        check(source, Path(folder, "out"))


SHORT = settings(max_examples=40, suppress_health_check=list(HealthCheck))
LONG = settings(max_examples=1000, suppress_health_check=list(HealthCheck))
every_format = pytest.mark.parametrize("name", FORMATS)


@every_format
@SHORT
@given(data=st.data())
def test_edited_files_give_a_dataset_or_an_error(name: str, data: st.DataObject) -> None:
    fuzz(name, data)


@every_format
@SHORT
@given(content=st.binary(max_size=200) | st.lists(piece, max_size=30).map(b"".join))
def test_random_bytes_give_a_dataset_or_an_error(name: str, content: bytes) -> None:
    fuzz_bytes(name, content)


@pytest.mark.slow
@pytest.mark.long
@every_format
@LONG
@given(data=st.data())
def test_edited_files_with_more_examples(name: str, data: st.DataObject) -> None:
    fuzz(name, data)


@pytest.mark.slow
@pytest.mark.long
@every_format
@LONG
@given(content=st.lists(piece, max_size=60).map(b"".join))
def test_random_bytes_with_more_examples(name: str, content: bytes) -> None:
    fuzz_bytes(name, content)
