"""Tests that damaged dataset folders and catalogues are refused. The error must say in one sentence what is
damaged."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.robustness.attacks import Attack, contents, each
from trl_rec.data import load, prepare
from trl_rec.items import ItemCatalog


Damage = Callable[[Path], object]
DEEP = "[" * 100_000


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Makes an undamaged dataset folder."""
    return prepare("toy", tmp_path_factory.mktemp("whole") / "toy", toy_users=5, toy_items=45).path


def put(name: str, content: str | bytes) -> Damage:
    """Writes a file."""
    data = content.encode() if isinstance(content, str) else content
    return lambda folder: (folder / name).write_bytes(data)


def cut(name: str, share: float = 0.5) -> Damage:
    """Truncates a file."""

    def _cut(folder: Path) -> None:
        data = (folder / name).read_bytes()
        (folder / name).write_bytes(data[: int(len(data) * share)])

    return _cut


def drop(name: str) -> Damage:
    """Removes a file or a folder."""

    def _drop(folder: Path) -> None:
        path = folder / name
        shutil.rmtree(path) if path.is_dir() else path.unlink()

    return _drop


def keys(name: str, **values: Any) -> Damage:
    """Sets keys of a JSON file; None removes a key."""

    def _set(folder: Path) -> None:
        card = json.loads((folder / name).read_text()) | values
        (folder / name).write_text(json.dumps({key: value for key, value in card.items() if value is not None}))

    return _set


def column(table: str, name: str, values: Any) -> Damage:
    """Sets a column of a Parquet file to `values(number of rows)`, or removes it if `values` is None."""

    def _set(folder: Path) -> None:
        rows = pq.read_table(folder / table)
        if name in rows.column_names:
            rows = rows.drop_columns([name])
        if values is not None:
            rows = rows.append_column(name, pa.array(values(rows.num_rows)))
        pq.write_table(rows, folder / table)

    return _set


def fewer_rows(table: str) -> Damage:
    """Removes the last row of a Parquet file."""
    return lambda folder: pq.write_table(pq.read_table(folder / table)[:-1], folder / table)


ITEMS = "catalog/items.parquet"
CATALOG = "catalog/catalog.json"
CATALOGS = [
    Attack("no table", "items.parquet cannot be read", drop(ITEMS)),
    Attack("truncated table", "items.parquet cannot be read", cut(ITEMS)),
    Attack("empty table", "items.parquet cannot be read", put(ITEMS, "")),
    Attack("CSV instead of Parquet", "items.parquet cannot be read", put(ITEMS, "item_id,title\n")),
    Attack("no settings", "catalog.json is missing", drop(CATALOG)),
    Attack("empty settings", "catalog.json cannot be read", put(CATALOG, "")),
    Attack("truncated settings", "catalog.json cannot be read", cut(CATALOG)),
    Attack("settings in a list", "catalog.json cannot be read", put(CATALOG, "[]")),
    Attack("settings as null", "catalog.json cannot be read", put(CATALOG, "null")),
    Attack("settings nested", "catalog.json cannot be read", put(CATALOG, DEEP)),
    Attack("settings not UTF-8", "catalog.json cannot be read", put(CATALOG, b"\xff\xfe")),
    Attack("no surface", "catalog.json cannot be read", keys(CATALOG, surface=None)),
    Attack("unknown surface", "unknown surface 'name'", keys(CATALOG, surface="name")),
    Attack("surface as a number", "unknown surface 5", keys(CATALOG, surface=5)),
    Attack("surface as a list", "unknown surface ['title']", keys(CATALOG, surface=["title"])),
    Attack("IDs without a column", "the catalogue has no semantic IDs", keys(CATALOG, surface="semantic_id")),
    Attack("unknown groups", "group_column='brand' is not a column", keys(CATALOG, group_column="brand")),
    Attack("groups as a number", "group_column=7 is not a column", keys(CATALOG, group_column=7)),
    Attack("other fingerprint", "describe different items", keys(CATALOG, fingerprint="0" * 16)),
    Attack("no item ids", "items.parquet", column(ITEMS, "item_id", None)),
    Attack("no titles", "items.parquet", column(ITEMS, "title", None)),
    Attack("item ids as numbers", "items.parquet", column(ITEMS, "item_id", range)),
    Attack("titles as numbers", "items.parquet", column(ITEMS, "title", range)),
    Attack("null titles", "items.parquet", column(ITEMS, "title", lambda count: pa.nulls(count, pa.string()))),
    Attack("null item ids", "items.parquet", column(ITEMS, "item_id", lambda count: pa.nulls(count, pa.string()))),
    Attack("repeated item ids", "occurs more than once", column(ITEMS, "item_id", lambda count: ["a"] * count)),
    Attack("a row missing", "describe different items", fewer_rows(ITEMS)),
    Attack("semantic IDs as text", "semantic_id", column(ITEMS, "semantic_id", lambda count: ["<a>"] * count)),
    Attack("semantic IDs as numbers", "semantic_id", column(ITEMS, "semantic_id", lambda count: [[1]] * count)),
    Attack(
        "null semantic IDs",
        "semantic_id",
        column(ITEMS, "semantic_id", lambda count: [["<a>"]] * (count - 1) + [None]),
    ),
    Attack("user IDs truncated", "user_ids.parquet", put("catalog/user_ids.parquet", "PAR1")),
]

