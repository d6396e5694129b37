"""Compares batches, filters, limits (`max_per`) and explanations of `Recommender` with requests for one history at a
time and with brute force."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.conftest import make_model
from tests.decoding.recommenders import (
    KINDS,
    LIST_LENGTH,
    NUM_ITEMS,
    UnevenPrior,
    catalogue,
    make_recommender,
    random_histories,
)
from trl_rec import ItemFilter, PromptFormat, Recommender, TokenTrie, prepare
from trl_rec.decoding import ArrayPrior
from trl_rec.decoding.item_filter import where_mask
from trl_rec.decoding.run_folder import load_run, save_recommender
from trl_rec.models import make_tokenizer
from trl_rec.ragged import Ragged


PRIOR = UnevenPrior()
SINGLE = ("item_token", "semantic_id", "title")

pytestmark = pytest.mark.filterwarnings("ignore:.* have the same text as an earlier item")

CONDITIONS = (
    None,
    [["brand", "==", "ash"]],
    [["price", "<", 50], ["stock", ">", 0]],
    [[["brand", "in", ["birch", "cedar"]]], [["genres", "==", "noir"]]],
)


def passes(where, row: dict) -> bool:
    """Returns whether an item meets the conditions, computed by a loop."""
    alternatives = [where] if isinstance(where[0][0], str) else where
    compare = {
        "==": lambda a, b: b in a if isinstance(a, list) else a == b,
        "!=": lambda a, b: b not in a if isinstance(a, list) else a != b,
        "<": lambda a, b: a < b,
        ">": lambda a, b: a > b,
        "in": lambda a, b: bool({*a} & {*b}) if isinstance(a, list) else a in b,
    }
    return any(
        all(row[name] is not None and compare[operator](row[name], value) for name, operator, value in conjunction)
        for conjunction in alternatives
    )


def allowed_items(one: ItemFilter | None) -> set[int]:
    rows = catalogue("title").items.to_pylist()
    items = set(range(NUM_ITEMS))
    if one is not None and one.where is not None:
        items &= {item for item in items if passes(one.where, rows[item])}
    if one is not None and one.allowed is not None:
        items &= {item for item in items if rows[item]["item_id"] in one.allowed}
    return items


def greedy(ranking: list[tuple[str, float]], max_per: dict[str, int], k: int) -> list[tuple[str, float]]:
    """Returns the best `k` items of a complete ranking, chosen by a loop. At most `max_per[column]` of these items
    have the same value in the column."""
    rows = {row["item_id"]: row for row in catalogue("title").items.to_pylist()}
    counts: dict[tuple[str, str], int] = {}
    chosen = []
    for item_id, score in ranking:
        values = []
        for name in max_per:
            value = rows[item_id][name]
            values += [(name, one) for one in (value if isinstance(value, list) else [value]) if one is not None]
        if all(counts.get(value, 0) < max_per[value[0]] for value in values):
            chosen.append((item_id, score))
            for value in values:
                counts[value] = counts.get(value, 0) + 1
        if len(chosen) == k:
            break
    return chosen


def listed(ranks) -> list[tuple[str, float]]:
    return [(one.item_id, one.score) for one in ranks]


def assert_same(ours, expected, within: float = 1e-5) -> None:
    """Asserts that both rankings have the same items in the same order. Items may change places if their scores differ
    only by rounding."""
    ours, expected = (
        listed(ours) if hasattr(ours, "short") else ours,
        listed(expected) if hasattr(expected, "short") else expected,
    )
    assert [score for _, score in ours] == pytest.approx([score for _, score in expected], abs=within)
    if [item for item, _ in ours] != [item for item, _ in expected]:
        scores = dict(expected)
        for (item, score), (other, _) in zip(ours, expected, strict=True):
            assert item == other or (item in scores and abs(scores[item] - score) < within)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("prior", [None, PRIOR])
def test_a_batch_gives_the_lists_of_single_histories(kind: str, prior: UnevenPrior | None) -> None:
    recommender = make_recommender(kind, prior)
    rng = random.Random(kind)
    histories = [[], ["gone"], *random_histories(rng, 7)]
    filters = [
        ItemFilter(
            where=CONDITIONS[row % 4],
            allowed=None if row % 3 else [f"id {item}" for item in range(0, NUM_ITEMS, 2)],
            max_per={"brand": 2} if row % 4 == 3 else None,
        )
        for row in range(9)
    ]
    exclude = [["id 1", "id 2"] if row % 2 else [] for row in range(9)]
    k = [5 if row % 2 else 3 for row in range(9)]

    together = recommender.recommend_batch(histories, k, filters=filters, exclude=exclude, batch_size=4)
    for row, history in enumerate(histories):
        one = filters[row]
        options = {"allowed": one.allowed, "where": one.where, "max_per": one.max_per, "exclude": exclude[row]}
        alone = recommender.recommend(history, k[row], **options)
        assert_same(together[row], alone)
        assert (together[row].unknown, together[row].fallback) == (history.count("gone"), alone.fallback)
        assert together[row].fallback == (prior is not None and row < 2)
        items = {recommender.catalog.positions[rank.item_id] for rank in alone}
        assert len(items) == len(alone) and items <= allowed_items(one) - {1, 2} | ({1, 2} if not row % 2 else set())
        assert not items & {recommender.catalog.positions.get(item, -1) for item in history}


@pytest.mark.parametrize("kind", SINGLE)
@pytest.mark.parametrize("prior", [None, PRIOR])
def test_a_filter_only_removes_items_from_the_complete_ranking(kind: str, prior: UnevenPrior | None) -> None:
    """A filter does not change the scores of the items that it keeps. This also holds with a prior, and for an empty
    history."""
    recommender = make_recommender(kind, prior)
    positions = recommender.catalog.positions
    histories = [[], ["id 3", "id 2"], ["id 11"]]
    everything = recommender.recommend_batch(histories, NUM_ITEMS)
    for where in CONDITIONS[1:]:
        one = ItemFilter(where=where)
        assert recommender.check_filter(one) == len(allowed_items(one))
        for ours, complete in zip(recommender.recommend_batch(histories, 6, filters=one), everything, strict=True):
            expected = [pair for pair in listed(complete) if positions[pair[0]] in allowed_items(one)]
            assert_same(listed(ours), expected[:6])
            assert (ours.short is None) == (len(ours) == 6)
            assert ours.short is None or ours.short.startswith(
                f"the list has {len(ours)} of 6 items, because the filt"
            )


@pytest.mark.parametrize("kind", SINGLE)
@pytest.mark.parametrize("prior", [None, PRIOR])
@pytest.mark.parametrize("max_per", [{"brand": 1}, {"genres": 2}, {"brand": 3, "stock": 2}])
def test_limits_choose_greedily_from_the_complete_ranking(kind: str, prior: UnevenPrior | None, max_per: dict) -> None:
    recommender = make_recommender(kind, prior)
    positions = recommender.catalog.positions
    histories = [["id 3", "id 2"], ["id 11"], []]
    everything = recommender.recommend_batch(histories, NUM_ITEMS)
    for k in (3, 10):
        for where in (None, [["price", "<", 70]]):
            one = ItemFilter(where=where, max_per=max_per)
            for ours, complete in zip(recommender.recommend_batch(histories, k, filters=one), everything, strict=True):
                ranking = [pair for pair in listed(complete) if positions[pair[0]] in allowed_items(one)]
                assert_same(listed(ours), greedy(ranking, max_per, k))


@pytest.mark.parametrize("kind", ["list", "title_list", "beam_list"])
def test_lists_obey_filters_and_limits(kind: str) -> None:
    recommender = make_recommender(kind)
    history = ["id 3", "id 2"]
    plain = recommender.recommend(history, LIST_LENGTH)
    assert len(plain) == LIST_LENGTH and plain.short is None

    # A filter that removes no item changes nothing. A filter that leaves two items gives a list of these two items.
    assert_same(recommender.recommend(history, LIST_LENGTH, where=[["stock", ">=", 0]]), plain)
    two = recommender.recommend(history, LIST_LENGTH, allowed=["id 8", "id 20"])
    assert {one.item_id for one in two} == {"id 8", "id 20"} and "2 of 6 items" in str(two.short)
    none = recommender.recommend(history, LIST_LENGTH, allowed=["id 8"], exclude=["id 8"])
    assert none == [] and "0 of 6 items" in str(none.short)

    # With limits, the items are chosen from the whole list that the model writes without limits. This holds for a
    # single history and for a batch.
    for k in (1, 2, LIST_LENGTH):
        expected = greedy(listed(plain), {"brand": 1}, k)
        assert_same(listed(recommender.recommend(history, k, max_per={"brand": 1})), expected)
        one = ItemFilter(max_per={"brand": 1})
        first, second = recommender.recommend_batch([history, history], [k, LIST_LENGTH], filters=[one, one])
        assert_same(listed(first), expected)
        assert_same(listed(second), greedy(listed(plain), {"brand": 1}, LIST_LENGTH))
    with pytest.raises(ValueError, match="k 7 exceeds the list length 6; choose k <= 6"):
        recommender.recommend(history, 7)


@pytest.mark.parametrize("kind", ["item_token", "title", "list"])
def test_for_an_empty_history_items_are_ranked_by_the_prior_alone(kind: str) -> None:
    """For an empty history, the items are ranked by the prior alone. They are ranked by the model if there is no
    prior, if the positive weights of the prior are all equal (so that it only filters), or if its strength is 0."""
    weights = np.linspace(0.1, 1, NUM_ITEMS)
    fallback = make_recommender(kind, ArrayPrior(weights)).recommend([], 4)
    assert fallback.fallback and [one.item_id for one in fallback] == ["id 23", "id 22", "id 21", "id 20"]
    assert [one.score for one in fallback] == pytest.approx(np.log(weights[:-5:-1] / weights.sum()), abs=1e-5)

    alone = make_recommender(kind).recommend([], 4)
    in_stock = weights > 0.5
    filtered = make_recommender(kind, ArrayPrior(in_stock)).recommend(["gone"], 4)
    assert not alone.fallback and not filtered.fallback and filtered.unknown == 1
    assert all(in_stock[int(one.item_id[3:])] for one in filtered)
    assert not make_recommender(kind, ArrayPrior(weights, strength=0.0)).recommend([], 4).fallback


@pytest.mark.parametrize("kind", ["item_token", "title", "list"])
@pytest.mark.parametrize("prior", [None, PRIOR])
def test_an_explanation_is_how_the_score_changes_without_each_item(kind: str, prior: UnevenPrior | None) -> None:
    recommender = make_recommender(kind, prior)
    history = ["id 3", "id 14", "gone", "id 3", "id 6"]
    explained = recommender.explain(history, "id 12", batch_size=2)
    assert sorted(one.item_id for one in explained) == ["id 14", "id 3", "id 3", "id 6"]
    sizes = [abs(one.difference) for one in explained]
    assert sizes == sorted(sizes, reverse=True)
    first = recommender.explain(history, "id 12", 2)
    assert [one.item_id for one in first] == [one.item_id for one in explained[:2]]
    assert [one.difference for one in first] == pytest.approx([one.difference for one in explained[:2]], abs=1e-5)

    if kind != "list":  # compare with the scores of complete rankings without exclusions

        def score(items: list[str]) -> float:
            ranks = recommender.recommend(items, NUM_ITEMS, exclude_history=False)
            return next(one.score for one in ranks if one.item_id == "id 12")

        for one in explained:
            if one.item_id != "id 3":
                without = [item for item in history if item != one.item_id]
                assert one.difference == pytest.approx(score(history) - score(without), abs=1e-4)
    assert recommender.explain([], "id 12") == []


INVALID = {
    "no column": ({"where": [["color", "==", "red"]]}, "where: the catalogue has no column 'color'; choose one of"),
    "no operator": (
        {"where": [["brand", "~", "ash"]]},
        "'~' is not an operator; choose one of ==, =, !=, <,",
    ),
    "another type": (
        {"where": [["price", "<", "50"]]},
        "price has values of the type double, which cannot be compared with '50'",
    ),
    "nothing to compare with": (
        {"where": [["brand", "==", None]]},
        "brand has values of the type string, which cannot be .* None",
    ),
    "a list to compare with": (
        {"where": [["stock", "==", [1]]]},
        "stock has values of the type int64, which cannot be compared with",
    ),
    "no list": ({"where": [["brand", "in", "ash"]]}, "'in' on the column 'brand' needs a list of values, not 'ash'"),
    "an empty list": (
        {"where": [["brand", "in", []]]},
        r"'in' on the column 'brand' needs a list of values, not \[\]",
    ),
    "another type in a list": (
        {"where": [["stock", "in", [1, "a"]]]},
        "stock has values of the type int64, which cannot be .* 'a'",
    ),
    "a huge number": (
        {"where": [["stock", "<", 10**30]]},
        "stock has values of the type int64, which cannot be compared with 1000",
    ),
    "lists": ({"where": [["genres", "<", "noir"]]}, "genres contains lists, which '<' cannot compare; use '=='"),
    "another type in lists": (
        {"where": [["genres", "==", 3]]},
        "genres has values of the type string, which cannot be .* with 3",
    ),
    "no conditions": ({"where": []}, r"where must be a list of conditions, not \[\]; write it as"),
    "text": ({"where": "price < 50"}, "where must be a list of conditions, not 'price < 50'; write it as"),
    "a bare condition": (
        {"where": ["brand", "==", "ash"]},
        "only lists of conditions, but contains 'brand'; write it",
    ),
    "too short": (
        {"where": [["brand", "=="]]},
        r"where: \['brand', '=='\] does not consist of a column, an op",
    ),
    "mixed": (
        {"where": [["brand", "==", "ash"], [["stock", ">", 0]]]},
        "either only conditions or only .* but contains .'brand'",
    ),
    "a short mask": (
        {"allowed": np.ones(3, bool)},
        r"allowed is a mask of shape \(3,\), but the catalogue has 24",
    ),
    "numbers": ({"allowed": [1, 2]}, r"allowed must be a list of item ids \(strings\) or a boolean mask"),
    "unknown exclusion": ({"exclude": ["gone"]}, "exclude: 'gone' is not in the catalogue of 24 items"),
    "no such limit": (
        {"max_per": {"color": 1}},
        "max_per names the column 'color', which the catalogue does",
    ),
    "limit 0": ({"max_per": {"brand": 0}}, "max_per of brand must be at least 1, not 0"),
    "no limits": ({"max_per": ["brand"]}, "max_per must map columns to numbers"),
    "unknown policy": ({"unknown": "keep"}, "unknown must be 'drop' or 'refuse', not 'keep'"),
    "unknown id": ({"unknown": "refuse"}, "the history contains 'gone', which is not in the catalogue"),
    "k": ({"k": 0}, "k must be at least 1, not 0"),
}


@pytest.mark.parametrize(("options", "message"), INVALID.values(), ids=INVALID.keys())
def test_invalid_requests_are_refused_in_one_sentence(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        make_recommender("item_token").recommend(["id 1", "gone"], **options)
    assert "\n" not in str(caught.value)


def test_a_batch_needs_one_entry_per_history() -> None:
    recommender = make_recommender("item_token")
    for name, value in (("k", [1]), ("users", [None]), ("exclude", [[]]), ("filters", [None])):
        with pytest.raises(ValueError, match=f"{name} must have one entry for each of the 2 histories"):
            recommender.recommend_batch([["id 1"], []], **{name: value})
    assert recommender.recommend_batch([]) == []
    assert recommender.recommend_batch([["id 1"]], np.int64(3)) == recommender.recommend_batch([["id 1"]], 3)


def test_a_missing_user_of_a_batch_is_named() -> None:
    users = Ragged.from_lists([[f"<ua_{user}>"] for user in range(4)], object)
    catalog = catalogue("item_token").with_surface("item_token", user_ids=users)
    tokenizer = make_tokenizer(catalog)
    recommender = Recommender(
        make_model(vocab_size=len(tokenizer)),
        tokenizer,
        catalog,
        PromptFormat.for_catalog(catalog, tokenizer, prompt_head="{user}"),
        TokenTrie.from_catalog(catalog, tokenizer),
        make_recommender("item_token").settings,
    )
    # Histories are sorted by length before they are batched, but the message gives the position in the `users` that
    # were passed.
    histories = [["id 1"], ["id 2"], ["id 3", "id 4"]]
    assert len(recommender.recommend_batch(histories, 3, users=[0, 3, 1])) == 3
    with pytest.raises(ValueError, match=r"the prompt names the user, but users\[1\] is None; pass the user's row"):
        recommender.recommend_batch(histories, 3, users=[0, None, 1], batch_size=2)
    for nobody in (None, [None] * 3):
        with pytest.raises(ValueError, match="the prompt names the user, but no user was given"):
            recommender.recommend_batch(histories, 3, users=nobody)


def test_masks_ids_and_conditions_give_the_same_filter() -> None:
    recommender = make_recommender("item_token")
    items = sorted(allowed_items(ItemFilter(where=CONDITIONS[1])))
    mask = np.zeros(NUM_ITEMS, bool)
    mask[items] = True
    ids = [f"id {item}" for item in items]
    given = [
        {"where": CONDITIONS[1]},
        {"allowed": mask},
        {"allowed": torch.from_numpy(mask)},
        {"allowed": [*ids, "new"]},
    ]
    lists = recommender.recommend_batch([["id 3"]] * 4, 5, filters=[ItemFilter(**one) for one in given])
    assert all(one == lists[0] for one in lists)


def test_the_trie_and_the_masks_are_made_once(monkeypatch: pytest.MonkeyPatch) -> None:
    recommender = make_recommender("semantic_id")
    recommender.recommend(["id 1"], where=CONDITIONS[1])
    made = dict(vars(recommender.trie))
    monkeypatch.setattr("trl_rec.decoding.item_filter.where_mask", None)
    recommender.recommend_batch([["id 2"], ["id 3"]], 3, filters=ItemFilter(where=CONDITIONS[1]))
    assert "lowest_items" in made and all(vars(recommender.trie)[name] is value for name, value in made.items())


def test_columns_of_the_item_table_are_saved_in_the_run_folder(tmp_path: Path) -> None:
    """Numbers stay numbers. A group column is stored as lists, but a condition can compare it with a single value."""
    log = tmp_path / "log"
    log.mkdir()
    rows = [f"u{user},i{(user + step) % 6},{step}" for user in range(6) for step in range(5)]
    (log / "interactions.csv").write_text("\n".join(["user_id,item_id,timestamp", *rows]))
    items = [f"i{item},title {item},{'Shoes' if item % 2 else 'Hats'},{10 * item + 0.5}" for item in range(6)]
    (log / "items.csv").write_text("\n".join(["item_id,title,category,price", *items]))
    dataset = prepare(
        log, tmp_path / "data", group_column="category", min_user_interactions=0, min_item_interactions=0
    )

    save_recommender(tmp_path / "run", dataset.catalog, {"prompt": {}})
    _, catalog = load_run(tmp_path / "run", "recommender.json")
    mask = where_mask([["category", "==", "Shoes"], ["price", "<", 50]], catalog.items)
    assert [catalog.ids[item] for item in np.flatnonzero(mask)] == ["i1", "i3"]


@pytest.mark.long
@pytest.mark.parametrize("kind", ["item_token", "semantic_id", "list"])
def test_ten_thousand_filtered_lists_contain_no_other_item(kind: str) -> None:
    recommender = make_recommender(kind, PRIOR)
    rng = random.Random(1)
    histories = random_histories(rng, 10_000)
    one_of = [ItemFilter(where=where) for where in CONDITIONS[1:]]
    filters = [rng.choice(one_of) for _ in histories]
    lists = recommender.recommend_batch(histories, 5, filters=filters, batch_size=256)
    allowed = {id(one): allowed_items(one) for one in one_of}
    for one, history, ranks in zip(filters, histories, lists, strict=True):
        items = [recommender.catalog.positions[rank.item_id] for rank in ranks]
        assert len(set(items)) == len(items) and set(items) <= allowed[id(one)]
        assert not {rank.item_id for rank in ranks} & {*history}
