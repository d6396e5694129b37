"""Tests sources that the library `datasets` has saved, and datasets of the Hugging Face Hub. Local tables replace the
Hub."""

import pytest
from datasets import Dataset, DatasetDict, load_dataset

from tests.data.sources import ITEMS, LOG, rows_of, write_table
from trl_rec.data import FetchError, prepare
from trl_rec.data.readers import hub


SOURCE = "hf://datasets/shop/log"


@pytest.fixture
def tables():
    columns = zip(*LOG, strict=True)
    names = ("user_id", "item_id", "timestamp", "rating")
    log = Dataset.from_dict({name: list(values) for name, values in zip(names, columns, strict=True)})
    item_ids, titles = zip(*ITEMS, strict=True)
    return {"interactions": log, "items": Dataset.from_dict({"item_id": list(item_ids), "title": list(titles)})}


@pytest.fixture
def expected(tmp_path):
    return prepare(write_table(tmp_path / "plain"), tmp_path / "expected")


def assert_same(dataset, expected):
    for split in ("train", "validation", "test"):
        assert rows_of(dataset, split) == rows_of(expected, split)
    assert dataset.interactions == expected.interactions and dataset.catalog.titles == expected.catalog.titles


def test_a_saved_dataset_dict_is_a_source(tmp_path, tables, expected):
    DatasetDict(tables).save_to_disk(tmp_path / "saved")
    assert_same(prepare(tmp_path / "saved", tmp_path / "out"), expected)


def test_a_saved_dataset_is_a_source_without_items(tmp_path, tables):
    renamed = tables["interactions"].rename_column("user_id", "who").add_column("note", ["x"] * len(LOG))
    renamed.save_to_disk(tmp_path / "saved")
    dataset = prepare(tmp_path / "saved", tmp_path / "out", columns={"user_id": "who"})
    assert dataset.catalog.titles == dataset.catalog.ids == list(dict.fromkeys(row[1] for row in LOG))


def test_an_incomplete_saved_dataset_is_refused(tmp_path, tables):
    tables["interactions"].save_to_disk(tmp_path / "saved")
    (tmp_path / "saved" / "state.json").write_text("{}")
    with pytest.raises(ValueError, match="saved is not a complete Dataset"):
        prepare(tmp_path / "saved", tmp_path / "out")


def pretend(monkeypatch, tmp_path, configs):
    """Pretends that the Hub contains a single dataset. `configs` maps the name of each configuration to a dict from
    the names of its splits to tables."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))

    def load(name, config=None, *, revision=None):
        assert name == "shop/log" and revision in (None, "v1")
        return DatasetDict(configs[config or next(iter(configs))])

    monkeypatch.setattr(hub, "get_dataset_config_names", lambda name, revision=None: list(configs))
    monkeypatch.setattr(hub, "load_dataset", load)


def test_the_tables_of_a_hub_dataset_are_configurations_or_splits(tmp_path, tables, expected, monkeypatch):
    pretend(monkeypatch, tmp_path, {kind: {"train": table} for kind, table in tables.items()})
    assert_same(prepare(SOURCE, tmp_path / "a"), expected)
    pretend(monkeypatch, tmp_path, {"default": tables})
    assert_same(prepare(f"{SOURCE}@v1", tmp_path / "b"), expected)
    pretend(monkeypatch, tmp_path, {"default": {"train": tables["interactions"]}})
    assert prepare(SOURCE, tmp_path / "c").interactions.num_rows == len(LOG)


def test_a_hub_dataset_is_saved_once(tmp_path, tables, expected, monkeypatch):
    tables["interactions"].to_parquet(tmp_path / "log.parquet")
    downloaded = load_dataset("parquet", data_files=str(tmp_path / "log.parquet"), cache_dir=str(tmp_path / "hf"))
    pretend(monkeypatch, tmp_path, {"default": downloaded})
    folder = hub.hub_folder(SOURCE)
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    assert folder.parent == tmp_path / "cache" / "trl-rec" / "hub" / "shop--log"
    assert hub.hub_folder(SOURCE) == folder
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before


def test_ambiguous_and_missing_hub_datasets_are_refused(tmp_path, tables, monkeypatch):
    splits = {"train": tables["interactions"], "test": tables["interactions"]}
    pretend(monkeypatch, tmp_path, {"default": splits})
    with pytest.raises(ValueError, match="shop/log has the splits train, test, so it is not clear which one"):
        prepare(SOURCE, tmp_path / "out")
    with pytest.raises(ValueError, match="is not the name of a dataset on the Hub; write hf://datasets/owner/name"):
        prepare(f"{SOURCE}/deeper", tmp_path / "out")

    def fail(name, revision=None):
        raise ConnectionError("no network")

    monkeypatch.setattr(hub, "get_dataset_config_names", fail)
    with pytest.raises(FetchError, match="hf://datasets/shop/log cannot be downloaded .no network.; check its name"):
        prepare(SOURCE, tmp_path / "out")
    assert not (tmp_path / "out").exists()
