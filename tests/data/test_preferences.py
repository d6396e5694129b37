import json
from copy import deepcopy
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from datasets import Dataset
from hypothesis import given
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerFast

from tests.conftest import make_tokenizer
from tests.data.test_rows import FORMATS, NUM_ITEMS
from trl_rec.data.preferences import preference_rows, read_preferences, refuse_empty, tokenize_preferences
from trl_rec.items import ItemCatalog


items = st.integers(0, NUM_ITEMS - 1)
rows_of_items = st.lists(st.tuples(st.lists(items, max_size=12), items, st.lists(items, max_size=4)), min_size=1, max_size=4)
TOKENIZER = make_tokenizer(["the cat sat on the mat", "which one do you like", "blue or red"] * 3)
EOS = TOKENIZER.eos_token_id
CHAT = "{% for turn in messages %}<{{ turn['role'] }}>{{ turn['content'] }}\n{% endfor %}"
CHAT += "{% if add_generation_prompt %}<assistant>{% endif %}"


def make_table(rows: list[tuple[list[int], int, list[int]]], split: str | None = None) -> Dataset:
    numbers = pa.list_(pa.int32())
    columns = {
        "history": pa.array([row[0] for row in rows], numbers),
        "chosen": pa.array([row[1] for row in rows], pa.int32()),
        "rejected": pa.array([row[2] for row in rows], numbers),
    }
    return Dataset(pa.table(columns), split=split)


def texts(**columns: Any) -> Dataset:
    return Dataset.from_dict(columns)


def ids(text: str, tokenizer: PreTrainedTokenizerFast = TOKENIZER) -> list[int]:
    return tokenizer(text, add_special_tokens=False)["input_ids"]


@given(rows_of_items, st.sampled_from(sorted(FORMATS)), st.sampled_from([None, 60, 90]))
def test_a_table_becomes_prompts_and_paths(rows: list, surface: str, max_length: int | None) -> None:
    prompt_format = FORMATS[surface]
    rows = [(history, chosen, [item for item in rejected if item != chosen]) for history, chosen, rejected in rows]
    rows.append((list(range(NUM_ITEMS)), 0, [1]))  # long enough to be cut
    made = preference_rows(make_table(rows, "train"), prompt_format, max_length=max_length)
    room = None if max_length is None else max_length - int(prompt_format.paths.lengths.max())
    for row, (history, chosen, rejected) in zip(made, rows, strict=True):
        prompts = [  # the whole history's, then those without its oldest items
            [
                *prompt_format.head,
                *(token for item in history[cut:] for token in prompt_format.pieces[item]),
                *prompt_format.tail,
            ]
            for cut in range(len(history) + 1)
        ]
        assert row["prompt_ids"] == next(prompt for prompt in prompts if room is None or len(prompt) <= room)
        assert row["chosen_ids"] == prompt_format.paths[chosen].tolist()
        assert row["rejected_ids"] == [prompt_format.paths[item].tolist() for item in rejected]


def test_chosen_rows_of_a_table_are_respected() -> None:
    table = make_table([([0], 1, [2]), ([3, 4], 5, [6, 7]), ([], 8, [])])
    whole = preference_rows(table, FORMATS["semantic_id"])
    assert preference_rows(table.select([2, 0]), FORMATS["semantic_id"])[:] == whole.select([2, 0])[:]


def test_a_table_whose_lists_are_all_empty_has_no_type() -> None:
    made = preference_rows(Dataset.from_dict({"history": [[]], "chosen": [1], "rejected": [[]]}), FORMATS["title"])
    assert made[0]["rejected_ids"] == [] and made[0]["prompt_ids"] == [*FORMATS["title"].head, *FORMATS["title"].tail]


