"""Tests the surfaces, paths, lookups and files of `ItemCatalog`."""

import pyarrow as pa
import pytest

from trl_rec.items import ItemCatalog
from trl_rec.ragged import Ragged


@pytest.fixture
def catalog() -> ItemCatalog:
    table = pa.table(
        {
            "item_id": ["b7", "a1", "c3"],
            "title": ['Say "Yes"', "Blue Pen", "Caf\u00e9"],
            "genres": [["Drama", "War"], [], ["War"]],
            "brand": ["x", None, "y"],
        }
    )
    ids = Ragged.from_lists([["<a_1>", "<b_0>"], ["<a_1>", "<b_2>"], ["<a_3>", "<b_0>"]], object)
    return ItemCatalog(table, group_column="genres", semantic_ids=ids)


def test_each_surface_has_its_own_texts_and_tokens(catalog: ItemCatalog) -> None:
    assert catalog.surfaces == ['"Say "Yes""', '"Blue Pen"', '"Caf\u00e9"']
    assert catalog.with_surface("item_token").surfaces == ["<item_0>", "<item_1>", "<item_2>"]
    assert catalog.with_surface("semantic_id").surfaces == ["<a_1><b_0>", "<a_1><b_2>", "<a_3><b_0>"]
    assert catalog.with_surface("semantic_id").new_tokens == ["<a_1>", "<a_3>", "<b_0>", "<b_2>"]
    assert catalog.new_tokens == []


@pytest.mark.parametrize("surface", ["title", "item_token", "semantic_id"])
def test_paths_decode_to_surfaces(catalog: ItemCatalog, surface: str, tokenizer_copy) -> None:
    catalog = catalog.with_surface(surface)
    tokenizer_copy.add_tokens(catalog.new_tokens)
    paths = catalog.paths(tokenizer_copy)
    for index, text in enumerate(catalog.surfaces):
        path = paths[index].tolist()
        if surface == "title":
            assert path.pop() == tokenizer_copy.eos_token_id
        assert tokenizer_copy.decode(path) == text
        assert surface == "title" or len(path) == {"item_token": 1, "semantic_id": 2}[surface]


def test_an_item_is_split_evenly_among_its_groups(catalog: ItemCatalog) -> None:
    names, shares = catalog.group_shares()
    assert names == ["Drama", "War"]
    assert shares.tolist() == [[0.5, 0.5], [0, 0], [0, 1]]
    single = ItemCatalog(catalog.items, group_column="brand").group_shares()
    assert single[0] == ["x", "y"] and single[1].tolist() == [[1, 0], [0, 0], [0, 1]]


def test_ids_are_looked_up(catalog: ItemCatalog) -> None:
    assert catalog.index_of(["c3", "b7"]).tolist() == [2, 0]
    with pytest.raises(ValueError, match=r"item_ids, row 1: the item 'zz' is not in the catalogue of 3 items"):
        catalog.index_of(["a1", "zz"])


def test_saving_and_loading_gives_the_same_catalogue(catalog: ItemCatalog, tmp_path) -> None:
    catalog.with_surface("semantic_id").save(tmp_path)
    loaded = ItemCatalog.load(tmp_path)
    assert loaded.items.equals(catalog.items)
    assert (loaded.surface, loaded.group_column, loaded.fingerprint) == ("semantic_id", "genres", catalog.fingerprint)
    assert loaded.surfaces == catalog.with_surface("semantic_id").surfaces


def test_bad_input_is_refused(catalog: ItemCatalog, tokenizer, tmp_path) -> None:
    with pytest.raises(ValueError, match="item id 'a' occurs more than once"):
        ItemCatalog(pa.table({"item_id": ["a", "b", "a"], "title": ["1", "2", "3"]}))
    with pytest.raises(ValueError, match="unknown surface 'emoji'"):
        catalog.with_surface("emoji")
    with pytest.raises(ValueError, match="has no semantic IDs"):
        ItemCatalog(catalog.items, surface="semantic_id")
    with pytest.raises(ValueError, match="group_column='year' is not a column of the items"):
        ItemCatalog(catalog.items, group_column="year")
    with pytest.raises(ValueError, match="the tokenizer lacks 3 of the catalogue's 3 tokens, such as '<item_0>'"):
        catalog.with_surface("item_token").paths(tokenizer)
    with pytest.raises(ValueError, match="contains no catalogue"):
        ItemCatalog.load(tmp_path)


def test_a_tokenizer_without_eos_is_refused(catalog: ItemCatalog, tokenizer_copy) -> None:
    tokenizer_copy.eos_token = None
    with pytest.raises(ValueError, match="has no EOS token to end titles with"):
        catalog.paths(tokenizer_copy)


def test_a_changed_table_is_detected(catalog: ItemCatalog, tmp_path) -> None:
    catalog.save(tmp_path)
    ItemCatalog(catalog.items.set_column(1, "title", pa.array(["1", "2", "3"]))).save(tmp_path / "other")
    (tmp_path / "other" / "items.parquet").replace(tmp_path / "items.parquet")
    with pytest.raises(ValueError, match="describe different items"):
        ItemCatalog.load(tmp_path)
