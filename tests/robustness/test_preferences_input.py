"""Tests that `trl-rec softmax_dpo` refuses malformed preferences: tables of items, texts, conversations and token
ids. An `Attack` is one malformed input, with a part of the message that the user must see."""

from __future__ import annotations

import json
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import Dataset

from tests.robustness.attacks import Attack, assert_refused, each
from tests.trainer.runs import make_folder
from tests.trainer.softmax_dpo.preference_runs import TEXT_TOKENIZER
from trl_rec import load
from trl_rec.items import ItemCatalog
from trl_rec.models import make_model
from trl_rec.trainer.softmax_dpo.rows import read_preferences
from trl_rec.trainer.softmax_dpo.texts import tokenize_preferences


ITEMS = {"history": ["i0"], "chosen": "i1", "rejected": ["i2"]}
TEXTS = {"prompt": "the cat", "chosen": " sat", "rejected": [" on"]}
WORDS = ["--use_cpu", "--bf16", "false", "--report_to", "none", "--output_dir", "run", "--max_length", "64"]
WORDS += ["--model_name_or_path", "model", "--disable_tqdm", "true"]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Makes a dataset, a model of the dataset's items, and a language model whose tokenizer has a chat template."""
    folder = tmp_path_factory.mktemp("world")
    make_folder(folder)
    (folder / "texts").mkdir()
    tokenizer = deepcopy(TEXT_TOKENIZER)
    tokenizer.chat_template = "{% for turn in messages %}{{ turn['role'] + ':' + turn['content'] }}\n{% endfor %}"
    tokenizer.save_pretrained(folder / "texts")
    make_model(tokenizer, hidden_size=16).save_pretrained(folder / "texts")
    return folder


def rows(*found: object, name: str = "preferences.jsonl") -> Callable[[Path], object]:
    """Returns a function that writes the rows as JSONL."""
    return lambda folder: (folder / name).write_text("\n".join(map(json.dumps, found)))


def item_rows(**values: object) -> Callable[[Path], object]:
    """Returns a function that writes a valid row of items, followed by the same row with the given values."""
    return rows(ITEMS, {**ITEMS, **values})


def text_rows(**values: object) -> Callable[[Path], object]:
    """Returns a function that writes a valid row of texts, followed by the same row with the given values."""
    return rows(TEXTS, {**TEXTS, **values})


def content(text: str | bytes, name: str = "preferences.jsonl") -> Callable[[Path], object]:
    """Returns a function that writes a file with this content."""
    return lambda folder: (folder / name).write_bytes(text if isinstance(text, bytes) else text.encode())


def parquet(**columns: pa.Array) -> Callable[[Path], object]:
    """Returns a function that writes a Parquet file with one row. Columns that are not given have valid values."""
    empty = pa.array([[]], pa.list_(pa.string()))
    right = {"history": empty, "chosen": pa.array(["i1"]), "rejected": empty}
    return lambda folder: pq.write_table(pa.table({**right, **columns}), folder / "preferences.parquet")


def file(name: str) -> list[str]:
    """Returns the words of the command line that set the file of preferences."""
    return ["--preferences", name]


