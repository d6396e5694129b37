"""Tests preferences given as token ids: how rows that are too long are shortened or dropped, and which rows are
refused."""

import logging

import pytest
from datasets import Dataset
from hypothesis import given, settings
from hypothesis import strategies as st

from trl_rec.trainer.softmax_dpo.tokens import check_known_tokens, check_not_empty, check_well_formed, fit_preferences


tokens = st.lists(st.integers(0, 9), min_size=1, max_size=6)
token_rows = st.lists(st.tuples(tokens, tokens, st.lists(tokens, max_size=3)), min_size=1, max_size=5)


@settings(max_examples=20)
@given(token_rows, st.integers(1, 12))
def test_rows_fit_and_completions_stay_whole(rows: list, max_length: int) -> None:
    columns = ("prompt_ids", "chosen_ids", "rejected_ids", "own")
    table = Dataset.from_dict(
        {name: [(*row, 7)[place] for row in rows] for place, name in enumerate(columns)}, split="train"
    )
    made = fit_preferences(table, max_length)
    expected = []
    for prompt, chosen, rejected in rows:
        room = max_length - max(map(len, [chosen, *rejected]))
        if room > 0:
            expected.append({"prompt_ids": prompt[-room:], "chosen_ids": chosen, "rejected_ids": rejected, "own": 7})
    assert made.to_list() == expected and made.split == "train"
    assert fit_preferences(table, None) is table


def test_token_rows_without_room_are_counted(caplog: pytest.LogCaptureFixture) -> None:
    rows = {"prompt_ids": [[1], [2]], "chosen_ids": [[3], [4]], "rejected_ids": [[[5, 5, 5]], [[6]]]}
    with caplog.at_level(logging.WARNING, "trl_rec"):
        assert len(fit_preferences(Dataset.from_dict(rows), 3)) == 1
    assert caplog.messages == [
        "dropped 1 of 2 preferences, because a completion leaves no room for the prompt in max_length=3"
    ]


NAMES = ["prompt_ids", "chosen_ids", "rejected_ids"]
ROWS: dict[str, list] = {"prompt_ids": [[1], [2, 9]], "chosen_ids": [[3, 3], [4]], "rejected_ids": [[], [[5], [6, 6]]]}


@pytest.mark.parametrize("name", NAMES)
def test_rows_with_an_empty_list_of_tokens_are_refused(name: str) -> None:
    rows = {"prompt_ids": [[1], [2]], "chosen_ids": [[3], [4]], "rejected_ids": [[], [[5], [6]]]}
    check_not_empty(Dataset.from_dict(rows))
    check_not_empty(Dataset.from_dict({**rows, "rejected_ids": [[], []]}))
    rows[name] = [[[7]], [[5], []]] if name == "rejected_ids" else [[3], []]
    with pytest.raises(ValueError, match=f"row 1: {name} contains an empty list of tokens"):
        check_not_empty(Dataset.from_dict(rows))
    with pytest.raises(ValueError, match=f"row 0: {name} contains"):
        check_not_empty(Dataset.from_dict(rows).select([1]))


@pytest.mark.parametrize("name", NAMES)
def test_a_token_that_the_model_does_not_have_is_refused(name: str) -> None:
    check_known_tokens(Dataset.from_dict(ROWS), 10)
    check_known_tokens(Dataset.from_dict({**ROWS, "rejected_ids": [[], []]}), 10)
    for token in (10, -1):
        wrong = {**ROWS, name: [ROWS[name][0], [[5], [6, token]] if name == "rejected_ids" else [2, token]]}
        with pytest.raises(
            ValueError,
            match=f"row 1: {name} contains the token {token}, but the model's tokens are 0 to 9; use the model",
        ):
            check_known_tokens(Dataset.from_dict(wrong), 10)
        with pytest.raises(ValueError, match=f"row 0: {name} contains the token {token}"):
            check_known_tokens(Dataset.from_dict(wrong).select([1]), 10)


@pytest.mark.parametrize("name", NAMES)
def test_columns_that_hold_no_tokens_are_refused(name: str) -> None:
    for rejected in (ROWS["rejected_ids"], [[], []], [[[]], []]):
        check_well_formed(Dataset.from_dict({**ROWS, "rejected_ids": rejected}))
    check_well_formed(Dataset.from_dict({column: [] for column in ROWS}))
    lists = "list of lists of token ids" if name == "rejected_ids" else "list of token ids"
    deep = [[[[1]]], [[[2]]]] if name == "rejected_ids" else [[[1]], [[2]]]
    flat = [[1], [2]] if name == "rejected_ids" else [1, 2]
    for column in (deep, flat, [["a"], ["b"]], [[0.5], [1.5]], ["a", "b"], [{"a": 1}] * 2):
        with pytest.raises(ValueError, match=f"the column {name} has the type .*; give each row a {lists}"):
            check_well_formed(Dataset.from_dict({**ROWS, name: column}))
    for column in (
        [ROWS[name][0], None],
        [[], [None]],
        [[], [[1], [2, None]] if name == "rejected_ids" else [1, None]],
    ):
        with pytest.raises(ValueError, match=f"row 1: {name} contains null; give token ids, or leave the row out"):
            check_well_formed(Dataset.from_dict({**ROWS, name: column}))
