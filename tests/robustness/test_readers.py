"""Tests that `trl-rec prepare` refuses malformed files, options and values, with the readers of all formats."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.data.readers import test_bigrec, test_lcrec, test_ml_100k, test_recbole
from tests.data.sources import LOG, write_table
from tests.robustness.attacks import Attack, assert_refused, each


Damage = Callable[[Path], object]  # changes files below a folder, as in `Attack`


def put(name: str, content: str | bytes) -> Damage:
    """Returns a function that writes a file to the folder `source`, which `trl-rec prepare` reads."""
    data = content.encode() if isinstance(content, str) else content
    return lambda folder: (folder / "source" / name).write_bytes(data)


def swap(name: str, old: str, new: str) -> Damage:
    """Returns a function that replaces the first occurrence of a text in a file of `source`."""

    def _swap(folder: Path) -> None:
        path = folder / "source" / name
        text = path.read_text(encoding="utf-8")
        assert old in text, text
        path.write_text(text.replace(old, new, 1), encoding="utf-8")

    return _swap


def drop(name: str) -> Damage:
    """Returns a function that removes a file of `source`."""
    return lambda folder: (folder / "source" / name).unlink()


def become(name: str, other: str, content: str | bytes) -> Damage:
    """Returns a function that replaces a file of `source` with a file of another name."""
    return both(drop(name), put(other, content))


def both(*damages: Damage) -> Damage:
    """Returns a function that calls the given functions in order."""
    return lambda folder: [damage(folder) for damage in damages]


def parquet(name: str, **columns: Any) -> Damage:
    """Returns a function that replaces the CSV file with a Parquet file of the same name."""

    def _write(folder: Path) -> None:
        (folder / "source" / f"{name}.csv").unlink(missing_ok=True)
        pq.write_table(pa.table(columns), folder / "source" / f"{name}.parquet")

    return _write


def parts(folder: Path) -> None:
    """Writes a table in two Parquet parts whose columns differ in their types."""
    (folder / "source" / "interactions.csv").unlink()
    place = folder / "source" / "interactions"
    place.mkdir()
    pq.write_table(pa.table({"user_id": ["u"], "item_id": ["a"], "timestamp": [1]}), place / "part-0.parquet")
    pq.write_table(pa.table({"user_id": ["u"], "item_id": [[1]], "timestamp": ["x"]}), place / "part-1.parquet")


CSV = "interactions.csv"
ITEMS = "items.csv"
COLUMNS: dict[str, Any] = {"user_id": ["u"] * 4, "item_id": list("abcd"), "timestamp": [1, 2, 3, 4]}
DEEP = "[" * 100 + "]" * 100
VERY_DEEP = "[" * 200_000 + "]" * 200_000
EVENTS = ["--event_column", "rating"]

TABLE = [
    # Files
    Attack("no interactions", "contains no files of a known format", drop(CSV)),
    Attack("no folder", "is not a folder", words=["--source", "nowhere"]),
    Attack("two tables", "contains interactions.csv and interactions.jsonl", put("interactions.jsonl", "{}")),
    Attack("plain and gzipped", "contains interactions.csv and interactions.csv.gz", put("interactions.csv.gz", b"")),
    Attack("empty file", "interactions.csv is empty", put(CSV, "")),
    Attack("only a header", "interactions.csv contains no rows", put(CSV, "user_id,item_id,timestamp\n")),
    Attack("only line breaks", "interactions.csv is empty", put(CSV, "\n\n\n")),
    Attack("Latin-1", "interactions.csv is not UTF-8 text", put(CSV, "user_id,itèm_id\n".encode("latin-1"))),
    Attack(
        "Latin-1 in a row",
        "interactions.csv is not UTF-8 text",
        put(CSV, b"user_id,item_id,timestamp\nu,\xe9,1\n"),
    ),
    Attack("UTF-16", "interactions.csv is not UTF-8 text", put(CSV, "user_id,item_id\n".encode("utf-16"))),
    Attack("zero bytes", "interactions.csv", put(CSV, b"\0" * 100)),
    Attack("a picture", "interactions.csv is not UTF-8 text", put(CSV, b"\x89PNG\r\n\x1a\n" + bytes(range(256)))),
    Attack(
        "truncated gzip", "interactions.csv cannot be read", put(CSV, gzip.compress(b"user_id,item_id\n" * 99)[:-9])
    ),
    Attack("gzip of nothing", "interactions.csv is empty", put(CSV, gzip.compress(b""))),
    Attack("half a gzip header", "interactions.csv cannot be read", put(CSV, b"\x1f\x8b")),
    Attack("ragged rows", "interactions.csv cannot be read", put(CSV, "user_id,item_id,timestamp\nu,a\n")),
    Attack("not Parquet", "interactions.parquet cannot be read", become(CSV, "interactions.parquet", "PAR1")),
    Attack("truncated Parquet", "items.parquet cannot be read", become(ITEMS, "items.parquet", b"PAR1" * 9)),
    Attack("parts that differ", "interactions cannot be read", parts),
    Attack(
        "truncated JSON",
        "interactions.jsonl cannot be read",
        become(CSV, "interactions.jsonl", '{"user_id": "u", "item_id'),
    ),
    Attack(
        "JSON array",
        "interactions.jsonl, line 1: the file must have one object per line",
        become(CSV, "interactions.jsonl", "[1, 2]\n"),
    ),
    Attack(
        "not JSON",
        "interactions.jsonl, line 1: the file must have one object per line",
        become(CSV, "interactions.jsonl", "hello\n"),
    ),
    Attack(
        "null between objects",
        "interactions.jsonl, line 2: the file must have one object per line",
        become(CSV, "interactions.jsonl", '{"user_id": "u"}\nnull\n'),
    ),
    Attack("open quotation mark", "interactions.csv has a header of several lines", swap(CSV, "user_id", '"user_id')),
    Attack("empty JSON", "interactions.jsonl", become(CSV, "interactions.jsonl", "")),
    Attack(
        "deep JSON",
        "interactions.jsonl, line 1: the values are nested more than 64",
        become(CSV, "interactions.jsonl", f'{{"user_id": {DEEP}}}\n'),
    ),
    Attack(
        "very deep JSON",
        "items.jsonl, line 2: the values are nested more than 64",
        become(ITEMS, "items.jsonl", f'{{"item_id": "a"}}\n{{"a": {VERY_DEEP}}}\n'),
    ),
    Attack(
        "two types",
        "interactions.jsonl cannot be read",
        become(CSV, "interactions.jsonl", '{"user_id": 1}\n{"user_id": "a"}\n'),
    ),
    Attack("repeated key", "interactions.jsonl", become(CSV, "interactions.jsonl", '{"user_id": 1, "user_id": 2}\n')),
    # Columns
    Attack("no user column", "interactions.csv has no column 'user_id'", swap(CSV, "user_id", "customer")),
    Attack("repeated column", "has several columns named 'user_id'", swap(CSV, "item_id", "user_id")),
    Attack("no title", "items.csv has no column 'title'", swap(ITEMS, "title", "name")),
    Attack(
        "columns to a missing name",
        "the option 'columns' maps user_id to 'nobody'",
        words=["--columns", '{"user_id": "nobody"}'],
    ),
    Attack(
        "nested columns",
        "the option 'columns' must map the column names of trl-rec to your column names",
        words=["--columns", '{"user_id": {"a": "b"}}'],
    ),
    Attack(
        "columns to a list",
        "the option 'columns' must map the column names of trl-rec to your column names",
        words=["--columns", '{"user_id": ["b"]}'],
    ),
    Attack(
        "columns to a number",
        "the option 'columns' must map the column names of trl-rec to your column names",
        words=["--columns", '{"user_id": 1}'],
    ),
    Attack("columns in words", "is not a mapping", words=["--columns", "user_id"]),
    Attack("grouped by title", "group_column cannot be title", words=["--group_column", "title"]),
    Attack("grouped by id", "group_column cannot be item_id", words=["--group_column", "item_id"]),
    Attack(
        "grouped by a missing column",
        "the items have no column 'brand' to group by",
        words=["--group_column", "brand"],
    ),
    Attack("grouped without items", "there is no item table", drop(ITEMS), words=["--group_column", "brand"]),
    Attack("empty separator", "group_separator must be a non-empty string", words=["--group_separator", ""]),
    Attack(
        "groups of structures",
        "items.parquet, row 1: the brand",
        parquet("items", item_id=list("abcd"), title=list("abcd"), brand=[{"a": 1}] * 4),
        words=["--group_column", "brand"],
    ),
    Attack(
        "semantic IDs as text",
        "each cell of the column semantic_id must be a list",
        put(ITEMS, "item_id,title,semantic_id\na,A,<a_1>\n"),
    ),
    Attack(
        "semantic IDs as numbers",
        "items.parquet: each cell of the column semantic_id must be a list of texts, one per token",
        parquet("items", item_id=list("abcd"), title=list("abcd"), semantic_id=[[1], [2], [3], [4]]),
    ),
    Attack(
        "nested semantic IDs",
        "items.parquet: each cell of the column semantic_id must be a list of texts, one per token",
        parquet("items", item_id=list("abcd"), title=list("abcd"), semantic_id=[[["<a>"]]] * 4),
    ),
    Attack(
        "null in semantic IDs",
        "items.parquet, row 1: the semantic_id ['<a>', None] contains an empty token",
        parquet("items", item_id=list("abcd"), title=list("abcd"), semantic_id=[["<a>", None]] * 4),
    ),
    Attack(
        "no semantic IDs",
        "items.parquet, row 2: the semantic_id None contains no tokens",
        parquet("items", item_id=list("abcd"), title=list("abcd"), semantic_id=[["<a>"], None, [], ["<b>"]]),
    ),
    # Values
    Attack("empty user", "interactions.csv, row 1: the user_id is empty", swap(CSV, "u1,", ",")),
    Attack("blank item", "interactions.csv, row 1: the item_id is empty", swap(CSV, ",b,", ",  ,")),
    Attack(
        "fractional id",
        "the user_id 1.5 is not a whole number",
        parquet("interactions", **(COLUMNS | {"user_id": [1.5] * 4})),
    ),
    Attack(
        "large id",
        "is not a whole number, or is so large that the type double may have rounded it",
        parquet("interactions", **(COLUMNS | {"user_id": [2.0**60] * 4})),
    ),
    Attack(
        "NaN id",
        "the user_id nan is not a whole number",
        parquet("interactions", **(COLUMNS | {"user_id": [float("nan")] * 4})),
    ),
    Attack("ids in lists", "the item_id", parquet("interactions", **(COLUMNS | {"item_id": [["a"]] * 4}))),
    Attack("ids of bytes", "the item_id", parquet("interactions", **(COLUMNS | {"item_id": [b"\xff"] * 4}))),
    Attack("titles of structures", "the title", parquet("items", item_id=list("abcd"), title=[{"a": 1}] * 4)),
    Attack("empty title", "items.csv, row 1: item 'a' has an empty title", swap(ITEMS, "Apple", " ")),
    Attack("repeated item", "items.csv, row 2: the item_id 'a' occurs more than once", swap(ITEMS, "b,", "a,")),
    Attack("unknown item", "interactions.csv, row 1: item 'zebra' is not in items.csv", swap(CSV, ",b,", ",zebra,")),
    Attack("unknown user", "user 'u2' is not in users.csv", put("users.csv", "user_id\nu1\n")),
    Attack("word as time", "row 1: the timestamp 'soon' is neither a number nor ISO 8601", swap(CSV, ",1,", ",soon,")),
    Attack("empty time", "row 1: the timestamp '' is neither", swap(CSV, ",1,", ",,")),
    Attack("infinite time", "row 1: the timestamp 'inf' is neither", swap(CSV, ",1,", ",inf,")),
    Attack("date in another format", "(for other text, set timestamp_format)", swap(CSV, ",1,", ",28/03/2024,")),
    Attack(
        "zone in the first row only",
        "row 2: the timestamp '2024-01-02T00:00:00' has no time zone, but the timestamps before it have one",
        put(CSV, "user_id,item_id,timestamp\nu,a,2024-01-01T00:00:00Z\nu,b,2024-01-02T00:00:00\n"),
    ),
    Attack(
        "zone in the last row only",
        "row 3: the timestamp '2024-01-02T00:00:00+01:00' has a time zone, but the timestamps before it have none",
        put(
            CSV, "user_id,item_id,timestamp\nu,a,2024-01-01\nu,a,2024-01-01T00:00:00\nu,b,2024-01-02T00:00:00+01:00\n"
        ),
    ),
    Attack("times in lists", "the timestamp", parquet("interactions", **(COLUMNS | {"timestamp": [[1]] * 4}))),
    Attack("word as rating", "row 1: the rating 'good' is not a finite number", swap(CSV, ",1,5", ",1,good")),
    Attack(
        "decimal comma",
        "the rating '4,5' is not a finite number",
        put(CSV, "user_id;item_id;timestamp;rating\nu;a;1;4,5\n"),
    ),
    Attack("empty rating", "row 1: the rating is empty", swap(CSV, ",1,5", ",1,")),
    Attack("huge rating", "the rating '1e300' is out of float32's range", swap(CSV, ",1,5", ",1,1e300")),
    Attack(
        "only repeats",
        "is in its user's history, so nothing can be measured",
        put(CSV, "user_id,item_id,timestamp\n" + "u,a,1\n" * 5),
    ),
    Attack(
        "one interaction per user",
        "the validation split is empty",
        put(CSV, "user_id,item_id,timestamp\nu,a,1\nv,b,2\n"),
    ),
    # Options
    Attack("unknown format", "unknown format 'excel'", words=["--format", "excel"]),
    Attack("other format than the files", "contains no files of the format bigrec", words=["--format", "bigrec"]),
    Attack("unknown split", "unknown split 'random'", words=["--split", "random"]),
    Attack(
        "option of another format",
        "title_column has no effect with the format 'table'",
        words=["--title_column", "name"],
    ),
    Attack("unknown choice of repeats", "repeats must be 'keep', 'first' or 'last'", words=["--repeats", "newest"]),
    Attack(
        "unknown choice of items", "unknown_items must be 'refuse', 'drop' or 'keep'", words=["--unknown_items", "x"]
    ),
    Attack("unknown choice of ratings", "empty_ratings must be 'refuse' or 'drop'", words=["--empty_ratings", "0"]),
    Attack(
        "timestamp format without directives",
        "timestamp_format must contain directives",
        words=["--timestamp_format", "DD/MM/YYYY"],
    ),
    Attack(
        "wrong timestamp format",
        "row 1: the timestamp '1' does not match the timestamp_format '%d/%m/%Y'",
        words=["--timestamp_format", "%d/%m/%Y"],
    ),
    Attack("unknown directive", "does not match the timestamp_format '%Q'", words=["--timestamp_format", "%Q"]),
    Attack("events without ratings", "event_column and event_ratings must be set together", words=EVENTS),
    Attack(
        "ratings without events",
        "event_column and event_ratings must be set together",
        words=["--event_ratings", '{"a": 1}'],
    ),
    Attack(
        "event without a rating",
        "row 1: the event '5' has no rating; add it to event_ratings",
        words=[*EVENTS, "--event_ratings", '{"view": 1}'],
    ),
    Attack(
        "event rated in words",
        "event_ratings: view must be",
        words=[*EVENTS, "--event_ratings", '{"view": "high"}'],
    ),
    Attack(
        "event rated NaN",
        "event_ratings: view must be a finite number",
        words=[*EVENTS, "--event_ratings", '{"view": NaN}'],
    ),
    Attack(
        "no event rated", "event_ratings gives no event a rating", words=[*EVENTS, "--event_ratings", '{"view": null}']
    ),
    Attack(
        "no event column",
        "interactions.csv has no column 'event' for event_column",
        words=["--event_column", "event", "--event_ratings", '{"view": 1}'],
    ),
    Attack(
        "every event left out",
        "no rows are left",
        put(CSV, "user_id,item_id,timestamp,rating\nu,a,1,view\n"),
        words=[*EVENTS, "--event_ratings", '{"view": null, "buy": 1}'],
    ),
]

RECBOLE = [
    Attack(
        "header without types",
        "X.inter: the column 'user_id' has no known type",
        swap("X.inter", "user_id:token", "user_id"),
    ),
    Attack(
        "unknown type", "the column 'user_id:text' has no known type", swap("X.inter", "user_id:token", "user_id:text")
    ),
    Attack(
        "same name twice", "X.item has several columns named 'price'", swap("X.item", "class:token_seq", "price:token")
    ),
    Attack("two data sets", "contains X.inter and Y.inter", put("Y.inter", "")),
    Attack("empty interactions", "X.inter is empty", put("X.inter", "")),
    Attack("no title column", "X.item has no title column", swap("X.item", "name:token_seq", "label:token_seq")),
    Attack("word as price", "X.item, row 1: the price 'cheap' is not a finite number", swap("X.item", "1.5", "cheap")),
    Attack("word in a vector", "X.item, row 1: the vector", swap("X.item", "1 2", "1 two")),
    Attack("word as time", "X.inter, row 1: the timestamp 'x'", swap("X.inter", "\t4\t3\n", "\t4\tx\n")),
    Attack("rows of other widths", "X.inter cannot be read", swap("X.inter", "\t4\t3\n", "\t4\n")),
    Attack("truncated gzip", "X.inter cannot be read", put("X.inter", gzip.compress(b"user_id:token\n" * 99)[:-9])),
    Attack("unknown title column", "set title_column to one of", words=["--title_column", "colour"]),
    Attack("grouped by name", "the items have no column 'name' to group by", words=["--group_column", "name"]),
]

BIGREC = [
    Attack("no target", "has fewer than two ids", swap("train.csv", '"[1, 2]"', "[1]")),
    Attack("empty list", "has fewer than two ids", swap("train.csv", '"[1, 2]"', "[]")),
    Attack(
        "unknown item",
        "train.csv, row 1: item '99' is not in id2name4Rec.json",
        swap("train.csv", "[1, 2]", "[99, 2]"),
    ),
    Attack("no column", "train.csv has no column item_ids", swap("train.csv", "item_ids", "items")),
    Attack("titles in a list", "id2name4Rec.json contains a JSON list", put("id2name4Rec.json", "[]")),
    Attack("titles truncated", "id2name4Rec.json is not JSON", put("id2name4Rec.json", '{"1": "Pens')),
    Attack(
        "titles nested",
        "id2name4Rec.json contains values that are nested too deeply",
        put("id2name4Rec.json", '{"1": ' + VERY_DEEP + "}"),
    ),
    Attack(
        "half a surrogate",
        "id2name4Rec.json contains half of a surrogate pair",
        put("id2name4Rec.json", '{"1": "\\ud800"}'),
    ),
    Attack(
        "endless number",
        "id2name4Rec.json contains a number with too many digits",
        put("id2name4Rec.json", '{"1": ' + "9" * 5000 + "}"),
    ),
    Attack("no titles", "id2name4Rec.json contains no rows", put("id2name4Rec.json", "{}")),
    Attack("empty test", "test.csv is empty", put("test.csv", "")),
    Attack(
        "two training files",
        "contains train_1.csv and train_2.csv",
        both(drop("train.csv"), put("train_1.csv", ""), put("train_2.csv", "")),
    ),
    Attack("word as time", "test.csv, row 1: the timestamp", swap("test.csv", ",7", ",later")),
    Attack("filtered", "is already filtered and split by its source", words=["--min_user_interactions", "2"]),
    Attack("repeats", "so its rows are used as they are; leave out repeats", words=["--repeats", "first"]),
]

LCREC = [
    Attack("interactions truncated", "X.inter.json is not JSON", put("X.inter.json", '{"u": [0, 2')),
    Attack("interactions empty", "X.inter.json is not JSON", put("X.inter.json", "")),
    Attack("interactions in a list", "X.inter.json contains a JSON list", put("X.inter.json", "[[0, 1]]")),
    Attack("items of a user as text", "the items of user 'u' must be a list", put("X.inter.json", '{"u": "0 1"}')),
    Attack("items nested", "X.inter.json", put("X.inter.json", '{"u": [[0], [1], [2]]}')),
    Attack(
        "interactions nested",
        "X.inter.json contains values that are nested too deeply",
        put("X.inter.json", '{"u": ' + VERY_DEEP + "}"),
    ),
    Attack("not UTF-8", "X.inter.json is not UTF-8 text", put("X.inter.json", b'{"\xff": [0]}')),
    Attack("item without fields", "item '0' must be an object with fields", put("X.item.json", '{"0": "Soap"}')),
    Attack("item without a title", "item '0' has no title", put("X.item.json", '{"0": {"name": "Soap"}}')),
    Attack(
        "half a surrogate",
        "X.item.json contains half of a surrogate pair",
        put("X.item.json", '{"0": {"title": "\\udc00"}}'),
    ),
    Attack("unknown item", "item '2' is not in X.item.json", put("X.item.json", '{"0": {"title": "Soap"}}')),
    Attack("IDs missing", "X.index.json contains no tokens for item '1'", put("X.index.json", '{"0": ["<a>"]}')),
    Attack(
        "IDs as numbers",
        "the tokens of item '0' must be a list of strings",
        put("X.index.json", json.dumps({str(item): [item] for item in range(4)})),
    ),
    Attack(
        "IDs as text",
        "the tokens of item '0' must be a list of strings",
        put("X.index.json", json.dumps({str(item): "<a>" for item in range(4)})),
    ),
    Attack(
        "IDs without items",
        "X.index.json needs an item file in the same folder",
        both(drop("X.item.json"), put("X.index.json", "{}")),
    ),
    Attack(
        "column called semantic_id",
        "each cell of the column semantic_id must be a list",
        both(
            drop("X.index.json"),
            put("X.item.json", json.dumps({str(item): {"title": "T", "semantic_id": "x"} for item in range(4)})),
        ),
    ),
    Attack("split by time", "the source has no timestamps to split by", words=["--split", "time"]),
]

ML_100K = [
    Attack("ratings cut", "u.data cannot be read", put("u.data", "1\t3\t5\n")),
    Attack("ratings empty", "u.data", put("u.data", "")),
    Attack("rating in words", "u.data, row 1: the rating 'x'", swap("u.data", "\t5\t10", "\tx\t10")),
    Attack("age in words", "u.user, row 1: the age 'old' cannot be read as int32", swap("u.user", "24", "old")),
    Attack(
        "item missing",
        "u.data, row 1: item '3' is not in u.item",
        put("u.item", "1|Toy Story (1995)|||" + "|0" * 19 + "\n"),
    ),
    Attack("no file of users", "contains no files of a known format", drop("u.user")),
]


def check(attack: Attack, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Damages the source, and checks that `trl-rec prepare` refuses it."""
    assert_refused(attack, "prepare", ["--source", "source", "--output_dir", "out"], folder, capsys)


@each(TABLE)
def test_malformed_tables_are_refused(attack: Attack, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_table(tmp_path / "source", LOG)
    check(attack, tmp_path, capsys)


@each(RECBOLE)
def test_malformed_recbole_files_are_refused(
    attack: Attack, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    texts = {"inter": test_recbole.INTER, "item": test_recbole.ITEM, "user": test_recbole.USER}
    test_recbole.write(tmp_path / "source", **texts)
    check(attack, tmp_path, capsys)


@each(BIGREC)
def test_malformed_bigrec_files_are_refused(
    attack: Attack, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    test_bigrec.write(tmp_path / "source")
    check(attack, tmp_path, capsys)


@each(LCREC)
def test_malformed_lcrec_files_are_refused(attack: Attack, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    test_lcrec.write(tmp_path / "source", index=test_lcrec.INDEX)
    check(attack, tmp_path, capsys)


@each(ML_100K)
def test_malformed_ml_100k_files_are_refused(
    attack: Attack, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    test_ml_100k.as_grouplens(tmp_path / "source")
    check(attack, tmp_path, capsys)