PARQUET = file("preferences.parquet")
CSV = file("preferences.csv")
FILES = [
    Attack("no file", "there is no file nowhere.jsonl; give a file", words=file("nowhere.jsonl")),
    Attack("no name", "'' does not end in .jsonl, .json, .parquet, .csv", words=file("")),
    Attack("another file", "'x.txt' does not end in .jsonl", content("x", "x.txt"), file("x.txt")),
    Attack("a folder", "there is no file preferences.jsonl", lambda folder: (folder / "preferences.jsonl").mkdir()),
    Attack("empty", "preferences.jsonl cannot be read as json preferences (it is empty)", content("")),
    Attack("blank", "preferences.jsonl cannot be read as json preferences", content(" \n\n")),
    Attack("binary", "preferences.jsonl cannot be read as json preferences", content(b"\x00\xff" * 30)),
    Attack("deep", "preferences.jsonl cannot be read as json preferences", content("[" * 100000)),
    Attack("truncated", "preferences.jsonl cannot be read as", content(json.dumps(ITEMS) + '\n{"history": ["i')),
    Attack("a number as row", "preferences.jsonl cannot be read as", rows(ITEMS, 3)),
    Attack("truncated Parquet", "preferences.parquet cannot be read", content("PAR1", "preferences.parquet"), PARQUET),
    Attack(
        "longer CSV row", "preferences.csv cannot be read", content("chosen\na,b\nc,d,e\n", "preferences.csv"), CSV
    ),
    Attack("open quote in CSV", "preferences.csv cannot be read", content('chosen\n"a\n', "preferences.csv"), CSV),
    Attack("CSV of Latin-1", "preferences.csv cannot be read", content(b"chosen\ncaf\xe9\n", "preferences.csv"), CSV),
]
TABLES = [
    Attack(
        "unknown chosen", "row 1: chosen contains the item 'q', which is not in the catalogue", item_rows(chosen="q")
    ),
    Attack(
        "unknown history", "row 1: history contains the item 'q', which is not in the", item_rows(history=["i0", "q"])
    ),
    Attack(
        "unknown rejected", "row 1: rejected contains the item 'q', which is not in the", item_rows(rejected=["q"])
    ),
    Attack(
        "null chosen", "row 1: chosen contains the item None, which is not in the catalogue", item_rows(chosen=None)
    ),
    Attack("null history", "row 1: history is null; give a list of item ids", item_rows(history=None)),
    Attack("null rejected", "row 1: rejected is null; give a list of item ids", item_rows(rejected=None)),
    Attack("null in history", "row 1: history contains the item None, which is not", item_rows(history=["i0", None])),
    Attack("only nulls", "row 0: history is null; give a list", rows({**ITEMS, "history": None})),
    Attack("chosen list", "chosen has the type list<item: string>", rows({**ITEMS, "chosen": ["i1"]})),
    Attack("rejected text", "rejected has the type string; give a list", rows({**ITEMS, "rejected": "i2"})),
    Attack("history text", "history has the type string; give a list", rows({**ITEMS, "history": "i0"})),
    Attack("nested history", "give item ids as strings or whole", rows({**ITEMS, "history": [["i0"]]})),
    Attack("mapping as chosen", "chosen has the type struct", rows({**ITEMS, "chosen": {"id": "i1"}})),
    Attack("mapping as history", "history has the type struct", rows({**ITEMS, "history": {"id": "i0"}})),
    Attack("mappings in history", "give item ids as strings or whole", rows({**ITEMS, "history": [{"id": "i0"}]})),
    Attack("true as chosen", "row 0: chosen contains the item 'true', which is", rows({**ITEMS, "chosen": True})),
    Attack("fraction as chosen", "row 0: chosen contains the item '1.5', which is", rows({**ITEMS, "chosen": 1.5})),
    Attack("bytes as chosen", "chosen has the type binary; give", parquet(chosen=pa.array([b"\xff"])), PARQUET),
    Attack("date as chosen", "row 0: chosen contains", parquet(chosen=pa.array([3], pa.timestamp("s"))), PARQUET),
    Attack("chosen is rejected", "is both chosen and rejected; remove it", rows({**ITEMS, "rejected": ["i1"]})),
    Attack("nothing rejected", "has a rejected completion", rows({**ITEMS, "rejected": []})),
    Attack("no column chosen", "has the columns history, rejected; a table", rows({"history": [], "rejected": []})),
    Attack("another object", "the train dataset has the columns a; it needs", rows({"a": 1})),
    Attack("null user", "row 1: user is null; give the row number of each user", rows({**ITEMS, "user": 0}, ITEMS)),
    Attack("user is a name", "the column user has the type string", rows({**ITEMS, "user": "bob"})),
    Attack("user out of range", "leak: row 0: item", rows({**ITEMS, "user": 10**9})),
    Attack("negative user", "leak: row 0: item", rows({**ITEMS, "user": -1})),
]


