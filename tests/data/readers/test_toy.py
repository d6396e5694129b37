"""Tests the interaction log that the format `toy` generates."""

import time

import numpy as np
import pytest

from tests.data.sources import rows_of
from trl_rec.data import prepare
from trl_rec.ragged import Ragged


def hits(dataset, score):
    """Returns the share of test targets that are among the ten highest-scoring items outside the history."""
    found = 0
    for row in dataset.test.to_list():
        scores = score(row["history"])
        scores[row["history"]] = -np.inf
        found += row["targets"][0] in np.argsort(-scores, kind="stable")[:10]
    return found / len(dataset.test)


@pytest.mark.parametrize("seed", [0, 1])
def test_transitions_beat_popularity_and_popularity_beats_chance(tmp_path, seed):
    dataset = prepare("toy", tmp_path / "out", seed=seed)
    size = len(dataset.catalog)
    popularity, transitions = np.zeros(size), np.zeros((size, size))
    for row in dataset.train.to_list():
        sequence = row["history"] + row["targets"]
        np.add.at(popularity, sequence, 1)
        np.add.at(transitions, (sequence[:-1], sequence[1:]), 1)
    by_transitions = hits(dataset, lambda history: transitions[history[-1]] + popularity / 1e6)
    by_popularity = hits(dataset, lambda history: popularity.copy())
    by_chance = 10 / (size - dataset.card["num_interactions"] / dataset.card["num_users"])
    assert by_transitions > 1.5 * by_popularity and by_popularity > 1.5 * by_chance


def test_the_log_has_the_documented_shape(tmp_path):
    dataset = prepare("toy", tmp_path / "out")
    card, interactions = dataset.card, dataset.interactions
    assert (card["num_users"], card["num_items"], card["format"]) == (300, 200, "toy") and card["sources"] == {}
    lengths = np.bincount(interactions["user"].to_numpy())
    assert lengths.min() == 20 and lengths.max() == 40
    assert sorted(set(interactions["rating"].to_pylist())) == [1, 2, 3, 4, 5]
    assert len(set(dataset.catalog.titles)) == 200 and dataset.catalog.titles[0].istitle()
    groups = Ragged.from_arrow(dataset.catalog.items["genres"]).lengths
    assert groups.min() == 1 and groups.max() == 3 and dataset.catalog.group_shares()[1].shape == (200, 8)
    assert dataset.users.column_names == ["user_id", "age", "likes"]
    pairs = set(zip(interactions["user"].to_pylist(), interactions["item"].to_pylist(), strict=True))
    assert len(pairs) == interactions.num_rows  # no user has chosen an item twice


def test_the_seed_decides_the_log(tmp_path):
    first, same, other = (
        prepare("toy", tmp_path / str(i), seed=seed, toy_users=20, toy_items=60) for i, seed in enumerate((3, 3, 4))
    )
    assert first.card == same.card and first.interactions.equals(same.interactions)
    assert not first.interactions.equals(other.interactions)
    assert (first.card["num_users"], first.card["num_items"]) == (20, 60) and len(rows_of(first, "test")) == 20


def test_the_log_is_made_in_less_than_a_second(tmp_path):
    prepare("toy", tmp_path / "warm", toy_users=10)
    start = time.process_time()
    prepare("toy", tmp_path / "out")
    assert time.process_time() - start < 1


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"toy_users": 0}, "toy_users must be at least 1, not 0"),
        ({"toy_items": 40}, "toy_items must be from 41 to"),
        ({"toy_items": 100_000}, "toy_items must be from 41 to"),
    ],
)
def test_impossible_sizes_are_refused(tmp_path, sizes, message):
    with pytest.raises(ValueError, match=message):
        prepare("toy", tmp_path / "out", **sizes)
    assert list(tmp_path.iterdir()) == []
