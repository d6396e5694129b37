"""Tests prompts that name the user by a semantic ID."""

from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from datasets import Dataset
from hypothesis import given
from hypothesis import strategies as st

from tests.conftest import make_tokenizer
from tests.data.test_rows import NUM_ITEMS, make_split, rows_of_items
from tests.stand_ins import CHAT
from trl_rec.data import PromptFormat, build_list_rows, build_rows
from trl_rec.data.list_rows import evaluation_list_rows
from trl_rec.data.rows import evaluation_rows
from trl_rec.items import ItemCatalog
from trl_rec.ragged import Ragged
from trl_rec.trainer.softmax_dpo.rows import preference_rows


USERS = [["<ua_1>", "<ub_0>"], ["<ua_0>"], ["<ua_1>", "<ub_2>", "<uc_0>"], ["<ua_2>"]]


def make_format(surface: str, with_users: bool = True, **options: Any) -> tuple[PromptFormat, Any]:
    titles = [f"Pen {'xyz' * (index % 5)} {index}" for index in range(NUM_ITEMS)]
    tokenizer = make_tokenizer(titles, vocab_size=290)
    tokenizer.chat_template = CHAT
    table = pa.table({"item_id": [str(index) for index in range(NUM_ITEMS)], "title": titles})
    ids = Ragged.from_lists([[f"<a_{index % 4}>", f"<b_{index}>"] for index in range(NUM_ITEMS)], object)
    user_ids = Ragged.from_lists(USERS, object)
    catalog = ItemCatalog(table, surface=surface, semantic_ids=ids, user_ids=user_ids)
    tokenizer.add_tokens(catalog.new_tokens)
    if not with_users:
        catalog = ItemCatalog(table, surface=surface, semantic_ids=ids)
    return PromptFormat.for_catalog(catalog, tokenizer, **options), tokenizer


HEADS = {"title": "Had by {user}", "item_token": "{user}", "semantic_id": "{user}"}
NAMED = {surface: make_format(surface, prompt_head=head, prompt_tail="") for surface, head in HEADS.items()}
PLAIN = {
    surface: make_format(surface, prompt_head=head.replace("{user}", ""), prompt_tail="")
    for surface, head in HEADS.items()
}


@given(rows_of_items, st.sampled_from(sorted(HEADS)), st.sampled_from([None, 75, 90]))
def test_naming_the_user_changes_nothing_else_in_the_prompt(rows: list, surface: str, max_length: int | None) -> None:
    (named, tokenizer), (plain, _) = NAMED[surface], PLAIN[surface]
    split = make_split(rows)
    shorter = None if max_length is None else max_length - max(map(len, USERS))
    for build in (build_rows, evaluation_rows):
        named_rows, other_rows = build(split, named, max_length=max_length), build(split, plain, max_length=shorter)
        assert named_rows["user"] == other_rows["user"]
        assert max_length is None or max(map(len, named_rows["input_ids"])) <= max_length
        for row, other in zip(named_rows, other_rows, strict=True):
            user = tokenizer.convert_tokens_to_ids(USERS[row["user"]])
            start, stop = len(named.prompt_head), len(named.prompt_head) + len(user)
            assert row["input_ids"][start:stop] == user
            assert [*row["input_ids"][:start], *row["input_ids"][stop:]] == other["input_ids"]
            assert row["labels"][:stop] == [-100] * stop and row["labels"][stop:] == other["labels"][start:]


@pytest.mark.parametrize("max_length", [None, 8, 12])
def test_each_window_of_a_sequence_names_its_user(max_length: int | None) -> None:
    prompt_format, tokenizer = NAMED["semantic_id"]
    assert prompt_format.is_compact
    split = make_split([([0], [1, 2]), ([3], []), ([3], [4, 5, 6, 7, 8, 9])])
    built = build_rows(split, prompt_format, targets="all", max_length=max_length)
    assert max_length is None or len(built) > 2
    learned: dict[int, list[int]] = {0: [], 2: []}
    for row in built:
        user = tokenizer.convert_tokens_to_ids(USERS[row["user"]])
        assert row["input_ids"][1 : 1 + len(user)] == user and row["labels"][: 1 + len(user)] == [-100] * (
            1 + len(user)
        )
        assert max_length is None or len(row["input_ids"]) <= max_length
        learned[row["user"]] += [label for label in row["labels"] if label != -100]
    for user, items in ((0, [1, 2]), (2, [4, 5, 6, 7, 8, 9])):
        assert learned[user] == [token for item in items for token in prompt_format.paths[item].tolist()]


def test_list_rows_and_preference_rows_name_their_users() -> None:
    prompt_format, tokenizer = make_format("item_token", prompt_head="{user}", list_length=2)
    split = make_split([([0], [1, 2]), ([3], [4, 5]), ([3], [4, 5, 6, 7])]).select([2, 0])
    built, measured = build_list_rows(split, prompt_format), evaluation_list_rows(split, prompt_format)
    assert (built["user"], built["items"]) == ([2, 2, 0], [[4, 5], [6, 7], [1, 2]]) and measured["user"] == [2, 0]
    for rows in (built, measured):
        for row in rows:
            user = tokenizer.convert_tokens_to_ids(USERS[row["user"]])
            assert row["input_ids"][1 : 1 + len(user)] == user
    table = Dataset.from_dict({"user": [2, 1], "history": [[0], [1]], "chosen": [2, 3], "rejected": [[4], [5]]})
    rows = preference_rows(table, NAMED["semantic_id"][0])
    for prompt, user in zip(rows["prompt_ids"], (2, 1), strict=True):
        named = NAMED["semantic_id"][1].convert_tokens_to_ids(USERS[user])
        assert prompt[1 : 1 + len(named)] == named
    with pytest.raises(ValueError, match="the prompt names the user, but no user was given"):
        preference_rows(table.remove_columns("user"), NAMED["semantic_id"][0])


def test_a_chat_template_surrounds_a_prompt_that_names_the_user() -> None:
    prompt_format, tokenizer = make_format(
        "item_token", prompt_head="For {user}: ", prompt_tail="?", chat_template=True
    )
    prompt = prompt_format.encode(Ragged.from_lists([[3]]), np.array([1]))[0]
    assert tokenizer.decode(prompt) == "<bos>user\nFor <ua_0>: <item_3>?<eos>\n<bos>assistant\n"


def test_unknown_users_are_refused() -> None:
    prompt_format, histories = NAMED["item_token"][0], Ragged.from_lists([[0], [1]])
    with pytest.raises(
        ValueError, match="the prompt names the user, but no user was given; pass the user.s row number"
    ):
        prompt_format.encode(histories)
    for user in (-1, 4):
        with pytest.raises(ValueError, match=f"user {user} has no semantic ID; choose a user from 0 to 3"):
            prompt_format.encode(histories, np.array([1, user]))
    for texts in ({"prompt_head": "{user}{user}"}, {"prompt_tail": "{user}"}, {"prompt_item": "{user}{surface}"}):
        with pytest.raises(ValueError, match="may occur only once, in prompt_head"):
            make_format("item_token", **texts)
    with pytest.raises(ValueError, match="the catalogue has no semantic IDs for users"):
        make_format("item_token", with_users=False, prompt_head="{user}")
    assert PLAIN["item_token"][0].encode(histories, np.array([1, 99])).lengths.tolist() == [
        2,
        2,
    ]  # a prompt without {user} ignores which user is given
