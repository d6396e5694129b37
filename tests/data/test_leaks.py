"""Tests that clean splits pass, and that splits with a leak, such as a test item in a training row, are refused."""

from functools import partial

import numpy as np
import pyarrow as pa
import pytest
from datasets import Dataset, NamedSplit, concatenate_datasets

from tests.data.readers.test_bigrec import write as write_bigrec
from tests.data.sources import write_table
from trl_rec.data import load, prepare
from trl_rec.data.dataset import check_is_train, split_rows
from trl_rec.data.leaks import check_leaks, find_mixed_users
from trl_rec.data.preparation import steps as module
from trl_rec.data.train_interactions import TrainInteractions


def make(name, rows):
    """Returns a split of `(user, history, targets, timestamp)` rows."""
    lists, empty = pa.list_(pa.int32()), pa.array([[]] * len(rows), pa.list_(pa.float32()))
    user, history, targets, timestamp = ([row[column] for row in rows] for column in range(4))
    columns = {
        "user": pa.array(user, pa.int32()),
        "history": pa.array(history, lists),
        "history_ratings": empty,
        "targets": pa.array(targets, lists),
        "target_ratings": empty,
        "timestamp": pa.array(timestamp, pa.float64()),
    }
    return Dataset(pa.table(columns), split=NamedSplit(name))


CLEAN = {
    "leave_one_out": {
        "train": [(0, [1], [2, 3], 2.0), (1, [5], [], 1.0), (2, [4], [4], 9.0), (3, [6], [], 3.0)],
        "validation": [(0, [1, 2, 3], [4], 4.0), (2, [4, 4], [4], 9.0), (3, [6], [2], 3.0)],
        "test": [(0, [1, 2, 3, 4], [5], 5.0), (2, [4, 4, 4], [1], 9.0), (3, [6, 2], [1], 3.0)],
    },
    "leave_last": {
        "train": [(0, [1], [2, 3], 2.0), (1, [5], [], 1.0), (2, [4], [4], 9.0)],
        "validation": [(0, [1, 2, 3], [4, 6], 4.0), (2, [4, 4], [4, 2], 9.0)],
        "test": [(0, [1, 2, 3, 4, 6], [5, 2], 5.0), (2, [4, 4, 4, 2], [1, 3], 9.0)],
    },
    "time": {
        "train": [(0, [1], [2, 3], 2.0), (1, [5], [], 1.0), (2, [4], [4, 2], 3.0)],
        "validation": [(0, [1, 2, 3], [4, 6], 5.0)],
        "test": [(0, [1, 2, 3, 4, 6], [5, 2], 7.0), (2, [4, 4, 2], [3], 8.0), (4, [1], [3], 8.0)],
    },
    # Item 1 is the target of a test row of user 1, although a training row of this user contains it. This is allowed,
    # because the history of the test row also contains it.
    "windows": {
        "train": [(0, [1, 2], [3], 1.0), (0, [2, 3], [4], 2.0), (1, [5, 6], [1], 5.0)],
        "validation": [(0, [3, 4], [5], 5.0), (2, [4, 2], [6], 6.0)],
        "test": [(0, [4, 5], [6], 6.0), (1, [1, 7], [2], 8.0), (1, [7, 2, 1], [1], 9.0), (3, [1], [2], 7.0)],
    },
}


def refused(rule, message, **splits):
    rows = {name: make(name, splits.get(name, CLEAN[rule][name])) for name in CLEAN[rule]}
    with pytest.raises(ValueError, match=f"leak: {message}"):
        check_leaks(**rows, split=rule)


@pytest.mark.parametrize("rule", CLEAN)
def test_clean_splits_pass(rule):
    check_leaks(**{name: make(name, rows) for name, rows in CLEAN[rule].items()}, split=rule)


@pytest.mark.parametrize("rule", ["leave_one_out", "leave_last", "time"])
@pytest.mark.parametrize(
    "row",
    [
        (0, [1], [2, 3, 5], 2.0),  # the test target appended
        (0, [1], [2, 3, 4], 2.0),  # the validation target appended
        (0, [5, 1], [2, 3], 2.0),  # the test target in the history
        (0, [1], [2, 5], 2.0),  # the test target in place of a training target
        (0, [1, 2, 3], [4], 4.0),  # the validation row in place of the training row
        (0, [1], [2], 2.0),  # a missing item
        (0, [1], [3, 2], 2.0),  # the targets in another order
        (0, [1], [2, 3], 5.5),  # a time after validation
    ],
)
def test_a_training_row_that_the_validation_row_does_not_continue_is_refused(rule, row):
    message = "the validation row of user 0 does not continue the train row|train row 0 .time 5.5. is not before"
    refused(rule, message, train=[row, *CLEAN[rule]["train"][1:]])