FOLDERS = [
    Attack("no card", "card.json is missing", drop("card.json")),
    Attack("empty card", "card.json is not a JSON object", put("card.json", "")),
    Attack("nested card", "card.json is not a JSON object", put("card.json", DEEP)),
    Attack("another card", "card.json is not the card of a dataset", put("card.json", "{}")),
    Attack("no catalogue", "catalog/catalog.json is missing", drop("catalog")),
    Attack("no users", "users.parquet is missing", drop("users.parquet")),
    Attack("users truncated", "users.parquet cannot be read", cut("users.parquet")),
    Attack("interactions truncated", "interactions.parquet cannot be read", cut("interactions.parquet")),
    Attack("no state of a split", "test/state.json is missing", drop("test/state.json")),
    Attack("state empty", "test cannot be read", put("test/state.json", "{}")),
    Attack("state in a list", "test cannot be read", put("test/state.json", "[]")),
    Attack("no rows of a split", "train cannot be read", drop("train/data-00000-of-00001.arrow")),
    Attack("rows truncated", "train cannot be read", cut("train/data-00000-of-00001.arrow")),
    Attack("rows empty", "train cannot be read", put("train/data-00000-of-00001.arrow", "")),
    Attack("split rule as a number", "card.json", keys("card.json", split=5)),
    Attack("split rule in a list", "card.json", keys("card.json", split=["time"])),
    Attack("unknown split rule", "card.json", keys("card.json", split="random")),
    Attack("counts in words", "the numbers of rows differ", keys("card.json", rows="many")),
    Attack("other counts", "the numbers of rows differ", keys("card.json", num_interactions=1)),
    Attack("other items", "the catalogue is not the one", keys("card.json", fingerprint="0" * 16)),
    Attack("fewer users", "user of the", fewer_rows("users.parquet")),
]


def check(attack: Attack, whole: Path, folder: Path, read: Callable[[Path], object]) -> str:
    """Damages a copy of the dataset, reads it, and returns the error's sentence."""
    shutil.copytree(whole, folder)
    attack.damage(folder)
    before = contents(folder)
    with pytest.raises(ValueError) as refused:  # the message is compared below
        read(folder)
    sentence = str(refused.value)
    assert attack.says in sentence and "\n" not in sentence, sentence
    assert contents(folder) == before
    return sentence


@each(CATALOGS)
def test_damaged_catalogues_are_refused(attack: Attack, whole: Path, tmp_path: Path) -> None:
    remedy = "restore it from a copy"
    read = partial(ItemCatalog.load, remedy=remedy)
    sentence = check(attack, whole, tmp_path / "copy", lambda folder: read(folder / "catalog"))
    assert sentence.endswith(f"; {remedy}") and str(tmp_path / "copy/catalog") in sentence


@each(FOLDERS)
def test_damaged_dataset_folders_are_refused(attack: Attack, whole: Path, tmp_path: Path) -> None:
    check(attack, whole, tmp_path / "copy", load)
