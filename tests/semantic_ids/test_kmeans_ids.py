"""Tests semantic IDs made by residual k-means: their files, their card (`semantic_ids.json`, with the settings of the
IDs and statistics about them), and the settings that are refused."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.data.sources import write_table
from tests.oracles import semantic_ids as oracle
from trl_rec import load, make_semantic_ids, prepare
from trl_rec.data import PromptFormat, build_rows
from trl_rec.items import ItemCatalog, TokenTrie
from trl_rec.models import make_tokenizer
from trl_rec.ragged import Ragged
from trl_rec.semantic_ids import cooccurrence_vectors, describe_ids, kmeans_ids, read_ids_card


SMALL = {"levels": 3, "codes": 6, "width": 8}


@pytest.fixture(scope="module")
def toy(tmp_path_factory):
    return prepare("toy", tmp_path_factory.mktemp("toy") / "toy", toy_users=40, toy_items=50)


@pytest.fixture
def dataset(toy, tmp_path):
    shutil.copytree(toy.path, tmp_path / "toy")
    return load(tmp_path / "toy")


def texts(catalog):
    return ["".join(catalog.semantic_ids[item]) for item in range(len(catalog))]


def files(folder):
    return {path.name: path.read_bytes() for path in (folder / "catalog").iterdir()}


def test_ids_are_written_into_the_folder_and_nothing_else_changes(dataset):
    before = files(dataset.path)
    made = make_semantic_ids(dataset, **SMALL)
    assert made.catalog.surface == "title" and made.train is dataset.train
    loaded = load(dataset.path)
    assert loaded.catalog.fingerprint == dataset.catalog.fingerprint and loaded.catalog.items.equals(
        dataset.catalog.items
    )
    assert texts(loaded.catalog) == texts(made.catalog) and len(set(texts(made.catalog))) == 50
    after = files(dataset.path)
    assert (
        set(after) == {"catalog.json", "items.parquet", "semantic_ids.json"}
        and after["catalog.json"] == before["catalog.json"]
    )
    assert prepare("toy", dataset.path, toy_users=40, toy_items=50).catalog.semantic_ids is not None
    again = prepare("toy", dataset.path, toy_users=40, toy_items=50, overwrite=True)
    assert again.catalog.semantic_ids is None and files(dataset.path) == before


def test_rows_and_the_trie_use_the_ids(dataset):
    made = make_semantic_ids(dataset, **SMALL, collisions="extend").with_surface("semantic_id")
    tokenizer = make_tokenizer(made.catalog)
    assert TokenTrie.from_sequences(made.catalog.paths(tokenizer).padded()).num_items == 50
    rows = build_rows(made.train, PromptFormat.for_catalog(made.catalog, tokenizer))
    target = made.train[0]["targets"][0]
    assert [label for label in rows[0]["labels"] if label >= 0] == made.catalog.paths(tokenizer)[target].tolist()


def test_the_card_describes_the_ids(dataset):
    made = make_semantic_ids(dataset, **SMALL)
    card = read_ids_card(dataset.path)
    codes = [tuple(ids) for ids in made.catalog.semantic_ids.padded(fill="").tolist()]
    assert card["settings"] | SMALL == card["settings"] and card["num_tokens"] == len(
        {code for row in codes for code in row}
    )
    assert card["distinct"]["found"] < card["distinct"]["repaired"] == card["distinct"]["written"] == 1
    assert card["moved"] >= 50 - round(50 * card["distinct"]["found"]) > 0 and card["largest_group"] == 1
    for level, found in enumerate(card["levels"]):
        shares = np.unique([row[level] for row in codes], return_counts=True)[1] / 50
        assert found["used"] == len(shares) and found["perplexity"] == round(
            float(np.exp(-(shares * np.log(shares)).sum())), 2
        )
    for length, found in enumerate(card["prefixes"], 1):
        prefixes = [row[:length] for row in codes]
        assert found["groups"] == len(set(prefixes)) and found["mean_size"] == round(50 / len(set(prefixes)), 2)
        assert found["others"] == round(sum(prefixes.count(prefix) - 1 for prefix in prefixes) / 50, 2)
    for entry in card["neighbours"]:
        mine = codes[made.catalog.titles.index(entry["title"])]
        assert entry["id"] == "".join(mine)
        for other in entry["items"]:
            rows = [row for row, title in zip(codes, made.catalog.titles, strict=True) if title == other["title"]]
            assert any(row[: other["shared"]] == mine[: other["shared"]] for row in rows) and 1 <= other["shared"] < 3
    assert "50 items, 3 levels of 6 codes" in describe_ids(card)


def test_only_items_that_share_a_code_are_neighbours(dataset):
    first = [text.split(">")[0] for text in texts(make_semantic_ids(dataset, levels=2, codes=30).catalog)]
    entries = read_ids_card(dataset.path)["neighbours"]
    numbers = [first.count(entry["id"].split(">")[0]) - 1 for entry in entries]
    assert [len(entry["items"]) for entry in entries] == [min(5, number) for number in numbers] and min(numbers) < 5


def test_the_seed_determines_the_codes(dataset):
    first = texts(make_semantic_ids(dataset, **SMALL).catalog)
    assert texts(make_semantic_ids(dataset, **SMALL, overwrite=True).catalog) == first
    assert texts(make_semantic_ids(dataset, **SMALL, seed=1, overwrite=True).catalog) != first


def test_existing_ids_are_reused_or_refused(dataset, monkeypatch):
    first = make_semantic_ids(dataset, **SMALL)
    with pytest.raises(
        ValueError,
        match="toy already contains semantic IDs that were not made with these settings; to replace them, set ",
    ):
        make_semantic_ids(dataset, **SMALL | {"codes": 5})
    monkeypatch.setattr(kmeans_ids, "residual_kmeans", None)
    assert texts(make_semantic_ids(dataset, **SMALL).catalog) == texts(first.catalog)


def test_foreign_ids_are_not_reused(dataset):
    make_semantic_ids(dataset, **SMALL)
    folder = dataset.path / "catalog"
    foreign = Ragged.from_lists([[f"<x_{item}>"] for item in range(50)], object)
    ItemCatalog.load(folder).with_surface("title", foreign).save(folder)
    with pytest.raises(ValueError, match="not made with these settings"):
        make_semantic_ids(dataset, **SMALL)
    (folder / "semantic_ids.json").write_text("[]")
    with pytest.raises(
        ValueError, match="semantic_ids.json is damaged .*; delete it and run trl-rec tokenize with --overwrite"
    ):
        make_semantic_ids(dataset, **SMALL)
    assert texts(make_semantic_ids(dataset, **SMALL, overwrite=True).catalog)[0].startswith("<a_")


@pytest.mark.parametrize("broken", ["items.parquet", "semantic_ids.json"])
def test_a_failure_leaves_a_folder_that_loads(dataset, monkeypatch, broken):
    make_semantic_ids(dataset, **SMALL)
    real = Path.replace

    def replace(path, target):
        if path.name == broken:
            raise OSError("the disk is full")
        return real(path, target)

    with monkeypatch.context() as patched:
        patched.setattr(Path, "replace", replace)
        with pytest.raises(OSError, match="the disk is full"):
            make_semantic_ids(dataset, **SMALL, seed=1, overwrite=True)
    left = {path.name for path in (dataset.path / "catalog").iterdir()}
    assert left == {"catalog.json", "items.parquet", "semantic_ids.unfinished"}
    assert load(dataset.path).catalog.semantic_ids is not None
    # Without a card, the settings of the existing IDs are unknown, so a call with new settings is refused.
    with pytest.raises(ValueError, match="not made with these settings"):
        make_semantic_ids(dataset, **SMALL, seed=2)
    # `semantic_ids.unfinished` contains the settings of the failed call. A call with these settings makes the IDs
    # again, without `overwrite`.
    make_semantic_ids(dataset, **SMALL, seed=1)
    assert read_ids_card(dataset.path)["settings"]["seed"] == 1


def test_another_catalogue_in_the_folder_is_refused(dataset):
    folder = dataset.path / "catalog"
    ItemCatalog(dataset.catalog.items.slice(0, 49)).save(folder)
    with pytest.raises(ValueError, match="have changed since the dataset was loaded"):
        make_semantic_ids(dataset, **SMALL)


def test_items_that_cannot_be_told_apart_share_an_id_or_get_one_more_token(dataset, monkeypatch):
    monkeypatch.setattr(kmeans_ids, "cooccurrence_vectors", lambda *_, **__: torch.ones(50, 8))
    shared = texts(make_semantic_ids(dataset, **SMALL).catalog)
    card = read_ids_card(dataset.path)
    assert len(set(shared)) == 6 and card["largest_group"] == 45
    assert "up to 45 items share an ID" in describe_ids(card)
    extended = texts(make_semantic_ids(dataset, **SMALL, collisions="extend", overwrite=True).catalog)
    assert len(set(extended)) == 50 and sum("<d_" in text for text in extended) == 45
    card = read_ids_card(dataset.path)
    assert card["distinct"] == {"found": 0.02, "repaired": 0.12, "written": 1.0} and card["extended"] == 45


LOG = [(f"u{user}", "abcdef"[(user + step * (user % 2 + 1)) % 6], step, 5) for user in range(9) for step in range(5)]
ITEMS = [(item, f"Title {item}") for item in "abcdef"]


def ids_of(tmp_path, name, log):
    made = prepare(write_table(tmp_path / f"{name}-source", log=log, items=ITEMS), tmp_path / name)
    return texts(make_semantic_ids(made, levels=2, codes=3, width=3).catalog), read_ids_card(made.path)


def test_held_out_interactions_change_nothing(tmp_path):
    first, card = ids_of(tmp_path, "first", LOG)
    moved = [
        (user, "f" if step == 4 else "a" if step == 3 else item, step, rating) for user, item, step, rating in LOG
    ]
    assert ids_of(tmp_path, "moved", moved) == (first, card)
    learned = [(user, "f" if step == 1 else item, step, rating) for user, item, step, rating in LOG]
    assert ids_of(tmp_path, "learned", learned)[0] != first


@pytest.mark.parametrize("split", ["validation", "test"])
def test_a_held_out_split_in_place_of_training_is_refused(dataset, split):
    with pytest.raises(ValueError, match=f"semantic IDs must use only the training split, not the {split} split"):
        make_semantic_ids(replace(dataset, train=getattr(dataset, split)), **SMALL)
    assert load(dataset.path).catalog.semantic_ids is None


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"levels": 0}, "levels must be from 1 to 25, not 0"),
        ({"levels": 26}, "levels must be from 1 to 25, not 26"),
        ({"codes": 1}, "codes must be from 2 to 50, not 1; the catalogue has 50 items"),
        ({"codes": 51}, "codes must be from 2 to 50, not 51"),
        ({"width": 0}, "width must be at least 1, not 0"),
        ({"window": 0}, "window must be at least 1, not 0"),
        ({"iterations": 0}, "iterations must be at least 1, not 0"),
        ({"collisions": "drop"}, "collisions must be 'share' or 'extend', not 'drop'"),
        (
            {"levels": 2, "codes": 7},
            r"2 levels of 7 codes give fewer distinct IDs than the catalogue has items \(50\); increase levels",
        ),
    ],
)
def test_invalid_settings_are_refused(dataset, options, message):
    with pytest.raises(ValueError, match=message):
        make_semantic_ids(dataset, **SMALL | options)


def test_items_with_the_same_first_code_have_near_vectors(dataset):
    """On average, items with the same first code are nearer to each other than to other items. The oracle computes the
    distances."""
    ids = texts(make_semantic_ids(dataset, **SMALL).catalog)
    vectors = cooccurrence_vectors(dataset.train, 50, width=8).tolist()
    same, other = [], []
    for a in range(50):
        for b in range(a):
            shared = ids[a].split(">")[0] == ids[b].split(">")[0]
            (same if shared else other).append(oracle.squared_distance(vectors[a], vectors[b]))
    assert np.mean(same) < 0.8 * np.mean(other)


def test_vectors_are_never_wider_than_the_catalogue(dataset):
    assert cooccurrence_vectors(dataset.train, 50, width=64).shape == (50, 50)
    assert len(make_semantic_ids(dataset, **SMALL | {"width": 64}).catalog.semantic_ids) == 50


def test_the_card_is_json_and_does_not_contain_the_path(dataset):
    make_semantic_ids(dataset, **SMALL)
    text = (dataset.path / "catalog/semantic_ids.json").read_text(encoding="utf-8")
    assert json.loads(text) == read_ids_card(dataset.path) and str(dataset.path) not in text
