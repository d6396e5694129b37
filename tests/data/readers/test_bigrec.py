"""Tests the reader of BIGRec's files, whose rows are windows: a part of a user's history and one target."""

import csv
import json

import numpy as np
import pytest

from trl_rec.data import prepare


NAMES = {"1": "Pens &amp; Paper", "2": " Two\nlines ", "3": "Pens &amp; Paper", "4": "Four", "5": "Five", "6": "Six"}
TRAIN = [("u", [1, 2], 1), ("u", [1, 2, 3], 2), ("v", [3, 1], 3), ("v", [3, 1, 4], 5), ("w", [2, 4], 5)]
TEST = [("u", [2, 3, 5], 7), ("x", [4, 6], 8)]


def write(folder, names=NAMES, **splits):
    folder.mkdir()
    for split, rows in ({"train": TRAIN, "test": TEST} | splits).items():
        with (folder / f"{split}.csv").open("w", newline="") as file:
            csv.writer(file).writerows(
                [("", "user_id", "item_ids", "timestamp"), *((i, *row) for i, row in enumerate(rows))]
            )
    (folder / "id2name.json").write_text(json.dumps({"9": "not this one"}))
    (folder / "id2name4Rec.json").write_text(json.dumps(names))
    return folder


def rows_of(dataset, split):
    users, items = dataset.users["user_id"].to_pylist(), dataset.catalog.ids
    return [
        (users[row["user"]], [int(items[item]) for item in row["history"] + row["targets"]], row["timestamp"])
        for row in getattr(dataset, split).to_list()
    ]


def test_windows_are_read_as_rows(tmp_path):
    dataset = prepare(write(tmp_path / "source"), tmp_path / "out")
    assert rows_of(dataset, "train") == TRAIN[:3]
    assert rows_of(dataset, "validation") == TRAIN[3:]  # two rows have time 5, and stay together
    assert rows_of(dataset, "test") == TEST
    assert dataset.test[0]["history_ratings"] == dataset.test[0]["target_ratings"] == []
    assert all(len(row["targets"]) == 1 for row in dataset.train)
    assert dataset.catalog.titles == ["Pens & Paper", "Two lines", "Pens & Paper", "Four", "Five", "Six"]
    card = dataset.card
    assert card["split"] == "windows" and card["notes"] == [
        "the source has no validation file; the last 2 of its 5 training rows by time are the validation split"
    ]
    assert card["cold_users"] == {"validation": 1, "test": 1} and card["cold_targets"] == {"validation": 2, "test": 2}


def test_interactions_are_the_first_window_of_each_user_and_then_the_targets(tmp_path):
    dataset = prepare(write(tmp_path / "source"), tmp_path / "out")
    ids, users = np.array(dataset.catalog.ids), dataset.users["user_id"].to_pylist()
    table = dataset.interactions.to_pydict()
    found = list(zip([users[user] for user in table["user"]], ids[table["item"]], table["timestamp"], strict=True))
    assert found == [
        *[("u", "1", 1), ("u", "2", 1), ("u", "3", 2), ("u", "5", 7)],
        *[("v", "3", 3), ("v", "1", 3), ("v", "4", 5), ("w", "2", 5), ("w", "4", 5), ("x", "4", 8), ("x", "6", 8)],
    ]
    assert dataset.card["num_interactions"] == 11


def test_a_validation_file_may_share_a_time_with_training(tmp_path):
    dataset = prepare(write(tmp_path / "source", valid=[("w", [2, 4, 1], 5), ("v", [1, 4, 2], 7)]), tmp_path / "out")
    assert rows_of(dataset, "train") == TRAIN and rows_of(dataset, "validation") == [
        ("v", [1, 4, 2], 7),
        ("w", [2, 4, 1], 5),
    ]
    assert dataset.card["notes"] == []


def test_rows_out_of_order_and_quoted_ids_are_read(tmp_path):
    shuffled = [TRAIN[4], TRAIN[2], TRAIN[1], ("v", "['3', '1', '4']", 5), TRAIN[0]]
    dataset = prepare(write(tmp_path / "source", train=shuffled), tmp_path / "out")
    assert rows_of(dataset, "train") == TRAIN[:3] and rows_of(dataset, "validation") == TRAIN[3:]


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"train": [*TRAIN[:2], ("u", [7, 1], 0)]}, "train.csv, row 3: item '7' is not in id2name4Rec.json"),
        ({"test": [("u", [2, 3], 7), ("u", [5], 7)]}, r"test.csv, row 2: '\[5\]' has fewer than two ids"),
        ({"test": [("u", [2, 3], "x")]}, "test.csv, row 1: the timestamp 'x' is neither a number"),
        ({"test": [("", [2, 3], 7)]}, "test.csv, row 1: the user_id is empty"),
        ({"test": []}, "test.csv contains no rows"),
        (
            {"train": [(*row[:2], 1) for row in TRAIN]},
            "train.csv: the last tenth cannot be held out, because too many rows have the same timestamp",
        ),
        ({"names": NAMES | {"2": ""}}, "id2name4Rec.json, row 2: item '2' has an empty title"),
        ({"names": ["a"]}, "id2name4Rec.json contains a JSON list where a dict is expected"),
    ],
)
def test_bad_files_are_refused(tmp_path, files, message):
    source = write(tmp_path / "source", **files)
    with pytest.raises(ValueError, match=message):
        prepare(source, tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


@pytest.mark.parametrize("arguments", [{"split": "leave_one_out"}, {"min_item_interactions": 2}])
def test_windows_are_neither_split_nor_filtered(tmp_path, arguments):
    with pytest.raises(ValueError, match="bigrec data is already filtered and split by its source"):
        prepare(write(tmp_path / "source"), tmp_path / "out", **arguments)


def test_the_office_data_is_read(tmp_path, shared_data):
    dataset = prepare(shared_data("office"), tmp_path / "out")
    rows = dataset.card["rows"]
    assert rows["train"] + rows["validation"] == 15_400 and rows["test"] == 1_925 and rows["validation"] >= 1_540
    assert len(dataset.catalog) == 2_414 and len(set(dataset.catalog.titles)) == 2_411
    assert max(dataset.train["timestamp"][:]) < min(dataset.validation["timestamp"][:])
    seen = {
        item
        for split in (dataset.train, dataset.validation)
        for row in split
        for item in row["history"] + row["targets"]
    }
    assert sum(row["targets"][0] not in seen for row in dataset.test) == 896
    with (shared_data("office") / "test.csv").open() as file:
        source = [
            (row["user_id"], json.loads(row["item_ids"]), float(row["timestamp"])) for row in csv.DictReader(file)
        ]
    same = sorted(rows_of(dataset, "test"), key=str) == sorted(source, key=str)
    assert same  # if the comparison were in this line, pytest would print thousands of rows on failure
