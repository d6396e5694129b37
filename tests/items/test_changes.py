"""Tests how an old and a new catalogue are matched by item id. The result is a joint catalogue: the items of the new
catalogue, followed by the removed items (those that the new catalogue lacks). Removed items are retired in it: they
are never recommended."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from trl_rec import ItemCatalog
from trl_rec.items.changes import changed_ids, match_items
from trl_rec.items.trie import TokenTrie
from trl_rec.ragged import Ragged


IDS = st.lists(st.sampled_from("abcdefgh"), min_size=1, unique=True)


def make_catalog(ids: list[str], surface: str = "title", **options: object) -> ItemCatalog:
    return ItemCatalog(pa.table({"item_id": ids, "title": [f"Title {one}" for one in ids]}), surface, **options)


@given(IDS, IDS)
def test_the_joint_catalog_lists_the_new_catalog_and_then_the_removed_items(old: list[str], new: list[str]) -> None:
    change = match_items(make_catalog(old), make_catalog(new))
    removed = [one for one in old if one not in new]
    assert change.catalog.ids == new + removed and change.catalog.titles == [f"Title {one}" for one in new + removed]
    assert change.sources.tolist() == [old.index(one) if one in old else -1 for one in new + removed]
    assert change.catalog.num_recommendable == len(new)
    assert (change.num_kept, change.num_removed) == (len(set(old) & set(new)), len(removed))
    assert change.num_new == len(set(new) - set(old)) and change.keeps_indices == (new + removed == old)


def test_a_removed_item_may_be_added_again() -> None:
    first = match_items(make_catalog(["a", "b", "c"]), make_catalog(["a", "c"])).catalog
    assert first.ids == ["a", "c", "b"] and first.num_retired == 1
    second = match_items(first, make_catalog(["b", "c"]))
    assert second.catalog.ids == ["b", "c", "a"] and (second.num_kept, second.num_removed) == (2, 1)
    third = match_items(second.catalog, make_catalog(["b", "c"]))
    assert third.keeps_indices and third.num_removed == 0 and third.catalog.num_retired == 1


def test_removed_items_keep_the_values_of_columns_that_both_catalogues_have() -> None:
    old = ItemCatalog(pa.table({"item_id": ["a"], "title": ["A"], "price": [3.5], "brand": ["X"]}))
    new = ItemCatalog(pa.table({"item_id": ["b"], "title": ["B"], "price": ["4"], "brand": ["Y"], "stock": [7]}))
    rows = match_items(old, new).catalog.items.to_pylist()
    assert rows[1] == {"item_id": "a", "title": "A", "price": None, "brand": "X", "stock": None}


def test_changed_semantic_ids_are_found() -> None:
    ids = {"a": ["<a_0>", "<b_0>"], "b": ["<a_0>", "<b_1>", "<c_0>"], "c": ["<a_1>", "<b_1>"]}

    def catalog(of: dict[str, list[str]]) -> ItemCatalog:
        return make_catalog(list(of), "semantic_id", semantic_ids=Ragged.from_lists(list(of.values()), object))

    new = {"c": ids["c"], "x": ["<a_0>", "<b_7>"], "b": ids["b"]}
    change = match_items(catalog(ids), catalog(new))
    assert not len(changed_ids(change)) and change.catalog.surfaces[-1] == "<a_0><b_0>"
    new["b"] = ids["b"][:2]
    assert changed_ids(match_items(catalog(ids), catalog(new))).tolist() == [2]
    with pytest.raises(ValueError, match="no semantic IDs"):
        match_items(make_catalog(["a"]), catalog(ids))


def test_retired_items_are_saved_and_are_in_no_trie(tmp_path, tokenizer) -> None:
    catalog = match_items(make_catalog(["a", "b", "c"]), make_catalog(["c", "d"])).catalog
    catalog.save(tmp_path)
    loaded = ItemCatalog.load(tmp_path)
    assert loaded.num_retired == 2 and loaded.fingerprint == catalog.fingerprint
    assert loaded.without_retired().fingerprint == make_catalog(["c", "d"]).fingerprint
    assert sorted(TokenTrie.from_catalog(loaded, tokenizer).items.tolist()) == [0, 1]
    assert len(loaded.paths(tokenizer)) == 4
    with pytest.raises(ValueError, match="num_retired is 4"):
        make_catalog(["a", "b", "c", "d"], num_retired=4)


@pytest.mark.parametrize("count", [1, 3])
def test_a_catalogue_needs_one_semantic_id_per_item(count: int) -> None:
    ids = Ragged.from_lists([["<a_1>"]] * count, dtype=object)
    with pytest.raises(ValueError, match=f"there are {count} semantic IDs for 2 items; give one per item"):
        ItemCatalog(pa.table({"item_id": ["a", "b"], "title": ["A", "B"]}), semantic_ids=ids)


def test_groups_are_numbered_by_name() -> None:
    groups = pa.array([["x", "b"], None, ["b"]], pa.list_(pa.string()))
    catalog = ItemCatalog(pa.table({"item_id": list("pqr"), "title": list("pqr"), "of": groups}), group_column="of")
    names, rows = catalog.groups()
    assert names == ["b", "x"] and [rows[item].tolist() for item in range(3)] == [[1, 0], [], [0]]
    assert np.array_equal(make_catalog(["a", "b"]).groups()[1].lengths, [0, 0])
