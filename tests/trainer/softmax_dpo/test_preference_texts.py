"""Preferences that are texts or conversations: how they are tokenised, and which rows are dropped or refused."""

import json
import logging
from copy import deepcopy
from typing import Any

import pytest
from datasets import Dataset
from transformers import PreTrainedTokenizerFast

from tests.conftest import make_tokenizer
from trl_rec.trainer.softmax_dpo.texts import tokenize_preferences


TOKENIZER = make_tokenizer(["the cat sat on the mat", "which one do you like", "blue or red"] * 3)
EOS = TOKENIZER.eos_token_id
CHAT = "{% for turn in messages %}<{{ turn['role'] }}>{{ turn['content'] }}\n{% endfor %}"
CHAT += "{% if add_generation_prompt %}<assistant>{% endif %}"


def texts(**columns: Any) -> Dataset:
    return Dataset.from_dict(columns)


def ids(text: str, tokenizer: PreTrainedTokenizerFast = TOKENIZER) -> list[int]:
    return tokenizer(text, add_special_tokens=False)["input_ids"]


def test_texts_are_tokenised_separately_and_end_with_one_eos() -> None:
    made = tokenize_preferences(
        texts(prompt=["the cat", "blue"], chosen=[" sat", " or<eos>"], rejected=[[" on", " red<eos>"], []]), TOKENIZER
    )
    assert made[0] == {
        "prompt_ids": ids("the cat"),
        "chosen_ids": [*ids(" sat"), EOS],
        "rejected_ids": [[*ids(" on"), EOS], [*ids(" red"), EOS]],
    }
    assert made[1] == {"prompt_ids": ids("blue"), "chosen_ids": [*ids(" or"), EOS], "rejected_ids": []}


def test_one_rejected_text_need_not_be_a_list() -> None:
    columns = {"prompt": ["the cat"], "chosen": [" sat"]}
    listed = tokenize_preferences(texts(**columns, rejected=[[" on"]]), TOKENIZER)
    assert tokenize_preferences(texts(**columns, rejected=[" on"]), TOKENIZER)[:] == listed[:]


def test_a_bos_token_of_the_tokenizer_is_added_only_to_the_prompt() -> None:
    from tokenizers.processors import TemplateProcessing

    tokenizer = deepcopy(TOKENIZER)
    special = [("<bos>", tokenizer.bos_token_id)]
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single="<bos> $A", special_tokens=special)
    made = tokenize_preferences(texts(prompt=["the cat"], chosen=[" sat"], rejected=[[" on"]]), tokenizer)[0]
    assert made["prompt_ids"][0] == tokenizer.bos_token_id
    assert tokenizer.bos_token_id not in [*made["prompt_ids"][1:], *made["chosen_ids"], *made["rejected_ids"][0]]


def test_a_long_prompt_loses_its_beginning_and_completions_stay_whole() -> None:
    prompt, longest = "the cat sat on the mat " * 6, " which one do you like"
    rows = texts(prompt=[prompt, "the cat"], chosen=[" red", longest * 6], rejected=[[longest], [" red"]])
    room = 30 - len(ids(longest)) - 1
    assert 0 < room < len(ids(prompt)) and len(ids(longest * 6)) >= 30
    made = tokenize_preferences(rows, TOKENIZER, max_length=30)
    assert len(made) == 1  # the second row is dropped, because its longest completion leaves no room for the prompt
    assert made[0]["prompt_ids"] == ids(prompt)[-room:]
    assert made[0]["rejected_ids"] == [[*ids(longest), EOS]] and made[0]["chosen_ids"] == [*ids(" red"), EOS]


def test_many_rows_without_anything_rejected_may_come_first() -> None:
    count = 1001  # `datasets` decides the types of columns from the first 1000 rows
    rejected: list[list[str]] = [[]] * count + [[" on"]]
    made = tokenize_preferences(
        texts(prompt=["a"] * (count + 1), chosen=["b"] * (count + 1), rejected=rejected), TOKENIZER
    )
    assert len(made) == count + 1 and made[count]["rejected_ids"] == [[*ids(" on"), EOS]]


