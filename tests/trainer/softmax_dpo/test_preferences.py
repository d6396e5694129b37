"""Preferences that are tables of items: their prompts and paths, and the files that are read or refused."""

import json
import logging
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pytest
from datasets import Dataset
from hypothesis import given
from hypothesis import strategies as st

from tests.data.test_rows import FORMATS, NUM_ITEMS, written
from trl_rec.items import ItemCatalog
from trl_rec.ragged import Ragged
from trl_rec.trainer.softmax_dpo.rows import preference_rows, read_preferences


items = st.integers(0, NUM_ITEMS - 1)
rows_of_items = st.lists(
    st.tuples(st.lists(items, max_size=12), items, st.lists(items, max_size=4)), min_size=1, max_size=4
)


def make_table(rows: list[tuple[list[int], int, list[int]]], split: str | None = None) -> Dataset:
    numbers = pa.list_(pa.int32())
    columns = {
        "history": pa.array([row[0] for row in rows], numbers),
        "chosen": pa.array([row[1] for row in rows], pa.int32()),
        "rejected": pa.array([row[2] for row in rows], numbers),
    }
    return Dataset(pa.table(columns), split=split)


@given(rows_of_items, st.sampled_from(sorted(FORMATS)), st.sampled_from([None, 60, 90]))
def test_a_table_becomes_prompts_and_paths(rows: list, surface: str, max_length: int | None) -> None:
    prompt_format = FORMATS[surface]
    rows = [(history, chosen, [item for item in rejected if item != chosen]) for history, chosen, rejected in rows]
    rows.append((list(range(NUM_ITEMS)), 0, [1]))  # long enough to be cut
    made = preference_rows(make_table(rows, "train"), prompt_format, max_length=max_length)
    room = None if max_length is None else max_length - int(prompt_format.paths.lengths.max())
    for row, (history, chosen, rejected) in zip(made, rows, strict=True):
        prompts = [  # with the whole history, then with one more of its oldest items cut each time
            [
                *prompt_format.prompt_head,
                *written(prompt_format, history[cut:]),
                *prompt_format.prompt_tail,
            ]
            for cut in range(len(history) + 1)
        ]
        assert row["prompt_ids"] == next(prompt for prompt in prompts if room is None or len(prompt) <= room)
        assert row["chosen_ids"] == prompt_format.paths[chosen].tolist()
        assert row["rejected_ids"] == [prompt_format.paths[item].tolist() for item in dict.fromkeys(rejected)]


def test_a_selection_of_rows_is_respected() -> None:
    table = make_table([([0], 1, [2]), ([3, 4], 5, [6, 7]), ([], 8, [])])
    whole = preference_rows(table, FORMATS["semantic_id"])
    assert preference_rows(table.select([2, 0]), FORMATS["semantic_id"])[:] == whole.select([2, 0])[:]


def test_a_table_whose_lists_are_all_empty_is_accepted() -> None:
    made = preference_rows(Dataset.from_dict({"history": [[]], "chosen": [1], "rejected": [[]]}), FORMATS["title"])
    assert made[0]["rejected_ids"] == [] and made[0]["prompt_ids"] == [
        *FORMATS["title"].prompt_head,
        *FORMATS["title"].prompt_tail,
    ]


