"""Tests recommendations from a changed catalogue. With titles, new items can be recommended at once. With semantic
IDs, new items get their IDs from a saved encoder. With item tokens, items can only be removed."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest

from tests.decoding.recommenders import NUM_ITEMS, UnevenPrior, catalogue, make_recommender
from trl_rec import ItemCatalog, PromptFormat, Recommender, TokenTrie
from trl_rec.decoding import ItemFilter
from trl_rec.decoding.priors import ArrayPrior, FunctionPrior, PopularityPrior
from trl_rec.decoding.priors.matched import MatchedPrior
from trl_rec.ragged import Ragged


HISTORIES = [["id 3"], ["id 0", "id 11", "id 6"], ["id 20", "id 1"]]
KEPT = [17, 4, 6, 0, 3, 22, 9, 2, 15, 12]  # not in catalogue order; without items 1, 11 and 20 of the histories


def some_items(kept: list[int], more: dict[str, list[object]] | None = None) -> ItemCatalog:
    items = catalogue("title").items.take(pa.array(kept))
    if more is not None:
        items = pa.concat_tables([items, pa.table(more)], promote_options="default")
    return ItemCatalog(items)


def ranked(recommender: Recommender, **options: object) -> list[list[str]]:
    lists = recommender.recommend_batch(HISTORIES, 6, **options)
    return [[one.item_id for one in listed] for listed in lists]


@pytest.mark.parametrize("prior", [None, UnevenPrior()])
def test_removing_items_equals_a_filter(prior: UnevenPrior | None) -> None:
    recommender = make_recommender("item_token", prior)
    changed = recommender.with_catalog(some_items(KEPT))
    assert ranked(changed) == ranked(recommender, filters=ItemFilter([f"id {item}" for item in KEPT]))
    where = ItemFilter(where=[["price", "<", 50]])
    listed = {one for found in ranked(changed, filters=where) for one in found}
    assert listed and listed <= {f"id {item}" for item in KEPT} & {
        row["item_id"] for row in catalogue("title").items.to_pylist() if row["price"] and row["price"] < 50
    }
    assert ranked(changed, filters=ItemFilter(["id 1", "id 4"]))[0] == ["id 4"]  # id 1 was removed
    with pytest.raises(ValueError, match="was removed"):
        changed.explain(["id 3"], "id 1")
    # The complete catalogue gives the original lists.
    assert ranked(changed.with_catalog(some_items(list(range(NUM_ITEMS))))) == ranked(recommender)


def test_a_mask_may_leave_out_the_removed_items() -> None:
    changed = make_recommender("item_token").with_catalog(some_items(KEPT))
    assert len(changed.catalog) == NUM_ITEMS and changed.catalog.num_recommendable == len(KEPT)
    mask = np.arange(len(KEPT)) % 3 > 0
    expected = ranked(changed, filters=ItemFilter([f"id {item}" for item, one in zip(KEPT, mask, strict=True) if one]))
    for of_removed in (None, False, True):  # the values for removed items have no effect
        more = [] if of_removed is None else [np.full(NUM_ITEMS - len(KEPT), of_removed)]
        assert ranked(changed, filters=ItemFilter(np.concatenate([mask, *more]))) == expected
    with pytest.raises(
        ValueError, match=r"a mask of shape \(11,\), but the catalogue has 24 items, 14 of them retired"
    ):
        ranked(changed, filters=ItemFilter(np.ones(11, bool)))


def test_new_items_are_refused_with_item_tokens() -> None:
    with pytest.raises(ValueError, match="none for 1 new items, such as item 'new'"):
        make_recommender("item_token").with_catalog(some_items(KEPT, {"item_id": ["new"], "title": ["Green Cup"]}))


@pytest.mark.parametrize("kind", ["title", "title_list"])
def test_new_titles_are_recommended_at_once(kind: str) -> None:
    recommender = make_recommender(kind)
    recommender = replace(recommender, settings={**recommender.settings, "prompt": {"list_length": 6}})
    if kind == "title":
        recommender = replace(recommender, settings={**recommender.settings, "prompt": {}})
    today = some_items(KEPT, {"item_id": ["new"], "title": ["Green Cup"]})
    changed = recommender.with_catalog(today)
    assert changed.catalog.num_recommendable == len(KEPT) + 1 and len(changed.catalog) == NUM_ITEMS + 1

    # The lists equal those of a recommender that is made directly from the changed catalogue.
    prompt_format = PromptFormat.for_catalog(changed.catalog, recommender.tokenizer, **changed.settings["prompt"])
    trie = TokenTrie.from_catalog(today, recommender.tokenizer, lists=kind == "title_list")
    fresh = replace(recommender, catalog=changed.catalog, prompt_format=prompt_format, trie=trie)
    assert ranked(changed) == ranked(fresh)
    everything = changed.recommend(["id 3"], 6 if kind == "title_list" else 30)
    assert {one.item_id for one in everything} <= set(today.ids) - {"id 3"}
    assert kind == "title_list" or "new" in {one.item_id for one in everything}


@pytest.mark.filterwarnings("ignore:.*have the same text")  # some items share a semantic ID
def test_semantic_ids_are_kept_and_new_items_need_an_encoder() -> None:
    recommender = make_recommender("semantic_id")
    recommender = replace(recommender, settings={**recommender.settings, "prompt": {}})
    changed = recommender.with_catalog(some_items(KEPT))
    assert [changed.catalog.surfaces[place] for place in range(len(KEPT))] == [
        recommender.catalog.surfaces[item] for item in KEPT
    ]
    assert {one for found in ranked(changed) for one in found} <= {f"id {item}" for item in KEPT}
    with pytest.raises(ValueError, match="1 items have no semantic ID.*ids_from"):
        recommender.with_catalog(some_items(KEPT, {"item_id": ["new"], "title": ["Green Cup"]}))


def test_a_prior_weighs_a_new_item_like_an_item_without_interactions() -> None:
    prior = PopularityPrior(np.array([5, 0, 2, 9]))
    # For each item of the catalogue, its index in the prior. The second item is new (-1). The last two items were
    # removed: a history may still contain them, but they are not recommended and get no weight.
    sources = np.array([3, -1, 0, 2, 1])
    weights = MatchedPrior(prior, sources, 3).weights(Ragged.from_lists([[0, 1], [4]])).dense(2, 3)
    old = prior.weights(Ragged.from_lists([[]])).dense(1, 4)[0]
    assert weights.tolist() == [[old[3], old[1], old[0]]] * 2


@pytest.mark.parametrize("kind", ["array", "function"])
def test_a_prior_never_excludes_an_item_that_it_does_not_know(kind: str) -> None:
    """A weight of 0 excludes the item that it was given for. A new item gets the smallest positive weight that the
    prior gives to any item after the same history, so it is never excluded."""
    table = np.array([[0.0, 2.0, 0.5], [3.0, 0.0, 4.0]])
    prior = ArrayPrior(table[0]) if kind == "array" else FunctionPrior(lambda histories: table[: len(histories)])
    matched = MatchedPrior(prior, np.array([2, -1, 0, 1]), 4)
    weights = matched.weights(Ragged.from_lists([[0], [3]])).dense(2, 4)
    expected = [[0.5, 0.5, 0.0, 2.0], [0.5, 0.5, 0.0, 2.0] if kind == "array" else [4.0, 3.0, 3.0, 0.0]]
    assert weights.tolist() == expected


def test_a_prior_that_excludes_every_known_item_leaves_the_new_items() -> None:
    matched = MatchedPrior(ArrayPrior(np.zeros(2)), np.array([0, -1, 1]), 3)
    assert matched.weights(Ragged.from_lists([[]])).dense(1, 3).tolist() == [[0.0, 1.0, 0.0]]
