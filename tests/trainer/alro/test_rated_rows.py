"""Tests rows of rated lists. Such a row contains a user's history, and candidates with the user's ratings of them. The
tests compare rows that are built from random logs with the results of slow loops, and check which inputs are
refused."""

import numpy as np
import pyarrow as pa
import pytest
from datasets import Dataset
from hypothesis import given
from hypothesis import strategies as st

from tests.oracles.rated import held_out_lists, training_lists
from trl_rec import prepare
from trl_rec.trainer import build_rated_rows, held_out_rows, rating_values


@st.composite
def splits(draw: st.DrawFn, name: str = "train") -> Dataset:
    """Draws users with few different items, so that items repeat, and with few different ratings, so that some lists
    have only equal ratings."""
    rows = []
    for user in range(draw(st.integers(1, 4))):
        items = draw(st.lists(st.integers(0, 9), min_size=1, max_size=14))
        ratings = draw(st.lists(st.sampled_from([1.0, 2.5, 5.0]), min_size=len(items), max_size=len(items)))
        cut = draw(st.integers(1, len(items)))
        texts = {"history": items[:cut], "targets": items[cut:]}
        rows.append({"user": user, **texts, "history_ratings": ratings[:cut], "target_ratings": ratings[cut:]})
    columns = {"user": pa.array([row["user"] for row in rows], pa.int32())}
    for column, kind in (
        ("history", pa.int64()),
        ("targets", pa.int64()),
        ("history_ratings", None),
        ("target_ratings", None),
    ):
        columns[column] = pa.array([row[column] for row in rows], pa.list_(kind or pa.float32()))
    return Dataset(pa.table(columns), split=name)


def as_tuples(rows: Dataset) -> list[tuple]:
    names = ("user", "history", "history_ratings", "candidates", "ratings", "row")
    return [tuple(row[name] for name in names) for row in rows.to_list()]


@given(split=splits(), most=st.integers(2, 5), stride=st.integers(1, 6), history=st.none() | st.integers(1, 4))
def test_training_rows_equal_a_loop(split: Dataset, most: int, stride: int, history: int | None) -> None:
    expected = training_lists(split.to_list(), most, stride, history)
    if not expected:
        with pytest.raises(ValueError, match="no list with two different ratings"):
            build_rated_rows(split, num_candidates=most, stride=stride, max_history=history)
        return
    rows = build_rated_rows(split, num_candidates=most, stride=stride, max_history=history)
    assert as_tuples(rows) == expected
    for row in rows.to_list():
        whole = next(one for one in split.to_list() if one["user"] == row["user"])
        sequence = whole["history"] + whole["targets"]
        assert not set(row["candidates"]) & set(sequence[: sequence.index(row["candidates"][0])])
        assert len(set(row["candidates"])) == len(row["candidates"]) and len(set(row["ratings"])) > 1


@given(split=splits("test"), most=st.integers(2, 5), history=st.none() | st.integers(1, 4))
def test_rows_of_an_evaluation_equal_a_loop(split: Dataset, most: int, history: int | None) -> None:
    expected = held_out_lists(split.to_list(), most, history)
    if not expected:
        with pytest.raises(ValueError, match="the test split has no list with two different ratings"):
            held_out_rows(split, num_candidates=most, max_history=history)
    else:
        assert as_tuples(held_out_rows(split, num_candidates=most, max_history=history)) == expected


@pytest.mark.parametrize("rule", [{"split": "leave_last", "num_held_out": 5}, {"split": "time"}])
def test_candidates_are_never_in_the_history_nor_in_another_split(tmp_path, rule: dict) -> None:
    dataset = prepare("toy", tmp_path, toy_users=40, toy_items=80, **rule)
    train = build_rated_rows(dataset.train, num_candidates=5).to_list()
    seen = {user: {item for row in train if row["user"] == user for item in row["candidates"]} for user in range(40)}
    for split in (dataset.validation, dataset.test):
        rows = held_out_rows(split, num_candidates=5)
        by_user = {row["user"]: row for row in split.to_list()}
        for row in rows.to_list():
            assert not set(row["candidates"]) & (set(row["history"]) | seen[row["user"]])
            assert row["candidates"] == by_user[row["user"]]["targets"][: len(row["candidates"])]
            assert split[row["row"]]["user"] == row["user"]
            seen[row["user"]] |= set(row["candidates"])


def test_invalid_splits_and_options_are_refused(tmp_path) -> None:
    dataset = prepare("toy", tmp_path, toy_users=20, toy_items=60, split="leave_last", num_held_out=5)
    with pytest.raises(ValueError, match="must use only the training split, not the test split"):
        build_rated_rows(dataset.test)
    for count in (1, 27):
        with pytest.raises(ValueError, match=f"num_candidates must be from 2 to 26, not {count}"):
            build_rated_rows(dataset.train, num_candidates=count)
    with pytest.raises(ValueError, match="stride must be at least 1, not 0"):
        build_rated_rows(dataset.train, stride=0)
    bare = dataset.train.remove_columns(["history_ratings"]).add_column("history_ratings", [[]] * len(dataset.train))
    with pytest.raises(ValueError, match="has no ratings to rank by"):
        build_rated_rows(bare)
    low = dataset.train.map(lambda row: {"target_ratings": [rating - 3 for rating in row["target_ratings"]]})
    with pytest.raises(ValueError, match="a rating that is negative or not finite"):
        build_rated_rows(low)
    with pytest.raises(ValueError, match="a rating that is negative or not finite"):
        build_rated_rows(low.map(lambda row: {"target_ratings": [float("nan")] * len(row["target_ratings"])}))


def test_rating_values_are_read_from_splits_and_from_rated_rows(tmp_path) -> None:
    dataset = prepare("toy", tmp_path, toy_users=20, toy_items=60, split="leave_last", num_held_out=5)
    assert (
        rating_values(dataset.train)
        == rating_values(build_rated_rows(dataset.train, num_candidates=5))
        == [1, 2, 3, 4, 5]
    )
    many = Dataset.from_dict({"ratings": [np.linspace(0, 1, 101).tolist()]})
    with pytest.raises(ValueError, match="101 distinct ratings, but at most 100"):
        rating_values(many)
    unrated = dataset.test.map(lambda row: {"history_ratings": [], "target_ratings": []})
    for rows in (unrated, dataset.test.remove_columns(["history_ratings", "target_ratings"])):
        for read in (rating_values, held_out_rows):
            with pytest.raises(
                ValueError, match="the test split has no ratings to rank by, .* from a log with ratings"
            ):
                read(rows)
    with pytest.raises(ValueError, match="the rows have no ratings to rank by"):
        rating_values(Dataset.from_dict({"input_ids": [[1]]}))
