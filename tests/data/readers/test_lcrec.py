"""Tests the reader of LC-Rec's files."""

import json

import pytest

from tests.data.sources import rows_of
from trl_rec.data import prepare


INTER = {"u": [0, 2, 1, 3], "v": [1], "w": [3, 0, 1]}
ITEM = {
    "0": {"title": "Soap", "brand": "A", "categories": ["Bath", "Gift"]},
    "1": {"title": "", "brand": None, "categories": []},
    "2": {"title": "Brush\nset", "brand": "B", "categories": ["Hair"]},
    "3": {"title": "Comb", "brand": "B", "categories": ["Hair"]},
}
INDEX = {"0": ["<a_1>", "<b_2>"], "1": ["<a_1>", "<b_3>"], "2": ["<a_2>"], "3": ["<a_3>", "<b_1>", "<c_0>"]}


def write(folder, **files):
    folder.mkdir()
    for part, content in ({"inter": INTER, "item": ITEM} | files).items():
        if content is not None:
            (folder / f"X.{part}.json").write_text(json.dumps(content) if not isinstance(content, str) else content)
    return folder


def test_the_files_are_read(tmp_path):
    dataset = prepare(write(tmp_path / "source", index=INDEX), tmp_path / "out", group_column="categories")
    assert rows_of(dataset, "test") == {"u": (["0", "2", "1"], ["3"]), "w": (["3", "0"], ["1"])}
    assert rows_of(dataset, "train")["v"] == (["1"], [])
    assert dataset.test["timestamp"][:] == [3, 2]
    assert dataset.catalog.titles == ["Soap", "item 1", "Brush set", "Comb"]
    assert dataset.catalog.items["brand"].to_pylist() == ["A", None, "B", "B"]
    assert dataset.catalog.with_surface("semantic_id").surfaces == [
        "<a_1><b_2>",
        "<a_1><b_3>",
        "<a_2>",
        "<a_3><b_1><c_0>",
    ]
    assert dataset.catalog.group_shares()[0] == ["Bath", "Gift", "Hair"]
    assert dataset.card["notes"] == [
        "the source has no timestamps; the positions in each user's list are used instead",
        'number of items whose empty title was replaced by "item" and the id: 1',
    ]


def test_items_without_a_value_in_the_group_column_are_in_no_group(tmp_path):
    catalog = prepare(write(tmp_path / "source"), tmp_path / "out", group_column="brand").catalog
    assert catalog.group_shares()[0] == ["A", "B"] and catalog.group_shares()[1].sum(1).tolist() == [1, 0, 1, 1]


def test_missing_and_empty_groups_are_ignored(tmp_path):
    items = ITEM | {"2": {"title": None, "item_id": "9"}, "3": {"title": "Comb", "categories": [None, " ", "Hair "]}}
    catalog = prepare(write(tmp_path / "source", item=items), tmp_path / "out", group_column="categories").catalog
    assert catalog.titles[2] == "item 2" and catalog.ids == list("0123")
    assert catalog.group_shares()[0] == ["Bath", "Gift", "Hair"]
    assert catalog.group_shares()[1].tolist() == [[0.5, 0.5, 0], [0, 0, 0], [0, 0, 0], [0, 0, 1]]


def test_semantic_ids_stay_with_their_items_after_filtering(tmp_path):
    dataset = prepare(
        write(tmp_path / "source", index=INDEX), tmp_path / "out", min_item_interactions=2, min_user_interactions=3
    )
    assert dataset.catalog.ids == ["0", "1", "3"]
    assert dataset.catalog.with_surface("semantic_id").surfaces == ["<a_1><b_2>", "<a_1><b_3>", "<a_3><b_1><c_0>"]


def test_without_an_item_file_titles_are_ids(tmp_path):
    dataset = prepare(write(tmp_path / "source", item=None), tmp_path / "out")
    assert dataset.catalog.titles == ["0", "2", "1", "3"] and dataset.catalog.semantic_ids is None


@pytest.mark.parametrize(
    ("files", "arguments", "message"),
    [
        ({}, {"split": "time"}, "the source has no timestamps to split by; set split to leave_one_out or leave_last"),
        ({"inter": {"u": [0, 9]}}, {}, "X.inter.json, row 2: item '9' is not in X.item.json"),
        ({"inter": {"u": 3}}, {}, "X.inter.json: the items of user 'u' must be a list, not 3"),
        ({"inter": {}}, {}, "X.inter.json contains no rows"),
        ({"inter": "{oops"}, {}, "X.inter.json is not JSON .line 1"),
        ({"item": {"0": {"name": "x"}}}, {}, "X.item.json: item '0' has no title; add one"),
        ({"index": {"0": ["<a_1>"]}}, {}, "X.index.json contains no tokens for item '1'"),
        (
            {"index": INDEX | {"2": "<a_2>"}},
            {},
            "X.index.json: the tokens of item '2' must be a list of strings, not '<a_2>'; correct",
        ),
        (
            {"index": INDEX | {"2": [2, 1]}},
            {},
            r"X.index.json: the tokens of item '2' must be a list of strings, not \[2, 1\]",
        ),
        (
            {"index": INDEX | {"2": ["<a_2>", None]}},
            {},
            "X.index.json: the tokens of item '2' must be a list of strings",
        ),
        ({"index": INDEX | {"2": 7}}, {}, "X.index.json: the tokens of item '2' must be a list of strings, not 7"),
        ({"index": INDEX | {"2": None}}, {}, "X.index.json contains no tokens for item '2'"),
        (
            {"item": ITEM | {"2": None}},
            {},
            "X.item.json: item '2' must be an object with fields, not None; correct the file",
        ),
        (
            {"item": ITEM | {"2": ["Brush"]}},
            {},
            r"X.item.json: item '2' must be an object with fields, not \['Brush'\]",
        ),
        ({"inter": {"u": [0, None]}, "item": None}, {}, "X.inter.json, row 2: the item_id is empty"),
        ({"item": None, "index": INDEX}, {}, "X.index.json needs an item file in the same folder"),
        (
            {},
            {"group_column": "colour"},
            "the items have no column 'colour' to group by .X.item.json has only item_id, title, brand",
        ),
    ],
)
def test_bad_files_are_refused(tmp_path, files, arguments, message):
    source = write(tmp_path / "source", **files)
    with pytest.raises(ValueError, match=message):
        prepare(source, tmp_path / "out", **arguments)
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


def test_the_beauty_data_is_read(tmp_path, shared_data):
    dataset = prepare(shared_data("beauty"), tmp_path / "out")
    card = dataset.card
    assert (card["num_users"], card["num_items"], card["num_interactions"]) == (22_363, 12_101, 198_502)
    assert card["rows"] == {"train": 22_363, "validation": 22_363, "test": 22_363} and card["tied_timestamps"] == 0
    assert dataset.catalog.semantic_ids.lengths.tolist() == [4] * 12_101
    source = json.loads((shared_data("beauty") / "Beauty.inter.json").read_text())
    expected = {user: (list(map(str, items[:-1])), [str(items[-1])]) for user, items in source.items()}
    same = rows_of(dataset, "test") == expected
    assert same  # if the comparison were in this line, pytest would print thousands of rows on failure
