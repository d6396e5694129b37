"""Loading a dataset folder returns what was prepared, and refuses a damaged or incomplete folder."""

import itertools
import json
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import Dataset

from tests.data.sources import write_table
from trl_rec.data import RecDataset, load, prepare
from trl_rec.data.dataset import save
from trl_rec.items import ItemCatalog


@pytest.fixture
def prepared(tmp_path):
    return prepare(write_table(tmp_path / "source"), tmp_path / "out")


def test_load_returns_what_prepare_returned(prepared):
    loaded = load(str(prepared.path))
    assert isinstance(loaded, RecDataset) and loaded.path == prepared.path and loaded.card == prepared.card
    assert loaded.catalog.fingerprint == prepared.catalog.fingerprint and loaded.users.equals(prepared.users)
    for name in ("train", "validation", "test"):
        assert (
            getattr(loaded, name).to_list() == getattr(prepared, name).to_list()
            and str(getattr(loaded, name).split) == name
        )


def test_a_dataset_is_printed_in_one_line(prepared):
    counts = prepared.card["num_interactions"], len(prepared.train)
    assert repr(prepared) == (
        f"RecDataset({str(prepared.path)!r}: {prepared.users.num_rows} users, {len(prepared.catalog)} items, "
        f"{counts[0]:,} interactions; rows: train {counts[1]}, validation {len(prepared.validation)}, "
        f"test {len(prepared.test)})"
    )
    assert repr(prepared.catalog).startswith(f"ItemCatalog({len(prepared.catalog)} items with the surface 'title'; ")


def test_interactions_are_read_on_first_use(prepared):
    loaded = load(prepared.path)
    (prepared.path / "interactions.parquet").rename(prepared.path / "elsewhere")
    with pytest.raises(ValueError, match="out is damaged .interactions.parquet cannot be read: FileNotFoundError"):
        _ = loaded.interactions
    (prepared.path / "elsewhere").rename(prepared.path / "interactions.parquet")
    assert loaded.interactions.num_rows == 8


def test_a_folder_without_a_card_is_refused(prepared):
    (prepared.path / "card.json").unlink()
    with pytest.raises(
        ValueError, match="out is incomplete or not a dataset folder .card.json is missing.; run trl-rec prepare"
    ):
        load(prepared.path)


def test_another_kind_of_card_is_refused(prepared):
    (prepared.path / "card.json").write_text(json.dumps({"model": "a card too"}))
    with pytest.raises(ValueError, match="card.json is not the card of a dataset"):
        load(prepared.path)


def test_a_relative_path_stays_valid_after_a_change_of_directory(prepared, tmp_path, monkeypatch):
    monkeypatch.chdir(prepared.path.parent)
    loaded = load("out")
    monkeypatch.chdir("/")
    assert loaded.path == prepared.path and loaded.interactions.num_rows == 8


FILES = [
    "users.parquet",
    "interactions.parquet",
    "catalog/items.parquet",
    "catalog/catalog.json",
    *(
        f"{split}/{name}"
        for split in ("train", "validation", "test")
        for name in ("data-00000-of-00001.arrow", "state.json", "dataset_info.json")
    ),
]


def truncate(part):
    return lambda path: path.write_bytes(path.read_bytes()[: int(path.stat().st_size * part)])


DAMAGES = {
    "deleted": Path.unlink,
    "emptied": truncate(0),
    "halved": truncate(0.5),
    "cut short": truncate(0.98),
    "an empty object": lambda path: path.write_text("{}"),
    "an empty list": lambda path: path.write_text("[]"),
}


HARMLESS = {(f"{split}/dataset_info.json", "an empty object") for split in ("train", "validation", "test")}


@pytest.mark.parametrize(
    ("name", "damage"), [pair for pair in itertools.product(FILES, DAMAGES) if pair not in HARMLESS]
)
def test_a_damaged_file_is_named_and_can_be_prepared_again(prepared, tmp_path, name, damage):
    DAMAGES[damage](prepared.path / name)
    part = name.split("/")[-1] if name.startswith("catalog") else name.split("/")[0]
    with pytest.raises(
        ValueError, match="out(/catalog)? is damaged .*; run trl-rec prepare again with --overwrite"
    ) as error:
        load(prepared.path)
    assert part in str(error.value) and "\n" not in str(error.value)
    assert prepare(tmp_path / "source", prepared.path, overwrite=True).card == prepared.card


@pytest.mark.parametrize("damage", sorted(DAMAGES.keys() - {"deleted", "an empty object"}))
def test_the_error_for_a_damaged_card_names_the_remedy(prepared, damage):
    DAMAGES[damage](prepared.path / "card.json")
    with pytest.raises(
        ValueError,
        match="out is damaged .card.json is not a JSON object.; if the folder is a dataset, delete the folder and",
    ):
        load(prepared.path)


def test_numbers_of_rows_that_differ_from_the_card_are_refused(prepared):
    table = prepared.interactions
    pq.write_table(table[:-1], prepared.path / "interactions.parquet")
    with pytest.raises(ValueError, match="out is damaged .the numbers of rows differ from those in card.json"):
        load(prepared.path)
    pq.write_table(table, prepared.path / "interactions.parquet")
    (prepared.path / "card.json").write_text(
        json.dumps(prepared.card | {"rows": prepared.card["rows"] | {"train": 4}})
    )
    with pytest.raises(ValueError, match="out is damaged .the numbers of rows differ"):
        load(prepared.path)


def test_another_catalogue_is_refused(prepared):
    items = prepared.catalog.items
    ItemCatalog(items.take(pa.array([1, 0, 2, 3, 4]))).save(prepared.path / "catalog")
    with pytest.raises(ValueError, match="the catalogue is not the one that card.json describes"):
        load(prepared.path)


@pytest.mark.parametrize(
    ("column", "value", "message"),
    [
        ("targets", [5], "targets of the test split contains indices from 1 to 5, but only 0 to 4 exist"),
        ("history", [0, -1], "history of the test split contains indices from -1 to 2, but only 0 to 4 exist"),
        ("user", 3, "user of the test split contains indices from 1 to 3, but only 0 to 2 exist"),
    ],
)
def test_indices_out_of_range_are_refused(prepared, tmp_path, column, value, message):
    rows = prepared.test.to_list()
    rows[0][column] = value
    table = pa.Table.from_pylist(rows, prepared.test.data.table.schema)
    Dataset(table, split="test").save_to_disk(str(tmp_path / "changed"))
    for file in (tmp_path / "changed").iterdir():
        file.replace(prepared.path / "test" / file.name)
    with pytest.raises(ValueError, match=message):
        load(prepared.path)


def test_the_folder_contains_the_documented_files(prepared):
    assert sorted(path.name for path in prepared.path.iterdir()) == [
        *("card.json", "catalog", "interactions.parquet", "test", "train", "users.parquet", "validation")
    ]
    assert pq.read_schema(prepared.path / "interactions.parquet").names == ["user", "item", "timestamp", "rating"]


def test_the_card_is_written_last(prepared, tmp_path):
    with pytest.raises(AttributeError):
        save(tmp_path, prepared.catalog, prepared.users, prepared.interactions, {"test": None}, prepared.card)
    assert (tmp_path / "interactions.parquet").is_file() and not (tmp_path / "card.json").exists()


def test_names_are_imported_on_first_use():
    code = (
        "import sys, trl_rec.data as d; assert callable(d.prepare) and callable(d.load); "
        "assert 'torch' not in sys.modules; from trl_rec.data.preparation.preparing import prepare; "
        "assert d.prepare is prepare; assert 'prepare' in dir(d)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