@pytest.mark.parametrize("split", ["validation", "test"])
def test_only_training_rows_may_be_learned_from(split: str) -> None:
    table = make_table([([0], 1, [2])], split)
    with pytest.raises(ValueError, match=f"preferences must use only the training split, not the {split} split"):
        preference_rows(table, FORMATS["item_token"])
    assert len(preference_rows(table, FORMATS["item_token"], training=False)) == 1


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (([0], 2, [1, 2]), "row 1: item 2 is both chosen and rejected; remove it"),
        (
            ([0], NUM_ITEMS, [1]),
            f"row 1: chosen contains the item {NUM_ITEMS}, but item indices are 0 to {NUM_ITEMS - 1}",
        ),
        (([0], -1, [1]), "row 1: chosen contains the item -1"),
        (([0, -1], 2, [1]), "row 1: history contains the item -1"),
        (([0], 2, [1, NUM_ITEMS]), f"row 1: rejected contains the item {NUM_ITEMS}"),
    ],
)
def test_wrong_items_are_refused(row: tuple, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        preference_rows(make_table([([0], 1, [2]), row]), FORMATS["item_token"])


@pytest.mark.parametrize("name", ["history", "chosen", "rejected"])
@pytest.mark.parametrize(("item", "told"), [(None, "null"), (1.5, "1.5"), (float("inf"), "inf")])
def test_items_that_are_not_whole_numbers_are_refused(name: str, item: float | None, told: str) -> None:
    right = {"history": [[0], [3]], "chosen": [1, 4], "rejected": [[2], [5]]}
    wrong = {**right, name: [right[name][0], item if name == "chosen" else [item]]}
    with pytest.raises(
        ValueError, match=f"row 1: {name} contains the item {told}, but item indices are 0 to {NUM_ITEMS - 1}"
    ):
        preference_rows(Dataset.from_dict(wrong), FORMATS["item_token"])
    floats = {**right, name: [4.0, 4.0] if name == "chosen" else [[6.0], [6.0]]}  # pandas may write items as floats
    whole = {**right, name: [4, 4] if name == "chosen" else [[6], [6]]}
    made = (preference_rows(Dataset.from_dict(table), FORMATS["item_token"])[:] for table in (floats, whole))
    assert next(made) == next(made)


def test_rejected_items_with_the_same_path_count_once(caplog: pytest.LogCaptureFixture) -> None:
    """Items 0, 1 and 4 have the same path, and so do 2 and 5. The path of 3 begins with that of 2."""
    paths = Ragged.from_lists([[7, 1], [7, 1], [7, 2], [7, 2, 1], [7, 1], [7, 2]])
    prompt_format = replace(FORMATS["item_token"], pieces=paths, paths=paths)
    table = make_table([([], 0, [1, 2, 3, 5]), ([], 2, [4, 4, 0, 3]), ([], 3, [2]), ([], 2, [5])])
    with caplog.at_level(logging.WARNING, "trl_rec"):
        made = preference_rows(table, prompt_format)
    assert made["rejected_ids"][:] == [[[7, 2], [7, 2, 1]], [[7, 1], [7, 2, 1]], [[7, 2]], []]
    assert caplog.messages == [
        "dropped 5 of 10 rejected items, because they have the same text as the chosen item or an earlier rejected "
        "item of their row"
    ]


@pytest.fixture
def catalog() -> ItemCatalog:
    return ItemCatalog(pa.table({"item_id": ["x", "y", "z"], "title": ["X", "Y", "Z"]}), surface="item_token")


def test_a_file_names_items_by_their_ids(catalog: ItemCatalog, tmp_path: Path) -> None:
    path = tmp_path / "preferences.jsonl"
    rows = [
        {"history": ["x"], "chosen": "z", "rejected": ["y"]},
        {"history": [], "chosen": "x", "rejected": ["y", "z"]},
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    table = read_preferences(str(path), catalog)
    assert table[:] == {"history": [[0], []], "chosen": [2, 0], "rejected": [[1], [1, 2]]}
    path.write_text(json.dumps({"history": ["x"], "chosen": "w", "rejected": ["y"]}) + "\n")
    with pytest.raises(
        ValueError, match="row 0: chosen contains the item 'w', which is not in the catalogue of 3 items"
    ):
        read_preferences(str(path), catalog)


def test_a_file_of_texts_is_read_as_it_is(catalog: ItemCatalog, tmp_path: Path) -> None:
    rows = Dataset.from_dict({"prompt": ["a"], "chosen": ["b"], "rejected": [["c", "d"]]})
    rows.to_parquet(tmp_path / "texts.parquet")
    assert read_preferences(str(tmp_path / "texts.parquet"))[:] == rows[:]
    assert read_preferences(str(tmp_path / "texts.parquet"), catalog)[:] == rows[:]
    with pytest.raises(ValueError, match="there is no file .*nothing.jsonl"):
        read_preferences(str(tmp_path / "nothing.jsonl"))


def test_a_table_keeps_its_users_and_cannot_be_csv(catalog: ItemCatalog, tmp_path: Path) -> None:
    path = tmp_path / "preferences.jsonl"
    path.write_text(json.dumps({"user": 3, "history": ["x"], "chosen": "z", "rejected": ["y"]}) + "\n")
    assert read_preferences(str(path), catalog)[:] == {"user": [3], "history": [[0]], "chosen": [2], "rejected": [[1]]}
    path = tmp_path / "preferences.csv"
    path.write_text("history,chosen,rejected\nx,z,y\n")
    with pytest.raises(
        ValueError,
        match="preferences.csv has the column 'history', but a CSV file cannot contain lists of items; give a JSONL",
    ):
        read_preferences(str(path), catalog)


@pytest.mark.parametrize("left_out", ["chosen", "rejected"])
def test_a_table_without_a_column_is_refused(catalog: ItemCatalog, tmp_path: Path, left_out: str) -> None:
    row = {"history": ["x"], "chosen": "z", "rejected": ["y"]}
    row.pop(left_out)
    (tmp_path / "items.jsonl").write_text(json.dumps(row) + "\n")
    message = f"items.jsonl has the columns {', '.join(row)}; a table of items needs history, chosen and rejected"
    with pytest.raises(ValueError, match=message):
        read_preferences(str(tmp_path / "items.jsonl"), catalog)


@pytest.mark.parametrize(
    ("name", "text", "reason"),
    [
        ("empty.jsonl", "", "it is empty"),
        ("blank.jsonl", "\n\n", ".*no data"),
        ("broken.jsonl", '{"prompt": "a"}\n{"prompt":\n', "JSON parse error"),
        ("scalar.jsonl", "3\n", "(JSON parse error|'int' object)"),
        ("empty.json", "[]", ".*no data"),
        ("empty.csv", "", "No columns to parse"),
        ("header.csv", "prompt,chosen,rejected\n", ".*no data"),
        ("empty.parquet", "", "Parquet file size is 0 bytes"),
    ],
)
def test_a_file_that_cannot_be_read_is_named_in_the_message(tmp_path: Path, name: str, text: str, reason: str) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(ValueError, match=rf"{name} cannot be read as \w+ preferences \({reason}.*\); correct"):
        read_preferences(str(tmp_path / name))
