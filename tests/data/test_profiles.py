"""Tests the texts that describe items and users."""

from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from datasets import Dataset
from hypothesis import given
from hypothesis import strategies as st

from trl_rec.data import RecDataset, profiles
from trl_rec.data.profiles import item_labels, item_texts, preference_texts, user_profiles
from trl_rec.items import ItemCatalog
from trl_rec.ragged import Ragged


ITEMS = pa.table(
    {
        "item_id": ["a", "b", "c", "d"],
        "title": ["Blue Pen", "Lamp", "Odd Lamp, Blue", "Cup"],
        "genres": [["Ink", "Art"], ["Light"], ["Light", "Art"], []],
        "year": pa.array([1995.0, None, float("nan"), 2.5]),
        "brand": ["x\ny", None, "", "z"],
    }
)
CATALOG = ItemCatalog(ITEMS, group_column="genres")


def make_dataset(
    rows: list[tuple[int, list[int], list[int]]], users: pa.Table | None = None, split: str = "train"
) -> RecDataset:
    columns: dict[str, Any] = {"user": pa.array([row[0] for row in rows], pa.int32())}
    for place, name in enumerate(("history", "targets"), 1):
        columns[name] = pa.array([row[place] for row in rows], pa.list_(pa.int32()))
    train = Dataset(pa.table(columns), split=split)
    users = pa.table({"user_id": ["u", "v", "w"]}) if users is None else users
    return RecDataset(Path("nowhere"), CATALOG, users, train, train, train, {})


def test_item_texts_contain_the_columns_that_have_a_value() -> None:
    assert item_texts(CATALOG) == [
        "Blue Pen; genres: Ink, Art; year: 1995; brand: x y",
        "Lamp; genres: Light",
        "Odd Lamp, Blue; genres: Light, Art",
        "Cup; year: 2.5; brand: z",
    ]
    assert item_texts(CATALOG, "{title} ({year})")[:2] == ["Blue Pen (1995)", "Lamp ()"]
    assert item_texts(ItemCatalog(ITEMS.select(["item_id", "title"])))[1] == "Lamp"
    with pytest.raises(
        ValueError, match="the item template '{colour}' cannot be filled .* the columns are title, genres"
    ):
        item_texts(CATALOG, "{colour}")


def test_labels_are_groups_or_the_words_of_titles() -> None:
    names, members = item_labels(CATALOG)
    assert [[names[one] for one in members[item]] for item in range(4)] == [
        ["Art", "Ink"],
        ["Light"],
        ["Art", "Light"],
        [],
    ]
    names, members = item_labels(replace(CATALOG, group_column=None))
    assert [[names[one] for one in members[item]] for item in range(4)] == [["Blue"], ["Lamp"], ["Blue", "Lamp"], []]
    assert item_labels(replace(CATALOG, group_column="brand"))[0] == ["x\ny", "z"]


@given(st.lists(st.lists(st.integers(0, 3), max_size=12), min_size=1, max_size=5), st.integers(1, 3))
def test_preference_texts_list_the_most_frequent_labels(histories: list[list[int]], most: int) -> None:
    groups = ITEMS["genres"].to_pylist()
    expected = []
    for history in histories:
        counts = Counter(group for item in history for group in groups[item])
        expected.append(", ".join(sorted(counts, key=lambda group: (-counts[group], group))[:most]))
    assert preference_texts(Ragged.from_lists(histories), CATALOG, most=most) == expected
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(profiles, "CHUNK", 2)
        assert preference_texts(Ragged.from_lists(histories), CATALOG, most=most) == expected


def test_profiles_contain_columns_and_training_preferences() -> None:
    users = pa.table({"user_id": ["u", "v", "w"], "age": pa.array([24, None, 30]), "job_title": ["cook", None, ""]})
    dataset = make_dataset([(2, [0], [1, 2]), (0, [1], [1, 1, 0])], users)
    assert user_profiles(dataset) == [
        "age 24, job title cook; often Art, Ink, Light",
        "",
        "age 30; often Art, Light, Ink",
    ]
    assert user_profiles(dataset, most=1)[2] == "age 30; often Art"
    plain = make_dataset([(1, [2], [])])
    assert user_profiles(plain) == ["", "often Art, Light", ""]


def test_an_item_in_overlapping_windows_is_counted_once() -> None:
    dataset = make_dataset([(0, [0], [1]), (0, [0, 1], [1]), (0, [1], [2])])
    assert user_profiles(dataset)[0] == "often Art, Light, Ink"


def test_profiles_of_other_splits_are_refused() -> None:
    with pytest.raises(ValueError, match="profiles must use only the training split"):
        user_profiles(make_dataset([(0, [0], [1])], split="validation"))
