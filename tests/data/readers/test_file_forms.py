"""Readers also accept files that are compressed with gzip, have delimiters other than commas, are split into parts, or
have very long rows."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.data.readers import test_bigrec, test_lcrec, test_ml_100k, test_recbole
from tests.data.sources import ITEMS, LOG, rows_of, write_table
from trl_rec.data import prepare
from trl_rec.data.readers import detect
from trl_rec.data.readers.files import find_delimiter


HEADER = ("user_id", "item_id", "timestamp", "rating")


def zipped(folder: Path, rename: bool = True) -> Path:
    """Compresses all files of the folder with gzip."""
    for path in list(folder.iterdir()):
        content = path.read_bytes()
        path.unlink()
        path.with_name(f"{path.name}.gz" if rename else path.name).write_bytes(gzip.compress(content))
    return folder


def write_delimited(folder: Path, delimiter: str) -> Path:
    """Writes the small log and its items with the given delimiter."""
    folder.mkdir(parents=True)
    for name, header, rows in (("interactions", HEADER, LOG), ("items", ("item_id", "title"), ITEMS)):
        lines = [delimiter.join(map(str, row)) for row in (header, *rows)]
        (folder / f"{name}.csv").write_text("\n".join(lines) + "\n")
    return folder


@pytest.mark.parametrize("rename", [True, False], ids=["with the suffix .gz", "without the suffix"])
def test_gzipped_tables_are_read(tmp_path: Path, rename: bool) -> None:
    plain = prepare(write_table(tmp_path / "plain"), tmp_path / "one")
    packed = prepare(zipped(write_table(tmp_path / "packed"), rename), tmp_path / "two")
    assert packed.interactions == plain.interactions and packed.catalog.titles == plain.catalog.titles


def test_gzipped_json_lines_are_read(tmp_path: Path) -> None:
    (tmp_path / "source").mkdir()
    lines = [f'{{"user_id": "{user}", "item_id": "{item}", "timestamp": {time}}}' for user, item, time, _ in LOG]
    (tmp_path / "source" / "interactions.jsonl").write_text("\n".join(lines))
    plain = prepare(tmp_path / "source", tmp_path / "one")
    packed = prepare(zipped(tmp_path / "source"), tmp_path / "two")
    assert packed.interactions == plain.interactions


def test_gzipped_folders_of_other_formats_are_read(tmp_path: Path) -> None:
    texts = {"inter": test_recbole.INTER, "item": test_recbole.ITEM, "user": test_recbole.USER}
    writers: dict[str, Callable[[Path], Path]] = {
        "bigrec": test_bigrec.write,
        "lcrec": test_lcrec.write,
        "recbole": partial(test_recbole.write, **texts),
        "ml-100k": test_ml_100k.as_grouplens,
    }
    for name, write in writers.items():
        plain = prepare(write(tmp_path / name), tmp_path / f"{name}-plain")
        packed = zipped(tmp_path / name)
        assert detect(packed) == name
        assert prepare(packed, tmp_path / f"{name}-packed").interactions == plain.interactions


@pytest.mark.parametrize("delimiter", [";", "\t", "|"])
def test_other_delimiters_are_detected(tmp_path: Path, delimiter: str) -> None:
    plain = prepare(write_table(tmp_path / "plain"), tmp_path / "one")
    other = prepare(write_delimited(tmp_path / "source", delimiter), tmp_path / "two")
    assert other.interactions == plain.interactions and rows_of(other, "test") == rows_of(plain, "test")


@pytest.mark.parametrize(
    ("header", "expected"),
    [("a,b,c;d", ","), ("a;b;c,d", ";"), ("a", ","), ('"a;b;c",d', ","), ("a\tb", "\t"), ("a,b;c", ",")],
)
def test_the_delimiter_that_gives_the_most_names_is_found(tmp_path: Path, header: str, expected: str) -> None:
    (tmp_path / "a.csv").write_text(f"{header}\n")
    assert find_delimiter(tmp_path / "a.csv") == expected


@pytest.mark.parametrize("name", ["interactions", "interactions.parquet"])
def test_a_folder_of_parquet_parts_is_read(tmp_path: Path, name: str) -> None:
    """The folder looks like the output of Spark: it contains numbered parts, a marker file and hidden checksums."""
    plain = prepare(write_table(tmp_path / "plain"), tmp_path / "one")
    folder = tmp_path / "source" / name
    folder.mkdir(parents=True)
    columns = list(zip(*LOG, strict=True))
    table = pa.table(dict(zip(HEADER, map(list, columns), strict=True)))
    for part in range(3):
        pq.write_table(table[part * 3 : part * 3 + 3], folder / f"part-0000{part}-c000.snappy.parquet")
    (folder / "_SUCCESS").touch()
    (folder / ".part-00000-c000.snappy.parquet.crc").write_bytes(b"crc")
    parts = prepare(tmp_path / "source", tmp_path / "two")
    assert rows_of(parts, "test") == rows_of(plain, "test")

    # If a part of the source has changed, the existing dataset is refused.
    pq.write_table(table[:2], folder / "part-00000-c000.snappy.parquet")
    with pytest.raises(ValueError, match="other settings or from other files"):
        prepare(tmp_path / "source", tmp_path / "two")


def test_partitions_of_duckdb_become_a_column(tmp_path: Path) -> None:
    """With `PARTITION_BY (rating)`, DuckDB writes folders like `rating=5`. The files in these folders do not contain
    the column `rating`."""
    for rating in range(1, 6):
        rows = [row[:3] for row in LOG if row[3] == rating]
        folder = tmp_path / "source" / "interactions" / f"rating={rating}"
        folder.mkdir(parents=True)
        columns = zip(*rows, strict=True)
        pq.write_table(pa.table(dict(zip(HEADER, map(list, columns), strict=False))), folder / "data_0.parquet")
    dataset = prepare(tmp_path / "source", tmp_path / "out")
    assert sorted(dataset.interactions["rating"].to_pylist()) == sorted(row[3] for row in LOG)


def test_categories_of_pandas_are_read_as_values(tmp_path: Path) -> None:
    (tmp_path / "source").mkdir()
    columns = dict(zip(HEADER, map(list, zip(*LOG, strict=True)), strict=True))
    table = pa.table(columns)
    table = table.set_column(0, "user_id", table["user_id"].dictionary_encode())
    pq.write_table(table, tmp_path / "source" / "interactions.parquet")
    assert prepare(tmp_path / "source", tmp_path / "out").card["num_users"] == 3


@pytest.mark.parametrize("suffix", ["csv", "jsonl"])
def test_titles_longer_than_a_block_are_read(tmp_path: Path, suffix: str) -> None:
    source = write_table(tmp_path / "source", items=None)
    title = "word " * 500_000  # 2.5 MB; a file is first read in blocks of 1 MiB
    if suffix == "csv":
        rows = "".join(f'{item},"{title}{item}"\n' for item, _ in ITEMS)
        (source / "items.csv").write_text(f"item_id,title\n{rows}")
    else:
        rows = "".join(f'{{"item_id": "{item}", "title": "{title}{item}"}}\n' for item, _ in ITEMS)
        (source / "items.jsonl").write_text(rows)
    assert prepare(source, tmp_path / "out").catalog.titles[1] == f"{title}b"


def test_json_objects_may_extend_over_several_lines(tmp_path: Path) -> None:
    (tmp_path / "source").mkdir()
    names = ("user_id", "item_id", "timestamp")
    rows = [json.dumps(dict(zip(names, row[:3], strict=True)), indent=2) for row in LOG]
    (tmp_path / "source" / "interactions.jsonl").write_text("\n\n".join(rows))
    assert prepare(tmp_path / "source", tmp_path / "out").card["num_interactions"] == len(LOG)


def test_brackets_in_json_text_do_not_count_as_nesting(tmp_path: Path) -> None:
    source = write_table(tmp_path / "source", items=None)
    rows = [json.dumps({"item_id": item, "title": f'\\ "{"[" * 99}{{ {item}'}) for item, _ in ITEMS]
    (source / "items.jsonl").write_text("\n".join(rows))
    assert prepare(source, tmp_path / "out").catalog.titles[0].endswith("{ a")
