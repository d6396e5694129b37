"""Tests which arguments of our logits processor a request to vLLM may contain, and which are refused."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

from tests.decoding.recommenders import LIST_LENGTH, NUM_ITEMS, catalogue
from tests.serving.vllm_engine.test_vllm_recommender import save_run
from trl_rec.decoding.item_filter import where_mask
from trl_rec.serving.vllm.arguments import RunArguments, check_form, is_held, packed


@pytest.fixture(scope="module")
def lists(tmp_path_factory: pytest.TempPathFactory) -> RunArguments:
    folder = tmp_path_factory.mktemp("lists")
    save_run("list", folder)
    return RunArguments(folder)


@pytest.fixture(scope="module")
def single(tmp_path_factory: pytest.TempPathFactory) -> RunArguments:
    folder = tmp_path_factory.mktemp("single")
    save_run("item_token", folder)
    return RunArguments(folder)


def test_ids_and_conditions_become_rows_and_masks(lists: RunArguments) -> None:
    written: list[int] = []
    row = lists.row({"items": 3, "exclude": ["id 4", "id 2"], "prefix": [7]}, written)
    assert (row.length, row.exclude, row.prefix, row.mask) == (3, [4, 2], [7], None)
    assert row.written is written

    where = [["price", "<", 50], ["brand", "in", ["ash", "birch"]]]
    for given in (where, json.dumps(where)):
        mask = lists.row({"items": 1, "where": given, "allowed": ["id 1", "id 2", "unknown", "id 3"]}, []).mask
        expected = where_mask(where, catalogue("item_token").items)
        expected[[item for item in range(NUM_ITEMS) if item not in (1, 2, 3)]] = False
        assert mask.items.tolist() == expected.tolist()


def test_packed_masks_are_read_back(lists: RunArguments) -> None:
    mask = np.random.default_rng(0).random(NUM_ITEMS) < 0.5
    row = lists.row({"items": 1, "mask": packed(mask), "exclude_rows": [5]}, [])
    assert row.mask.items.tolist() == mask.tolist() and row.exclude == [5]


@pytest.mark.parametrize("arguments", [None, {}, {"session_id": "a"}, {"something": "else"}])
def test_requests_without_our_arguments_are_ignored(arguments: dict[str, Any] | None) -> None:
    check_form(arguments)
    assert not is_held(arguments)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"items": 0}, "items must be at least 1, not 0"),
        ({"items": 1.5}, "items must be a whole number"),
        ({"items": True}, "items must be a whole number"),
        ({"items": 1, "colour": 2}, "unknown argument 'colour'; choose from items, exclude, allowed, where"),
        ({"items": 1, "exclude": "id 1"}, r"exclude must be a list of item ids \(strings\), not 'id 1'"),
        ({"items": 1, "allowed": [1]}, r"allowed must be a list of item ids \(strings\), not"),
        ({"items": 1, "prefix": ["a"]}, "prefix must be a list of whole numbers"),
        ({"items": 1, "prefix": [-1]}, "prefix must be at least 0"),
        ({"items": 1, "prefix": [0] * 4097}, "prefix has 4,097 tokens, but may have at most 4,096; give only the tok"),
        ({"items": 1, "exclude_rows": [True]}, "exclude_rows must be a list of whole numbers"),
        ({"items": 1, "mask": "11"}, "'mask' must be bytes; use 'allowed' or 'where'"),
        ({"items": 1, "where": "price < 5"}, "'where' is not JSON: 'price < 5'"),
        ({"where": "[]"}, "the argument 'where' requires the argument 'items'; set 'items' to the number"),
    ],
)
def test_malformed_arguments_are_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        check_form(arguments)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"items": LIST_LENGTH + 1}, "items must be at most 6, because this model writes lists of 6 items"),
        ({"items": 1, "exclude": ["gone"]}, "exclude: 'gone' is not in the catalogue of 24 items; leave it out"),
        ({"items": 1, "where": [["colour", "==", "red"]]}, "the catalogue has no column 'colour'"),
        ({"items": 1, "where": "{}"}, "where must be a list of conditions"),
        ({"items": 1, "mask": b"1"}, "'mask' has 1 bytes, but needs one bit for each of the catalogue's 24 items"),
    ],
)
def test_arguments_that_do_not_fit_the_run_are_refused(
    lists: RunArguments, arguments: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        lists.row(arguments, [])


def test_a_prefix_is_at_most_as_long_as_a_completion(lists: RunArguments, single: RunArguments) -> None:
    for arguments in (lists, single):
        most = max(len(surface) for surface in arguments.catalog.surfaces)
        assert len(arguments.row({"items": 1, "prefix": [0] * most}, []).prefix) == most
        with pytest.raises(ValueError, match="prefix has 4,000 tokens, but may have at most"):
            arguments.row({"items": 1, "prefix": [0] * 4000}, [])


def test_a_model_of_single_items_writes_one(single: RunArguments) -> None:
    with pytest.raises(ValueError, match="items must be at most 1, because this model writes one item"):
        single.row({"items": 2}, [])