@pytest.mark.parametrize("split", ["validation", "test"])
def test_only_training_rows_may_be_learned_from(split: str) -> None:
    table = make_table([([0], 1, [2])], split)
    with pytest.raises(ValueError, match=f"training rows cannot come from the {split} split: a preference learns from"):
        preference_rows(table, FORMATS["item_token"])
    assert len(preference_rows(table, FORMATS["item_token"], training=False)) == 1


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (([0], 2, [1, 2]), "row 1: item 2 is both chosen and rejected; take it out"),
        (([0], NUM_ITEMS, [1]), f"row 1: chosen has the item {NUM_ITEMS}, but the catalogue's are 0 to {NUM_ITEMS - 1}"),
        (([0], -1, [1]), "row 1: chosen has the item -1"),
        (([0, -1], 2, [1]), "row 1: history has the item -1"),
        (([0], 2, [1, NUM_ITEMS]), f"row 1: rejected has the item {NUM_ITEMS}"),
    ],
)
def test_wrong_items_are_refused(row: tuple, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        preference_rows(make_table([([0], 1, [2]), row]), FORMATS["item_token"])


def test_texts_are_tokenised_apart_and_end_once() -> None:
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


def test_what_the_tokenizer_begins_a_text_with_begins_the_prompt_alone() -> None:
    from tokenizers.processors import TemplateProcessing

    tokenizer = deepcopy(TOKENIZER)
    special = [("<bos>", tokenizer.bos_token_id)]
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single="<bos> $A", special_tokens=special)
    made = tokenize_preferences(texts(prompt=["the cat"], chosen=[" sat"], rejected=[[" on"]]), tokenizer)[0]
    assert made["prompt_ids"][0] == tokenizer.bos_token_id
    assert tokenizer.bos_token_id not in [*made["prompt_ids"][1:], *made["chosen_ids"], *made["rejected_ids"][0]]


def test_a_long_prompt_loses_its_beginning_and_a_completion_nothing() -> None:
    prompt, longest = "the cat sat on the mat " * 6, " which one do you like"
    rows = texts(prompt=[prompt, "the cat"], chosen=[" red", longest * 6], rejected=[[longest], [" red"]])
    room = 30 - len(ids(longest)) - 1
    assert 0 < room < len(ids(prompt)) and len(ids(longest * 6)) >= 30
    made = tokenize_preferences(rows, TOKENIZER, max_length=30)
    assert len(made) == 1  # nothing of the second prompt has room beside its completion
    assert made[0]["prompt_ids"] == ids(prompt)[-room:]
    assert made[0]["rejected_ids"] == [[*ids(longest), EOS]] and made[0]["chosen_ids"] == [*ids(" red"), EOS]


def test_many_rows_without_anything_rejected_may_come_first() -> None:
    count = 1001  # more than are written before their types are settled
    rejected: list[list[str]] = [[]] * count + [[" on"]]
    made = tokenize_preferences(texts(prompt=["a"] * (count + 1), chosen=["b"] * (count + 1), rejected=rejected), TOKENIZER)
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


def test_a_prompt_ends_where_the_template_writes_an_answer_otherwise() -> None:
    tokenizer, rows = chat(CHAT.replace("<assistant>{%", "<assistant><think>{%"))
    made = tokenize_preferences(rows, tokenizer)[0]
    assert tokenizer.decode(made["prompt_ids"]) == "<system>a cat\n<user>which one?\n<assistant>"
    assert tokenizer.decode(made["chosen_ids"]) == "red\n"


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


@pytest.fixture
def catalog() -> ItemCatalog:
    return ItemCatalog(pa.table({"item_id": ["x", "y", "z"], "title": ["X", "Y", "Z"]}), surface="item_token")


def test_a_file_names_items_by_their_ids(catalog: ItemCatalog, tmp_path: Path) -> None:
    path = tmp_path / "preferences.jsonl"
    rows = [{"history": ["x"], "chosen": "z", "rejected": ["y"]}, {"history": [], "chosen": "x", "rejected": ["y", "z"]}]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    table = read_preferences(str(path), catalog)
    assert table[:] == {"history": [[0], []], "chosen": [2, 0], "rejected": [[1], [1, 2]]}
    path.write_text(json.dumps({"history": ["x"], "chosen": "w", "rejected": ["y"]}) + "\n")
    with pytest.raises(ValueError, match="'w' .* is not in the catalogue of 3 items"):
        read_preferences(str(path), catalog)


def test_a_file_of_texts_is_read_as_it_is(catalog: ItemCatalog, tmp_path: Path) -> None:
    rows = texts(prompt=["a"], chosen=["b"], rejected=[["c", "d"]])
    rows.to_parquet(tmp_path / "texts.parquet")
    assert read_preferences(str(tmp_path / "texts.parquet"))[:] == rows[:]
    assert read_preferences(str(tmp_path / "texts.parquet"), catalog)[:] == rows[:]
    with pytest.raises(ValueError, match="there is no file .*nothing.jsonl"):
        read_preferences(str(tmp_path / "nothing.jsonl"))
