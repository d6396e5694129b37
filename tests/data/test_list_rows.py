"""Compares the rows for training on lists of items, and their prompts, with those that a slow loop makes."""

from typing import Any

import pyarrow as pa
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.conftest import make_tokenizer
from tests.data.test_rows import NUM_ITEMS, make_split
from tests.oracles.lists import list_windows
from trl_rec.data import PromptFormat, build_list_rows, list_targets
from trl_rec.data.list_rows import build_list_prompts, complete_list_prompts, evaluation_list_rows
from trl_rec.decoding import list_tokens
from trl_rec.items import ItemCatalog, TokenTrie
from trl_rec.ragged import Ragged


LENGTH = 3
SURFACES = ["item_token", "semantic_id", "title"]


def make_format(surface: str, **options: Any) -> tuple[PromptFormat, TokenTrie, Any]:
    titles = [f"Pen {'xyz' * (index % 5)} {index}" for index in range(NUM_ITEMS)]
    tokenizer = make_tokenizer(titles, vocab_size=290)
    table = pa.table({"item_id": [str(index) for index in range(NUM_ITEMS)], "title": titles})
    ids = Ragged.from_lists([[f"<a_{index % 4}>", f"<b_{index}>"] for index in range(NUM_ITEMS)], object)
    catalog = ItemCatalog(table, surface=surface, semantic_ids=ids)
    tokenizer.add_tokens(catalog.new_tokens)
    trie = TokenTrie.from_catalog(catalog, tokenizer, lists=True)
    return PromptFormat.for_catalog(catalog, tokenizer, **{"list_length": LENGTH, **options}), trie, tokenizer


FORMATS = {surface: make_format(surface) for surface in SURFACES}
items = st.integers(0, NUM_ITEMS - 1)
rows_of_items = st.lists(
    st.tuples(st.lists(items, max_size=3), st.lists(items, max_size=12)), min_size=1, max_size=4
).filter(lambda rows: any(len(set(targets) - set(history)) >= LENGTH for history, targets in rows))


@given(rows_of_items, st.sampled_from(SURFACES), st.booleans(), st.sampled_from([None, 150]))
def test_each_list_contains_the_next_new_items(
    rows: list, surface: str, every_position: bool, max_length: int | None
) -> None:
    prompt_format, trie, tokenizer = FORMATS[surface]
    expected = [
        (user, *window)
        for user, (history, targets) in enumerate(rows)
        for window in list_windows(history, targets, LENGTH, every_position)
    ]
    built = build_list_rows(make_split(rows), prompt_format, every_position=every_position, max_length=max_length)
    assert list(zip(built["user"], built["history"], built["items"], strict=True)) == expected
    longest = sum(sorted(map(len, map(prompt_format.paths.__getitem__, range(NUM_ITEMS))))[-LENGTH:]) + 1
    for row, (_, history, chosen) in zip(built, expected, strict=True):
        tokens, labels = row["input_ids"], row["labels"]
        prompt = prompt_format.encode(Ragged.from_lists([history]), max_length=max_length)[0].tolist()
        completion = [token for item in chosen for token in prompt_format.paths[item].tolist()]
        completion += [tokenizer.eos_token_id] * (len(chosen) == LENGTH)
        assert tokens == prompt + completion
        assert labels == [-100] * len(prompt) + completion
        assert max_length is None or len(prompt) + longest <= max_length
        whole = list_tokens(trie, torch.tensor(chosen))
        assert whole.token_ids.tolist() == completion[: len(whole.mask)]


@given(rows_of_items, st.sampled_from(SURFACES), st.booleans(), st.sampled_from([None, 150]))
def test_prompts_equal_those_of_the_rows_and_can_be_completed(
    rows: list, surface: str, every_position: bool, max_length: int | None
) -> None:
    prompt_format, _, tokenizer = FORMATS[surface]
    options = {"every_position": every_position, "max_length": max_length}
    built, prompts = (
        build(make_split(rows), prompt_format, **options) for build in (build_list_rows, build_list_prompts)
    )
    assert prompts.column_names == ["prompt_ids", "user", "history", "targets"] and prompts.split == "train"
    assert [prompts["user"], prompts["history"], prompts["targets"]] == [
        built["user"],
        built["history"],
        built["items"],
    ]
    for prompt, row in zip(prompts["prompt_ids"], built, strict=True):
        assert prompt == [token for token, label in zip(row["input_ids"], row["labels"], strict=True) if label == -100]
    completed = complete_list_prompts(prompts, Ragged.from_lists(built["items"]), prompt_format)
    assert completed.to_dict() == built.to_dict() and completed.split == "train"
    others = [list(range(row % 2, row % 2 + LENGTH)) for row in range(len(prompts))]
    for row, prompt, chosen in zip(
        complete_list_prompts(prompts, Ragged.from_lists(others), prompt_format), prompts, others, strict=True
    ):
        completion = [token for item in chosen for token in prompt_format.paths[item].tolist()] + [
            tokenizer.eos_token_id
        ]
        assert row["input_ids"] == prompt["prompt_ids"] + completion and row["items"] == chosen
        assert row["labels"] == [-100] * len(prompt["prompt_ids"]) + completion
        assert (row["user"], row["history"]) == (prompt["user"], prompt["history"])