def chat(template: str) -> tuple[PreTrainedTokenizerFast, Dataset]:
    tokenizer = deepcopy(TOKENIZER)
    tokenizer.chat_template = template
    said = {text: [{"role": "assistant", "content": text}] for text in ("red", "blue", "the mat")}
    asked = [{"role": "system", "content": "a cat"}, {"role": "user", "content": "which one?"}]
    return tokenizer, Dataset.from_dict(
        {"prompt": [asked], "chosen": [said["red"]], "rejected": [[said["blue"], said["the mat"]]]}
    )


def test_conversations_are_written_by_the_template() -> None:
    tokenizer, rows = chat(CHAT)
    made = tokenize_preferences(rows, tokenizer)[0]
    assert tokenizer.decode(made["prompt_ids"]) == "<system>a cat\n<user>which one?\n<assistant>"
    assert tokenizer.decode(made["chosen_ids"]) == "red\n"
    assert [tokenizer.decode(one) for one in made["rejected_ids"]] == ["blue\n", "the mat\n"]
    single = rows.remove_columns("rejected").add_column("rejected", [rows[0]["rejected"][0]])
    assert tokenize_preferences(single, tokenizer)[0]["rejected_ids"] == made["rejected_ids"][:1]


def test_a_prompt_ends_where_the_generation_prompt_and_the_answer_diverge() -> None:
    tokenizer, rows = chat(CHAT.replace("<assistant>{%", "<assistant><think>{%"))
    made = tokenize_preferences(rows, tokenizer)[0]
    assert tokenizer.decode(made["prompt_ids"]) == "<system>a cat\n<user>which one?\n<assistant>"
    assert tokenizer.decode(made["chosen_ids"]) == "red\n"


TOOL = {"type": "function", "function": {"name": "look", "description": "look it up"}}
TOOL_CHAT = "{% if tools %}[{{ tools[0]['function']['name'] }}]{% endif %}{{ mood | default('') }}" + CHAT


@pytest.mark.parametrize("tools", [[TOOL], json.dumps([TOOL])])
def test_a_template_is_given_the_tools_and_options_of_the_row(tools: Any) -> None:
    tokenizer, rows = chat(TOOL_CHAT)
    plain = tokenize_preferences(rows, tokenizer)[0]
    told = Dataset.from_list([{**rows[0], "tools": tools, "chat_template_kwargs": {"mood": "calm "}}])
    made = tokenize_preferences(told, tokenizer)[0]
    assert tokenizer.decode(made["prompt_ids"]) == f"[look]calm {tokenizer.decode(plain['prompt_ids'])}"
    assert (made["chosen_ids"], made["rejected_ids"]) == (plain["chosen_ids"], plain["rejected_ids"])
    without = Dataset.from_list([{**rows[0], "tools": None, "chat_template_kwargs": None}])
    assert tokenize_preferences(without, tokenizer)[0] == plain


def test_rows_left_out_are_counted_by_their_reason(caplog: pytest.LogCaptureFixture) -> None:
    rows = texts(
        prompt=["", "the cat", "blue", ""], chosen=["a", "the mat " * 30, " or", "b"], rejected=[[" red"]] * 4
    )
    with caplog.at_level(logging.WARNING, "trl_rec"):
        made = tokenize_preferences(rows, TOKENIZER, max_length=30)
    assert made["prompt_ids"][:] == [ids("blue")]
    assert caplog.messages == [
        "dropped 2 of 4 preferences, because their prompt has no tokens",
        "dropped 1 of 2 preferences, because a completion leaves no room for the prompt in max_length=30",
    ]
    caplog.clear()
    tokenize_preferences(rows.select([2]), TOKENIZER, max_length=30)
    assert not caplog.messages


