"""Training interactions from whole and windowed rows against a count over the original sequences."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.evaluation.logs import make_split, whole_rows, windowed_rows
from tests.oracles import baselines as oracle
from trl_rec.data.train_interactions import TrainInteractions


SEQUENCES = st.lists(st.lists(st.integers(0, 5), min_size=2, max_size=9), min_size=1, max_size=5)


@settings(max_examples=60, deadline=None)
@given(SEQUENCES, st.integers(3, 5))
def test_windowed_and_whole_rows_give_the_same_interactions(sequences, width):
    for rows in (whole_rows(sequences), windowed_rows(sequences, width)):
        log = TrainInteractions.from_split(make_split(rows), 6)
        np.testing.assert_array_equal(log.popularity, oracle.popularity(sequences, 6))
        first, second, distance = log.pairs(3)
        got = sorted(zip(first.tolist(), second.tolist(), distance.tolist(), strict=True))
        expected = [(s[i], s[i + d], d) for s in sequences for d in (1, 2, 3) for i in range(len(s) - d)]
        assert got == sorted(expected)


def test_selected_rows_are_used():
    train = make_split([(0, [0], [1]), (1, [2], [3]), (2, [4], [5])])
    np.testing.assert_array_equal(TrainInteractions.from_split(train.select([2, 0])).popularity, [1, 1, 0, 0, 1, 1])


def test_the_number_of_items_is_one_more_than_the_largest_seen():
    train = make_split([(0, [7], [2])])
    assert TrainInteractions.from_split(train).num_items == 8
    assert TrainInteractions.from_split(train, 20).num_items == 20
    assert TrainInteractions.from_split(make_split([])).num_items == 0
    with pytest.raises(ValueError, match="train, row 0: 7 is not an item index; give whole numbers from 0 below 7"):
        TrainInteractions.from_split(train, 7)


@pytest.mark.parametrize("name", ["validation", "test", "test[:50%]"])
def test_held_out_splits_are_an_error(name):
    with pytest.raises(ValueError, match="must use only the training split, not the " + name.split("[")[0]):
        TrainInteractions.from_split(make_split([(0, [1], [2])], name))
