"""Tests twins, which are items with the same title. Models and baselines that exclude the items of a history also
exclude the twins of these items."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.conftest import make_model, make_tokenizer
from tests.data.sources import write_table
from trl_rec.data import PromptFormat, RecDataset, build_list_rows, prepare
from trl_rec.data.dataset import split_rows
from trl_rec.data.list_rows import new_targets
from trl_rec.decoding import Recommender
from trl_rec.evaluation import evaluate_baselines, rank_split
from trl_rec.evaluation.baselines import PopularityBaseline, RandomBaseline, TransitionBaseline
from trl_rec.items import ItemCatalog, TokenTrie
from trl_rec.items.twins import Twins
from trl_rec.ragged import Ragged
from trl_rec.trainer.blade.collator import check_enough_items


pytestmark = pytest.mark.filterwarnings("ignore:10 of 20 items have the same text as an earlier item")
TITLES = ["Ant", "Bee", "Cat", "Dog"]  # fewer titles than items, so some items share a title


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> RecDataset:
    """A dataset of 20 items with 10 titles. Item `i + 10` has the title of item `i`."""
    folder = tmp_path_factory.mktemp("twins")
    rng = np.random.default_rng(0)
    log = [(f"u{user}", f"i{item}", step) for user in range(8) for step, item in enumerate(rng.permutation(20)[:6])]
    items = [(f"i{item}", f"Title {item % 10}") for item in range(20)]
    return prepare(
        write_table(folder / "source", log, items, header=("user_id", "item_id", "timestamp")), folder / "d"
    )


def test_completed_rows_by_hand() -> None:
    """`Twins.complete` adds to each row of items the twins of these items."""
    twins = Twins.of_titles(pa.chunked_array([["a", "b"], ["a", "c", "b", "a"]]))
    assert twins is not None
    completed = twins.complete(Ragged.from_lists([[2], [], [1, 3, 1]]))
    assert [sorted(completed[row].tolist()) for row in range(3)] == [[0, 2, 5], [], [1, 3, 4]]
    assert Twins.of_titles(pa.chunked_array([["a", "b"]])) is None


@given(st.lists(st.sampled_from(TITLES), min_size=5, max_size=9), st.lists(st.lists(st.integers(0, 4)), max_size=4))
def test_a_completed_row_has_every_item_with_one_of_its_titles(titles: list[str], rows: list[list[int]]) -> None:
    twins = Twins.of_titles(pa.chunked_array([titles]))
    assert twins is not None
    completed = twins.complete(Ragged.from_lists(rows))
    for row, items in enumerate(rows):
        known = {titles[item] for item in items}
        expected = [item for item, title in enumerate(titles) if title in known]
        assert sorted(completed[row].tolist()) == expected


@pytest.mark.parametrize("list_length", [None, 4])
def test_no_title_of_the_history_is_recommended(dataset: RecDataset, list_length: int | None) -> None:
    tokenizer = make_tokenizer(dataset.catalog.surfaces)
    model = make_model("llama", vocab_size=len(tokenizer))
    prompt_format = PromptFormat.for_catalog(dataset.catalog, tokenizer, list_length=list_length)
    titles = dataset.catalog.titles
    for excludes in (True, False):
        ranked = rank_split(
            model, tokenizer, dataset, prompt_format=prompt_format, exclude_history=excludes, top_k=4, num_beams=20
        )
        repeats = []
        for row, history in enumerate(dataset.test["history"]):
            known = {titles[item] for item in history}
            repeats += [item for item in ranked.items[row].tolist() if item >= 0 and titles[item] in known]
        assert bool(repeats) is not excludes


def test_a_recommender_excludes_the_twins_of_its_history(dataset: RecDataset) -> None:
    tokenizer = make_tokenizer(dataset.catalog.surfaces)
    prompt_format = PromptFormat.for_catalog(dataset.catalog, tokenizer)
    settings = {"max_length": None, "num_beams": 20, "renormalize": True, "length_penalty": 0.0}
    model = make_model("llama", vocab_size=len(tokenizer))
    trie = TokenTrie.from_catalog(dataset.catalog, tokenizer)
    recommender = Recommender(model, tokenizer, dataset.catalog, prompt_format, trie, settings)
    recommended = recommender.recommend(["i3", "i14"], 20)
    assert len(recommended) == 16
    assert {item.title for item in recommended} == {f"Title {number}" for number in range(10)} - {"Title 3", "Title 4"}


def test_baselines_exclude_twins_if_items_are_written_as_titles(dataset: RecDataset) -> None:
    twins = dataset.catalog.twins
    histories = dataset.test["history"][:]
    for baseline in (RandomBaseline(), PopularityBaseline(), TransitionBaseline()):
        baseline.fit(dataset.train, len(dataset.catalog))
        for history, ranked in zip(histories, baseline.rank(histories, 20, True, twins).items.tolist(), strict=True):
            known = {item % 10 for item in dataset.catalog.index_of([dataset.catalog.ids[item] for item in history])}
            expected = {item for item in range(20) if item % 10 not in known}
            assert {item for item in ranked if item >= 0} == expected

    # With another surface, items with the same title are treated as different items.
    by_title = evaluate_baselines(dataset, ks=[10])["popularity"].metrics
    by_token = evaluate_baselines(dataset.with_surface("item_token"), ks=[10])["popularity"].metrics
    assert by_title["coverage@10"] != by_token["coverage@10"] or by_title["recall@10"] != by_token["recall@10"]


def test_items_with_the_same_semantic_id_are_not_twins() -> None:
    items = pa.table({"item_id": ["a", "b", "c"], "title": ["A", "B", "C"]})
    ids = Ragged.from_lists([["<a_1>"], ["<a_1>"], ["<a_2>"]], object)
    catalog = ItemCatalog(items, surface="semantic_id", semantic_ids=ids)
    assert catalog.twins is None


def test_list_rows_contain_no_twin_of_an_earlier_item(dataset: RecDataset) -> None:
    twins = dataset.catalog.twins
    assert twins is not None
    flags = new_targets(Ragged.from_lists([[0]]), Ragged.from_lists([[10, 1, 11, 2]]), twins)
    assert flags.tolist() == [False, True, False, True]

    prompt_format = PromptFormat.for_catalog(dataset.catalog, make_tokenizer(dataset.catalog.surfaces), list_length=2)
    for row in build_list_rows(dataset.train, prompt_format).to_list():
        numbers = [item % 10 for item in row["items"]]
        assert len(set(numbers)) == len(numbers)
        assert not {item % 10 for item in row["history"]} & set(numbers)


def test_a_history_whose_twins_leave_too_few_items_is_refused(dataset: RecDataset) -> None:
    prompt_format = PromptFormat.for_catalog(dataset.catalog, make_tokenizer(dataset.catalog.surfaces), list_length=2)
    with pytest.raises(ValueError, match=r"row 0 leaves \d+ of \d+ items.*too few for a list of 19"):
        check_enough_items(dataset.train, prompt_format, 19, num_recommendable=len(dataset.catalog))


def test_retired_items_count_neither_as_available_nor_as_excluded(dataset: RecDataset) -> None:
    catalog = dataset.catalog
    prompt_format = PromptFormat.for_catalog(catalog, make_tokenizer(catalog.surfaces), list_length=2)
    excluded = prompt_format.exclusions(split_rows(dataset.train, "history"))
    for retired in (0, 5, 10):
        num_recommendable = len(catalog) - retired
        left = [num_recommendable - len({item for item in row if item < num_recommendable}) for row in excluded]
        check_enough_items(dataset.train, prompt_format, min(left), num_recommendable=num_recommendable)
        with pytest.raises(ValueError, match=f"leaves {min(left)} of {num_recommendable} items"):
            check_enough_items(dataset.train, prompt_format, min(left) + 1, num_recommendable=num_recommendable)


def test_rank_items_does_not_exclude_twins(dataset: RecDataset) -> None:
    """The argument `exclude` of `rank_items` excludes only the given items, so their twins are still ranked."""
    from trl_rec.decoding import rank_items

    tokenizer = make_tokenizer(dataset.catalog.surfaces)
    trie = TokenTrie.from_catalog(dataset.catalog, tokenizer)
    prompts = {"input_ids": torch.tensor([[5, 6]]), "attention_mask": torch.ones(1, 2, dtype=torch.long)}
    model = make_model("llama", vocab_size=len(tokenizer))
    ranked = rank_items(model, prompts, trie, num_beams=20, top_k=20, exclude=[[3]]).items[0].tolist()
    assert 3 not in ranked and 13 in ranked
