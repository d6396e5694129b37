"""Compares baselines with slow loops, and tests how they break ties and which input they reject."""

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.evaluation.logs import make_split, whole_rows, windowed_rows
from tests.oracles import baselines as oracle
from trl_rec.evaluation import baselines
from trl_rec.evaluation.baselines import PopularityBaseline, RandomBaseline, TransitionBaseline
from trl_rec.ragged import Ragged


NUM_ITEMS = 8
ITEM = st.integers(0, NUM_ITEMS - 1)
SEQUENCES = st.lists(st.lists(ITEM, min_size=2, max_size=12), min_size=1, max_size=6)
HISTORIES = st.lists(st.lists(ITEM, max_size=14), min_size=1, max_size=4)


@settings(max_examples=100, deadline=None)
@given(SEQUENCES, HISTORIES, st.integers(1, 10), st.booleans(), st.sampled_from([None, 3, 10]), st.integers(1, 4))
def test_transition_baseline_equals_loops(sequences, histories, top_k, exclude_history, width, window):
    rows = whole_rows(sequences) if width is None else windowed_rows(sequences, max(width, window))
    baseline = TransitionBaseline(window=window, max_history=5).fit(make_split(rows), NUM_ITEMS)
    expected = [
        oracle.rank_by_transitions(sequences, history, NUM_ITEMS, top_k, exclude_history, window, 5)
        for history in histories
    ]
    np.testing.assert_array_equal(baseline.rank(histories, top_k, exclude_history).items, expected)


@settings(max_examples=60, deadline=None)
@given(SEQUENCES, HISTORIES, st.integers(1, 10), st.booleans())
def test_popularity_baseline_equals_loops(sequences, histories, top_k, exclude_history):
    baseline = PopularityBaseline().fit(make_split(whole_rows(sequences)), NUM_ITEMS)
    expected = [
        oracle.rank_by_popularity(sequences, history, NUM_ITEMS, top_k, exclude_history) for history in histories
    ]
    np.testing.assert_array_equal(baseline.rank(histories, top_k, exclude_history).items, expected)


@settings(max_examples=40, deadline=None)
@given(HISTORIES, st.integers(1, 10), st.booleans(), st.integers(0, 3))
def test_random_baseline_ranks_distinct_allowed_items(histories, top_k, exclude_history, seed):
    baseline = RandomBaseline(seed).fit(make_split([(0, [0], [1])]), NUM_ITEMS)
    for history, ranking in zip(histories, baseline.rank(histories, top_k, exclude_history).items, strict=True):
        allowed = set(range(NUM_ITEMS)) - (set(history) if exclude_history else set())
        listed = [item for item in ranking.tolist() if item >= 0]
        assert len(listed) == len(set(listed)) == min(top_k, len(allowed)) and set(listed) <= allowed
        assert ranking.tolist() == listed + [-1] * (top_k - len(listed))


def test_transitions_worked_by_hand():
    # A following item counts 1 / distance. After item 0, item 1 occurs at distance 1 and item 2 at distances 2 and 1,
    # so their shares are 1/2.5 and 1.5/2.5. After item 1, only item 2 occurs.
    train = make_split([(0, [0], [1, 2]), (1, [0], [2])])
    baseline = TransitionBaseline().fit(train, 5)
    assert baseline.rank([[0]], 5, True).items.tolist() == [[2, 1, 3, 4, -1]]
    assert baseline.rank([[0]], 5, False).items.tolist() == [[2, 1, 0, 3, 4]]
    assert baseline.rank([[1, 0], []], 2, False).items.tolist() == [[2, 1], [0, 2]]
    np.testing.assert_allclose(baseline.rank([[0]], 5, True).scores, [[0.6, 0.4, 0, 0, -np.inf]], rtol=1e-6)


def test_the_score_of_popular_items_is_their_popularity():
    ranked = PopularityBaseline().fit(make_split([(0, [0], [1, 1]), (1, [2], [])]), 3).rank([[0], []], 3, True)
    assert ranked.items.tolist() == [[1, 2, -1], [1, 0, 2]]
    assert ranked.scores.tolist() == [[2, 1, -np.inf], [2, 1, 1]]
    assert RandomBaseline().fit(make_split([(0, [0], [1])])).rank([[]], 2, True).scores is None