@pytest.mark.parametrize("rule", ["leave_one_out", "leave_last", "time"])
def test_a_held_out_row_copied_into_train_is_refused(rule):
    for name in ("validation", "test"):
        row = CLEAN[rule][name][0]
        refused(rule, "the train split has more than one row of user 0", train=[*CLEAN[rule]["train"], row])


def test_the_user_of_the_leak_is_named():
    clean = CLEAN["leave_one_out"]["train"]
    refused(
        "leave_one_out",
        "the validation row of user 2 does not continue the train row",
        train=[*clean[:2], (2, [4], [1], 9.0), clean[3]],
    )


def test_a_validation_row_with_the_test_target_is_refused():
    rows = [(0, [1, 2, 3], [5], 4.0), *CLEAN["leave_one_out"]["validation"][1:]]
    refused("leave_one_out", "the test row of user 0 does not continue the validation row", validation=rows)
    refused(
        "time",
        "the test row of user 0 does not continue the validation row",
        validation=[(0, [1, 2, 3], [4, 6, 5], 5.0)],
    )


def test_a_test_history_without_the_validation_row_is_refused():
    refused(
        "time",
        "the test row of user 2 does not continue the train row",
        test=[*CLEAN["time"]["test"][:1], (2, [4, 4], [3], 8.0)],
    )
    rows = [(0, [1, 2, 3], [5], 5.0), *CLEAN["leave_one_out"]["test"][1:]]
    refused("leave_one_out", "the test row of user 0 does not continue the validation row", test=rows)


def test_leave_one_out_rows_are_paired_and_have_one_target():
    clean = CLEAN["leave_one_out"]
    refused("leave_one_out", "user 3 has a validation row but none in the test split", test=clean["test"][:2])
    refused(
        "leave_one_out", "user 3 has a test row but none in the validation split", validation=clean["validation"][:2]
    )
    refused("leave_one_out", "user 3 has a validation row but none in the train split", train=clean["train"][:3])
    refused(
        "leave_one_out",
        "test row 1 must have exactly one",
        test=[clean["test"][0], (2, [4] * 3, [1, 2], 9.0), clean["test"][2]],
    )


def test_leave_last_rows_are_paired_and_have_the_same_number_of_targets():
    clean = CLEAN["leave_last"]
    refused("leave_last", "user 2 has a validation row but none in the test split", test=clean["test"][:1])
    refused("leave_last", "user 2 has a validation row but none in the train split", train=clean["train"][:2])
    few = [clean["test"][0], (2, [4, 4, 4, 2], [1], 9.0)]
    refused("leave_last", "test row 1 must have exactly 2 targets, like the other rows", test=few)
    moved = [(0, [1, 2, 3], [4], 4.0), *clean["validation"][1:]]
    refused("leave_last", "validation row 0 must have exactly 2 targets", validation=moved)


def test_rows_of_the_time_split_in_another_period_are_refused():
    clean = CLEAN["time"]
    refused(
        "time", "train row 3 .time 5. is not before the first validation", train=[*clean["train"], (9, [1], [2], 5.0)]
    )
    refused(
        "time",
        "validation row 1 .time 7. is not before the first test",
        validation=[*clean["validation"], (9, [1], [2], 7.0)],
    )


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (
            (0, [3, 4], [5], 5.0),
            "the target of validation row 0 already occurs in an earlier",
        ),  # a copied validation row
        (
            (0, [3, 4], [5], 1.0),
            "the target of validation row 0 already occurs in an earlier",
        ),  # the same copy with an early time
        ((7, [3, 4], [5], 5.5), "train row 0 .time 5.5. is not before the first validation row .time 5."),
        # A copied test row with an early time. Its history contains the validation target.
        ((0, [4, 5], [6], 2.0), "the target of validation row 0"),
        (
            (0, [1, 2], [6], 1.0),
            "the target of test row 0 already occurs in an earlier",
        ),  # a test target in place of a training target
        ((1, [2, 6], [1], 5.0), "the target of test row 1 already occurs in an earlier"),  # a test target in a history
    ],
)
def test_training_windows_with_later_targets_are_refused(row, message):
    refused("windows", message, train=[row, *CLEAN["windows"]["train"]])


def test_a_test_row_copied_into_validation_is_refused():
    refused("windows", "the target of test row 0", validation=[(0, [4, 5], [6], 6.0), *CLEAN["windows"]["validation"]])
    refused("windows", "validation row 0 .time 6.5. is not before", validation=[(8, [4, 5], [6], 6.5)])