def test_rejected_completions_that_repeat_another_one_are_dropped(caplog: pytest.LogCaptureFixture) -> None:
    rejected = [[" on", " sat", " on", " red"], [" or<eos>", " red"], []]
    with caplog.at_level(logging.WARNING, "trl_rec"):
        made = tokenize_preferences(
            texts(prompt=["the cat", "blue", "a"], chosen=[" sat", " or", " b"], rejected=rejected), TOKENIZER
        )
    kept = [[" on", " red"], [" red"], []]
    assert made["rejected_ids"][:] == [[[*ids(text), EOS] for text in row] for row in kept]
    assert made.column_names == ["prompt_ids", "chosen_ids", "rejected_ids"]
    assert caplog.messages == [
        "dropped rejected completions with the same tokens as the chosen completion or an earlier rejected "
        "completion of their row (number: 3)"
    ]
    tokenizer, rows = chat(CHAT)
    said = [rows[0]["chosen"], *rows[0]["rejected"], rows[0]["rejected"][0]]
    more = Dataset.from_list([{**rows[0], "rejected": said}])
    assert tokenize_preferences(more, tokenizer)[:] == tokenize_preferences(rows, tokenizer)[:]


SAID = [{"role": "assistant", "content": "red"}]
WORDS: dict[str, Any] = {"prompt": "a", "chosen": "b", "rejected": ["c"]}
TALK: dict[str, Any] = {"prompt": SAID, "chosen": SAID, "rejected": [SAID]}


@pytest.mark.parametrize("row", [WORDS, TALK])
@pytest.mark.parametrize("name", ["prompt", "chosen", "rejected"])
def test_a_row_with_a_null_is_refused(row: dict[str, Any], name: str) -> None:
    tokenizer = chat(CHAT)[0]
    for value in [None] if name != "rejected" else [None, [None], [*row[name], None]]:
        message = f"row 1: {name} is null; give a text or a list of messages, or leave the row out"
        with pytest.raises(ValueError, match=message):
            tokenize_preferences(Dataset.from_list([row, {**row, name: value}]), tokenizer)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({**WORDS, "chosen": SAID}, "prompt is a text, but chosen is a list of messages; give texts only"),
        ({**WORDS, "rejected": SAID}, "prompt is a text, but rejected is a list of messages; give"),
        ({**WORDS, "rejected": [SAID]}, "prompt is a text, but rejected is a list of messages; give"),
        ({**TALK, "chosen": "b"}, "prompt is a list of messages, but chosen is a text; give"),
        ({**TALK, "rejected": "c"}, "prompt is a list of messages, but rejected is a text; give"),
        ({**TALK, "rejected": ["c"]}, "prompt is a list of messages, but rejected is a text; give"),
        ({**WORDS, "chosen": 3}, "chosen is 3; give a text or a list of messages"),
        ({**WORDS, "chosen": ["b"]}, r"chosen is \['b'\]; give a text or a list of messages"),
    ],
)
def test_texts_and_conversations_are_not_mixed(row: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"row 0: {message}"):
        tokenize_preferences(Dataset.from_list([row]), chat(CHAT)[0])


def test_texts_need_an_eos_token_and_conversations_do_not() -> None:
    tokenizer, rows = chat(CHAT)
    made = tokenize_preferences(rows, tokenizer)
    tokenizer.eos_token = None
    assert tokenize_preferences(rows, tokenizer)[:] == made[:]
    with pytest.raises(ValueError, match="the tokenizer has no EOS token to end a text with; set tokenizer.eos_token"):
        tokenize_preferences(Dataset.from_list([WORDS]), tokenizer)


def test_no_rows_give_no_rows() -> None:
    made = tokenize_preferences(Dataset.from_list([WORDS]), TOKENIZER)
    none = tokenize_preferences(Dataset.from_list([WORDS]).select([]), TOKENIZER)
    assert len(none) == 0 and none.features == made.features