def test_selected_prompts_keep_their_order_when_completed() -> None:
    prompts = build_list_prompts(
        make_split([([0], [1, 2, 3]), ([4], [5, 6, 7]), ([1], [2, 3, 4])]), FORMATS["item_token"][0]
    )
    some = complete_list_prompts(
        prompts.select([2, 0]), Ragged.from_lists([[7, 6, 5], [4, 5, 6]]), FORMATS["item_token"][0]
    )
    assert (some["user"], some["history"], some["items"]) == ([2, 0], [[1], [0]], [[7, 6, 5], [4, 5, 6]])


def test_room_is_kept_for_the_longest_list_and_eos() -> None:
    prompt_format = FORMATS["item_token"][0]
    assert prompt_format.room(20) == 20 - 1 - LENGTH - 1  # BOS, one token per item, EOS


@given(rows_of_items)
def test_list_targets_are_the_first_list(rows: list) -> None:
    split = make_split(rows, split="test")
    expected = [list_windows(history, targets, LENGTH, False)[:1] for history, targets in rows]
    found = list_targets(split, LENGTH)
    assert [found[row].tolist() for row in range(len(found))] == [
        chosen[0][1] if chosen else [] for chosen in expected
    ]


def test_titles_end_with_a_line_break_and_lists_end_with_eos() -> None:
    prompt_format, trie, tokenizer = FORMATS["title"]
    built = build_list_rows(make_split([([0], [1, 0, 6, 1, 2, 3])]), prompt_format)
    assert [tokenizer.decode(row) for row in built["input_ids"]] == [
        'A user has chosen these items, oldest first:\n"Pen  0"\nThe items that the user chooses next, one a line:\n'
        '"Pen xyz 1"\n"Pen xyz 6"\n"Pen xyzxyz 2"\n<eos>',
        'A user has chosen these items, oldest first:\n"Pen  0"\n"Pen xyz 1"\n"Pen  0"\n"Pen xyz 6"\n"Pen xyz 1"\n'
        '"Pen xyzxyz 2"\nThe items that the user chooses next, one a line:\n"Pen xyzxyzxyz 3"\n',
    ]
    assert trie.num_items == trie.num_leaves == NUM_ITEMS


def test_a_title_with_a_line_break_that_extends_another_title_is_refused() -> None:
    tokenizer = make_tokenizer(["plain"], vocab_size=259)  # only bytes, so the line break is a token of its own
    catalog = ItemCatalog(pa.table({"item_id": ["a", "b", "c"], "title": ["Pen", 'Pen"\nInk', "Cup"]}))
    TokenTrie.from_catalog(catalog, tokenizer)
    with pytest.raises(
        ValueError, match="sequence 0 is a prefix of another sequence; .* remove line breaks from titles"
    ):
        TokenTrie.from_catalog(catalog, tokenizer, lists=True)


def test_list_rows_need_a_training_split_and_a_list_format(tokenizer_copy) -> None:
    prompt_format = FORMATS["item_token"][0]
    with pytest.raises(ValueError, match="models must use only the training split, not the validation split"):
        build_list_rows(make_split([([0], [1, 2, 3])], split="validation"), prompt_format)
    with pytest.raises(ValueError, match="models must use only the training split, not the test split"):
        build_list_prompts(make_split([([0], [1, 2, 3])], split="test"), prompt_format)
    with pytest.raises(ValueError, match="no row of the train split contains 3 new items"):
        build_list_rows(make_split([([0], [1, 0, 2])]), prompt_format)
    table = pa.table({"item_id": ["a", "b"], "title": ["Pen", "Cup"]})
    single = PromptFormat.for_catalog(ItemCatalog(table), tokenizer_copy)
    with pytest.raises(ValueError, match="the prompt format is for single items"):
        build_list_rows(make_split([([0], [1])]), single)
    for length in (0, 3):
        with pytest.raises(
            ValueError, match=rf"list_length must be from 1 to 2 \(the number of items\), not {length}"
        ):
            PromptFormat.for_catalog(ItemCatalog(table), tokenizer_copy, list_length=length)
    with pytest.raises(ValueError, match="the longest list and a prompt without a history"):
        build_list_rows(make_split([([0], [1, 2, 3])]), FORMATS["title"][0], max_length=40)
    tokenizer_copy.eos_token = None
    with pytest.raises(ValueError, match="no EOS token to end a list with"):
        PromptFormat.for_catalog(ItemCatalog(table), tokenizer_copy, list_length=1)


def test_a_format_of_single_items_is_refused_for_lists() -> None:
    """A format of single items has neither a list length nor tokens that end a list."""
    single, split = make_format("item_token", list_length=None)[0], make_split([([0], [1, 2, 3])])
    prompts = build_list_prompts(split, FORMATS["item_token"][0])
    for build in (
        lambda: build_list_rows(split, single),
        lambda: evaluation_list_rows(split, single),
        lambda: complete_list_prompts(prompts, Ragged.from_lists([[1, 2, 3]]), single),
    ):
        with pytest.raises(ValueError, match="the prompt format is for single items; create it with"):
            build()