def test_ties_are_broken_by_popularity_and_then_by_index():
    train = make_split([(0, [0], [3]), (1, [0], [2]), (2, [0], [1]), (3, [3], [])])
    assert TransitionBaseline().fit(train, 5).rank([[0]], 4, True).items.tolist() == [[3, 1, 2, 4]]


def test_scores_that_differ_only_by_rounding_are_tied():
    # Item 3 follows item 0 in 3 of 10 cases, so its score is 3/10. Item 4 follows item 0 in 1 of 10 cases and item 1
    # in 2 of 5 cases. Item 1 is not the newest item of the history, so its share is halved: the score of item 4 is
    # 1/10 + 2/5 / 2, which is 0.30000000000000004 in floats. Items 3 and 4 are equally popular, so the lower index
    # comes first.
    pairs = [(0, 3)] * 3 + [(0, 4)] + [(0, 2)] * 6 + [(1, 4)] * 2 + [(1, 2)] * 3
    train = make_split([(user, [first], [second]) for user, (first, second) in enumerate(pairs)])
    assert TransitionBaseline(window=1).fit(train, 5).rank([[1, 0]], 3, True).items.tolist() == [[2, 3, 4]]


def test_the_whole_history_is_excluded_not_only_the_items_that_score():
    # With `max_history=1`, only the newest item of the history, item 0, determines the scores. Item 2 is excluded too.
    train = make_split([(0, [0], [1]), (1, [1], [2])])
    baseline = TransitionBaseline(max_history=1).fit(train, 3)
    assert baseline.rank([[2, 0]], 3, True).items.tolist() == [[1, -1, -1]]


@pytest.mark.parametrize("baseline", [RandomBaseline(3), PopularityBaseline(), TransitionBaseline()])
def test_rankings_depend_neither_on_the_block_size_nor_on_the_form_of_histories(baseline, monkeypatch):
    rng = np.random.default_rng(0)
    sequences = [rng.integers(0, 30, length).tolist() for length in rng.integers(2, 20, 40)]
    histories = [rng.integers(0, 30, length).tolist() for length in rng.integers(0, 25, 50)]
    baseline.fit(make_split(whole_rows(sequences)), 30)
    ranked = baseline.rank(histories, 6, True)
    assert ranked.items.shape == (50, 6)
    monkeypatch.setattr(baselines, "BLOCK_ENTRIES", 40)
    for form in (
        histories,
        Ragged.from_lists(histories),
        pa.array(histories),
        pa.chunked_array([histories[:7], histories[7:]]),
    ):
        again = baseline.rank(form, 6, True)
        np.testing.assert_array_equal(again.items, ranked.items)
        np.testing.assert_array_equal(again.scores, ranked.scores)
    assert baseline.rank([], 6, True).items.shape == (0, 6)


def test_random_baseline_depends_on_seed_and_row():
    train = make_split([(0, [0], [1])])
    one, other = (RandomBaseline(seed).fit(train, 1000).rank([[]] * 20, 10, False) for seed in (0, 1))
    assert len({tuple(row) for row in one.items.tolist() + other.items.tolist()}) == 40


@pytest.mark.parametrize("baseline", [RandomBaseline(), PopularityBaseline(), TransitionBaseline()])
@pytest.mark.parametrize("name", ["validation", "test"])
def test_fitting_on_held_out_rows_is_an_error(baseline, name):
    with pytest.raises(ValueError, match=f"must use only the training split, not the {name} split"):
        baseline.fit(make_split([(0, [0], [1])], name))


@pytest.mark.parametrize("baseline", [RandomBaseline(), PopularityBaseline(), TransitionBaseline()])
def test_bad_input_is_an_error(baseline):
    with pytest.raises(ValueError, match="call fit with a training split first"):
        baseline.rank([[0]], 1, True)
    baseline.fit(make_split([(0, [0], [1])]))
    with pytest.raises(ValueError, match="histories, row 1: 2.* is not an item index; give whole numbers from 0 to 1"):
        baseline.rank([[0], [1, 2]], 1, True)
    with pytest.raises(ValueError, match="top_k must be at least 1, not 0"):
        baseline.rank([[0]], 0, True)


def test_a_window_below_one_is_an_error():
    with pytest.raises(ValueError, match="window must be at least 1, not 0"):
        TransitionBaseline(window=0)