MIXED_USERS = {
    "leave_one_out": [0, 2, 3],
    "leave_last": [0, 2],
    "time": [0, 2],
}  # users with a training row and a held-out row


@pytest.mark.parametrize("rule", MIXED_USERS)
def test_rows_of_several_splits_are_detected_without_a_split_name(rule):
    train, validation, test = (make(name, rows) for name, rows in CLEAN[rule].items())
    for parts in ([train, test], [test, train], [train, validation, test]):
        mixed = concatenate_datasets(parts)
        assert mixed.split is None and found(mixed) == MIXED_USERS[rule]
        for use in (partial(check_is_train, what="models"), TrainInteractions.from_split):
            with pytest.raises(ValueError, match="one row of user 0 continues another row of this user"):
                use(mixed)
    assert found(concatenate_datasets([train])) == found(train) == []
    check_is_train(concatenate_datasets([train.select([2, 0]), train.select([1])]), "models")


def test_rows_of_one_split_pass_without_a_split_name():
    clean = make("train", CLEAN["windows"]["train"])
    for rows in (clean, clean.select([0]), clean.select([])):
        check_is_train(concatenate_datasets([rows, rows]), "models")
    sessions = make(
        "train", [(0, [1], [2, 3], 1.0), (0, [1], [2, 4], 2.0), (0, [], [5, 6], 3.0), (1, [1, 2, 3], [4], 4.0)]
    )
    check_is_train(concatenate_datasets([sessions, sessions.select([])]), "models")
    growing = make("train", [(0, [1], [2], 1.0), (0, [1, 2], [3], 2.0)])
    check_is_train(concatenate_datasets([growing, growing.select([])]), "models")
    other = make("train", [(0, [1], [2, 3], 1.0), (0, [1, 2, 4, 5], [6], 2.0)])
    check_is_train(concatenate_datasets([other, other.select([])]), "models")
    nothing = make("train", [(0, [], [], 0.0), (0, [1], [2, 3], 1.0)])
    check_is_train(concatenate_datasets([nothing, nothing.select([])]), "models")


@pytest.mark.parametrize("name", ["validation", "test", "test[:50%]", "train[:50%]"])
def test_splits_with_another_name_are_refused(name):
    rows = make("train", CLEAN["time"]["train"])
    check_is_train(rows, "models")
    with pytest.raises(ValueError, match="models must use only the training split, not the .* split"):
        check_is_train(Dataset(rows.data, split=NamedSplit(name)), "models")


def found(rows):
    return find_mixed_users(np.array(rows["user"]), split_rows(rows, "history"), split_rows(rows, "targets")).tolist()


def plant(rows, **changes):
    """Returns the split with other values in its first row."""
    table = rows.data.table
    for name, value in changes.items():
        column = pa.array([value, *table[name].to_pylist()[1:]], table.schema.field(name).type)
        table = table.set_column(table.column_names.index(name), name, column)
    return Dataset(table, split=rows.split)


def test_load_refuses_a_leak_on_disk(tmp_path):
    dataset = prepare(write_table(tmp_path / "source"), tmp_path / "out")
    targets = dataset.train[0]["targets"] + dataset.test[0]["targets"]
    leaking = plant(
        Dataset(pa.table(dataset.train.data.table.to_pydict(), dataset.train.data.table.schema), split="train"),
        targets=targets,
    )
    leaking.save_to_disk(str(tmp_path / "leaking"))
    for file in (tmp_path / "leaking").iterdir():
        file.replace(tmp_path / "out" / "train" / file.name)
    with pytest.raises(ValueError, match="leak: the validation row of user 0 does not continue"):
        load(tmp_path / "out")


def test_prepare_refuses_a_leak_before_writing(tmp_path, monkeypatch):
    split_log = module.split_log

    def leak(*arguments):
        tables, cold = split_log(*arguments)
        return tables | {"train": tables["test"]}, cold

    monkeypatch.setattr(module, "split_log", leak)
    with pytest.raises(ValueError, match="leak: "):
        prepare(write_table(tmp_path / "source"), tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


def test_a_source_with_overlapping_windows_is_refused(tmp_path):
    source = write_bigrec(tmp_path / "source", test=[("u", [2, 3], 7)])  # training rows of u contain item 3
    with pytest.raises(ValueError, match="leak: the target of test row 0 .* prepare a table of interactions instead"):
        prepare(source, tmp_path / "out")
    source = write_bigrec(tmp_path / "late", test=[("u", [2, 5], 4)])
    with pytest.raises(ValueError, match="leak: validation row . .time 5. is not before the first test row .time 4."):
        prepare(source, tmp_path / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["late", "source"]