def with_real_ids(attack: Attack, ids: list[str]) -> Attack:
    """Returns the attack, changed to write ids of the catalogue in place of i0, i1 and i2."""

    def damage(folder: Path) -> None:
        attack.damage(folder)
        path = folder / "preferences.jsonl"
        if path.is_file():
            text = path.read_bytes()
            for place in range(3):
                text = text.replace(f'"i{place}"'.encode(), json.dumps(ids[place]).encode())
            path.write_bytes(text)

    return Attack(attack.name, attack.says, damage, attack.words)


@pytest.fixture
def clean(world: Path) -> Path:
    """Removes the files that an earlier attack wrote, and returns the folder."""
    for path in [*world.glob("preferences.*"), *world.glob("x.*")]:
        path.rmdir() if path.is_dir() else path.unlink()
    return world


@each([*FILES, *TABLES])
def test_malformed_items_are_refused(attack: Attack, clean: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ids = load(clean / "data").catalog.ids
    words = [*WORDS, "--dataset", "data", "--surface", "semantic_id", *file("preferences.jsonl")]
    assert_refused(with_real_ids(attack, list(ids)), "softmax_dpo", words, clean, capsys)


def said(text: object, role: str = "assistant") -> list[dict[str, object]]:
    """Returns a conversation with one message."""
    return [{"role": role, "content": text}]


CONVERSATION = {"prompt": said("a", "user"), "chosen": said("b"), "rejected": [said("c")]}


def chat_rows(**values: object) -> Callable[[Path], object]:
    """Returns a function that writes one row: the valid conversation, with the given values."""
    return rows({**CONVERSATION, **values})


IN_FRONT = "the train dataset: row "
COMPLETIONS = [
    Attack("null prompt", f"{IN_FRONT}1: prompt is null; give a text", text_rows(prompt=None)),
    Attack("null chosen", f"{IN_FRONT}1: chosen is null; give a text", text_rows(chosen=None)),
    Attack("null rejected", f"{IN_FRONT}1: rejected is null; give a text", text_rows(rejected=None)),
    Attack("null in rejected", f"{IN_FRONT}1: rejected is null; give", text_rows(rejected=[" on", None])),
    Attack("number as prompt", f"{IN_FRONT}0: prompt is 3; give a text", rows({**TEXTS, "prompt": 3})),
    Attack("number as rejected", f"{IN_FRONT}0: rejected is 3; give", rows({**TEXTS, "rejected": [3]})),
    Attack("true as chosen", f"{IN_FRONT}0: chosen is True; give", rows({**TEXTS, "chosen": True})),
    Attack("mapping as prompt", f"{IN_FRONT}0: prompt is {{'a': 1}}", rows({**TEXTS, "prompt": {"a": 1}})),
    Attack("nested rejected", f"{IN_FRONT}0: rejected is [' on']", rows({**TEXTS, "rejected": [[" on"]]})),
    Attack("nothing rejected", "has a rejected completion", rows({**TEXTS, "rejected": []})),
    Attack("no prompt", "has a rejected completion", rows({**TEXTS, "prompt": ""})),
    Attack(
        "no column chosen",
        "the train dataset has the columns prompt, rejected; it",
        rows({"prompt": "a", "rejected": []}),
    ),
    Attack(
        "short CSV row",
        f"{IN_FRONT}0: rejected is null",
        content("prompt,chosen,rejected\na,b\n", "preferences.csv"),
        CSV,
    ),
    Attack(
        "CSV of numbers",
        f"{IN_FRONT}0: prompt is 1",
        content("prompt,chosen,rejected\n1,2,3\n", "preferences.csv"),
        CSV,
    ),
    Attack("text in conversation", "prompt is a list of messages, but chosen is a text", chat_rows(chosen="b")),
    Attack("no content", "row 0: the chat template cannot be applied to the", chat_rows(prompt=[{"role": "user"}])),
    Attack("no messages", "row 0: the chat template cannot be applied to the", chat_rows(prompt=[])),
    Attack("no answer", "row 0: chosen_ids contains an empty list of tokens", chat_rows(chosen=[])),
    Attack("null message", "row 0: prompt is [{", chat_rows(prompt=[*said("a", "user"), None])),
    Attack("broken tools", "row 0: tools is a string that is not JSON", chat_rows(tools="[{")),
    Attack("deep tools", "row 0: tools is a string that is not JSON", chat_rows(tools="[" * 100000)),
    Attack("number as tools", "row 0: tools is 3; give a list", chat_rows(tools=3)),
    Attack("text as options", "row 0: chat_template_kwargs is 'x'; give", chat_rows(chat_template_kwargs="x")),
    Attack("list as options", "row 0: chat_template_kwargs is [1]; give", chat_rows(chat_template_kwargs=[1])),
    Attack("option set twice", "row 0: the chat template cannot", chat_rows(chat_template_kwargs={"tokenize": True})),
    Attack(
        "token beyond the model",
        f"{IN_FRONT}0: rejected_ids contains the token 99999",
        rows({"prompt_ids": [5], "chosen_ids": [6], "rejected_ids": [[99999]]}),
    ),
    Attack(
        "flat token ids",
        "the column rejected_ids has the type list<item: int64>; give",
        rows({"prompt_ids": [5], "chosen_ids": [6], "rejected_ids": [7]}),
    ),
    Attack(
        "null token",
        f"{IN_FRONT}0: prompt_ids contains null",
        rows({"prompt_ids": [5, None], "chosen_ids": [6], "rejected_ids": [[7]]}),
    ),
    Attack(
        "malformed rows to evaluate",
        "the eval dataset: row 1: prompt is null",
        lambda folder: (rows(TEXTS)(folder), rows(TEXTS, {**TEXTS, "prompt": None}, name="x.jsonl")(folder)),
        ["--eval_preferences", "x.jsonl"],
    ),
]


@each(COMPLETIONS)
def test_malformed_completions_are_refused(attack: Attack, clean: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = [*WORDS, "--model_name_or_path", "texts", *file("preferences.jsonl")]
    assert_refused(attack, "softmax_dpo", words, clean, capsys)


TEMPLATES = {
    "syntax": ("{% for", "row 0: the chat template cannot be applied to the messages"),
    "refusal": (
        "{{ raise_exception('roles must alternate') }}",
        r"row 0: .* \(roles must alternate\); correct the row",
    ),
    "arithmetic": ("{{ 1 / 0 }}", "row 0: the chat template cannot be applied to the messages"),
    "missing": (None, "the preferences are conversations, but the tokenizer has no chat template; set"),
}


@pytest.mark.parametrize("name", TEMPLATES)
def test_a_template_that_fails_is_refused(name: str) -> None:
    template, says = TEMPLATES[name]
    tokenizer = deepcopy(TEXT_TOKENIZER)
    tokenizer.chat_template = template
    with pytest.raises(ValueError, match=says):
        tokenize_preferences(Dataset.from_list([CONVERSATION]), tokenizer)


@pytest.mark.parametrize("kind", [pa.list_, pa.large_list, lambda values: pa.list_(values, 1)])
@pytest.mark.parametrize("values", [pa.string(), pa.large_string(), pa.dictionary(pa.int32(), pa.string())])
def test_every_kind_of_list_is_read(
    kind: Callable[[pa.DataType], pa.DataType], values: pa.DataType, tmp_path: Path
) -> None:
    catalog = ItemCatalog(pa.table({"item_id": ["i0", "i1", "i2"], "title": ["A", "B", "C"]}), surface="item_token")
    lists = {name: pa.array([[item]], pa.list_(pa.string())) for name, item in (("history", "i0"), ("rejected", "i2"))}
    parquet(**{name: column.cast(kind(values)) for name, column in lists.items()})(tmp_path)
    made: dict[str, Any] = read_preferences(str(tmp_path / "preferences.parquet"), catalog)[:]
    assert made == {"history": [[0]], "chosen": [1], "rejected": [[2]]}
