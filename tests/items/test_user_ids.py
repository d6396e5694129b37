"""Tests catalogues that contain semantic IDs of users in addition to those of items."""

from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from trl_rec import load, prepare
from trl_rec.items import ItemCatalog, TokenTrie
from trl_rec.models import make_tokenizer
from trl_rec.ragged import Ragged


USERS = Ragged.from_lists([["<ua_1>", "<ub_0>"], ["<ua_0>"], ["<ua_1>", "<ub_0>"]], object)


@pytest.fixture
def catalog() -> ItemCatalog:
    table = pa.table({"item_id": ["b7", "a1", "c3"], "title": ["Ink", "Blue Pen", "Mug"]})
    ids = Ragged.from_lists([["<a_1>", "<b_0>"], ["<a_1>", "<b_2>"], ["<a_3>", "<b_0>"]], object)
    return ItemCatalog(table, surface="semantic_id", semantic_ids=ids)


@pytest.mark.parametrize("surface", ["semantic_id", "item_token", "title"])
def test_tokens_of_users_follow_those_of_items_and_leave_the_trie_unchanged(
    catalog: ItemCatalog, surface: str, tokenizer_copy: Any
) -> None:
    alone = catalog.with_surface(surface)
    both = alone.with_surface(surface, user_ids=USERS)
    assert (
        both.new_tokens == [*alone.new_tokens, "<ua_0>", "<ua_1>", "<ub_0>"] and both.item_tokens == alone.new_tokens
    )
    assert both.fingerprint == alone.fingerprint and both.surfaces == alone.surfaces
    tokenizer_copy.add_tokens(both.new_tokens)
    before, after = (TokenTrie.from_catalog(one, tokenizer_copy) for one in (alone, both))
    assert after.child_tokens.tolist() == before.child_tokens.tolist()
    names = tokenizer_copy.convert_ids_to_tokens(both.user_token_ids(tokenizer_copy)[0])
    assert names == ["<ua_1>", "<ub_0>"]


def test_a_tokenizer_without_tokens_of_users_can_still_encode_items(catalog: ItemCatalog) -> None:
    tokenizer, both = make_tokenizer(catalog), catalog.with_surface("semantic_id", user_ids=USERS)
    assert both.paths(tokenizer).values.tolist() == catalog.paths(tokenizer).values.tolist()
    with pytest.raises(ValueError, match="the tokenizer lacks 3 of the catalogue's 3 tokens, such as '<ua_0>'"):
        both.user_token_ids(tokenizer)
    with pytest.raises(ValueError, match="has no semantic IDs for users; make them first"):
        catalog.user_token_ids(tokenizer)
    with pytest.raises(ValueError, match="the surface 'title' needs a pretrained tokenizer"):
        make_tokenizer(both.with_surface("title"))


def test_saving_and_loading_gives_the_same_user_ids(catalog: ItemCatalog, tmp_path: Path) -> None:
    catalog.with_surface("semantic_id", user_ids=USERS).save(tmp_path)
    loaded = ItemCatalog.load(tmp_path)
    assert [loaded.user_ids[row].tolist() for row in range(3)] == [USERS[row].tolist() for row in range(3)]
    assert loaded.with_surface("item_token").user_ids is loaded.user_ids
    catalog.save(tmp_path)  # replaces the catalogue that has IDs of users
    assert ItemCatalog.load(tmp_path).user_ids is None


def test_a_damaged_file_is_named(catalog: ItemCatalog, tmp_path: Path) -> None:
    catalog.with_surface("semantic_id", user_ids=USERS).save(tmp_path)
    (tmp_path / "user_ids.parquet").write_bytes(b"PAR1")
    with pytest.raises(ValueError, match="is damaged .user_ids.parquet cannot be read: .*; run trl-rec prepare again"):
        ItemCatalog.load(tmp_path)


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        ([["<ua_1>"], ["<b_2>"]], "the token '<b_2>' is used by both users and items"),
        ([["<ua_1>"], ["<item_2>"]], "the token '<item_2>' is used by both users and items"),
        ([["<ua_1>"], []], "user 1 has a semantic ID without tokens"),
    ],
)
def test_ambiguous_or_empty_ids_are_refused(catalog: ItemCatalog, ids: list, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        catalog.with_surface("item_token", user_ids=Ragged.from_lists(ids, object))


def test_a_folder_with_ids_of_other_users_is_refused(tmp_path: Path) -> None:
    dataset = prepare("toy", tmp_path / "toy", toy_users=10, toy_items=50)
    ids = Ragged.from_lists([["<ua_1>"]] * 9, object)
    dataset.catalog.with_surface("title", user_ids=ids).save(dataset.path / "catalog")
    with pytest.raises(ValueError, match=r"has 10 users, but semantic IDs for 9"):
        load(dataset.path)
