import logging

import pytest
from datasets import Dataset
from hypothesis import given, settings
from hypothesis import strategies as st

from trl_rec.data.preference_tokens import fit_preferences, refuse_empty


tokens = st.lists(st.integers(0, 9), min_size=1, max_size=6)
token_rows = st.lists(st.tuples(tokens, tokens, st.lists(tokens, max_size=3)), min_size=1, max_size=5)


@settings(max_examples=20)
@given(token_rows, st.integers(1, 12))
def test_rows_fit_and_completions_stay_whole(rows: list, max_length: int) -> None:
    columns = ("prompt_ids", "chosen_ids", "rejected_ids", "own")
    table = Dataset.from_dict({name: [(*row, 7)[place] for row in rows] for place, name in enumerate(columns)}, split="train")
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
    assert caplog.messages == ["left out 1 of 2 preferences: a completion fills max_length=3"]


@pytest.mark.parametrize("name", ["prompt_ids", "chosen_ids", "rejected_ids"])
def test_rows_without_any_token_are_refused(name: str) -> None:
    rows = {"prompt_ids": [[1], [2]], "chosen_ids": [[3], [4]], "rejected_ids": [[], [[5], [6]]]}
    refuse_empty(Dataset.from_dict(rows))
    refuse_empty(Dataset.from_dict({**rows, "rejected_ids": [[], []]}))
    rows[name] = [[[7]], [[5], []]] if name == "rejected_ids" else [[3], []]
    with pytest.raises(ValueError, match=f"row 1: {name} holds a text without any token; leave it out"):
        refuse_empty(Dataset.from_dict(rows))
    with pytest.raises(ValueError, match=f"row 0: {name} holds"):
        refuse_empty(Dataset.from_dict(rows).select([1]))
