"""Compares metrics with hand-worked values and with the slow loops of `tests/oracles/metrics.py`."""

import subprocess
import sys
from math import log2

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.oracles import metrics as oracle
from trl_rec.evaluation import metrics


@st.composite
def rankings(draw, num_items=7):
    width = draw(st.integers(1, 5))
    rows = draw(
        st.lists(st.lists(st.integers(-1, num_items - 1), min_size=width, max_size=width), min_size=1, max_size=5)
    )
    return np.array(rows)


def test_hand_worked_values():
    ranked, rows, items = np.array([[4, 2, 9], [5, -1, 1]]), np.array([0, 0, 1]), np.array([2, 7, 3])
    hits, num_relevant = metrics.find_hits(ranked, rows, items)
    np.testing.assert_array_equal(hits, [[False, True, False], [False, False, False]])
    np.testing.assert_array_equal(num_relevant, [2, 1])
    np.testing.assert_allclose(metrics.recall(hits, num_relevant, 3), [0.5, 0])
    np.testing.assert_allclose(metrics.hit(hits, 1), [0, 0])
    np.testing.assert_allclose(metrics.mrr(hits, 3), [0.5, 0])
    np.testing.assert_allclose(metrics.ndcg(hits, num_relevant, 3), [(1 / log2(3)) / (1 + 1 / log2(3)), 0])
    np.testing.assert_allclose(metrics.ndcg(hits, num_relevant, 1), [0, 0])


def test_repeated_items_count_once():
    hits, num_relevant = metrics.find_hits(np.array([[3, 3, 0]]), np.array([0, 0, 0]), np.array([3, 3, 8]))
    np.testing.assert_array_equal(hits, [[True, False, False]])
    np.testing.assert_array_equal(num_relevant, [2])


def test_an_index_above_all_relevant_items_is_not_taken_for_an_item_of_the_next_row():
    # Here, `find_hits` encodes item i of row r as the key 3 r + i. Without a check, item 4 of row 0 would have the
    # same key as item 1 of row 1.
    hits, _ = metrics.find_hits(np.array([[4, 2**40], [0, -5]]), np.array([0, 1]), np.array([2, 1]))
    assert not hits.any()


def test_ranks_beyond_the_end_of_a_list_are_misses():
    hits = np.array([[True, True]])
    np.testing.assert_allclose(metrics.recall(hits, np.array([4]), 10), [0.5])
    np.testing.assert_allclose(metrics.ndcg(hits, np.array([2]), 10), [1.0])


@settings(max_examples=60, deadline=None)
@given(rankings(), st.integers(1, 6), st.data())
def test_accuracy_equals_loops(ranked, k, data):
    wanted = st.lists(st.integers(0, 6), min_size=1, max_size=6)
    relevant = data.draw(st.lists(wanted, min_size=len(ranked), max_size=len(ranked)))
    rows = np.repeat(np.arange(len(relevant)), [len(row) for row in relevant])
    hits, num_relevant = metrics.find_hits(ranked, rows, np.concatenate(relevant))
    got = [
        metrics.recall(hits, num_relevant, k),
        metrics.hit(hits, k),
        metrics.ndcg(hits, num_relevant, k),
        metrics.mrr(hits, k),
    ]
    np.testing.assert_allclose(np.stack(got, -1), oracle.accuracy(ranked.tolist(), relevant, k), atol=1e-12)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(0, 5), min_size=1, max_size=6), st.integers(1, 7), st.randoms())
def test_graded_ndcg_equals_loops(grades, k, random):
    shuffled = random.sample(grades, len(grades))
    got = metrics.graded_ndcg(np.array([shuffled]), np.array([[*grades, 0, 0]]), k)
    np.testing.assert_allclose(got, [oracle.graded_ndcg(shuffled, grades, k)], atol=1e-12)


def test_graded_ndcg_by_hand():
    got = metrics.graded_ndcg(np.array([[1, 3], [0, 0]]), np.array([[3, 1, 2], [0, 0, 0]]), 2)
    np.testing.assert_allclose(got, [(1 + 7 / log2(3)) / (7 + 3 / log2(3)), 0])


@settings(max_examples=60, deadline=None)
@given(rankings(), st.randoms(use_true_random=False))
def test_diversity_and_fairness_equal_loops(ranked, random):
    rng = np.random.default_rng(random.randrange(2**31))
    lists, popularity = ranked.tolist(), rng.integers(0, 100, 7)
    shares = rng.integers(0, 3, (7, 3)) * (rng.random((7, 1)) < 0.8)
    shares = shares / np.maximum(shares.sum(1, keepdims=True), 1)
    assert metrics.coverage(ranked, 7) == pytest.approx(oracle.coverage(lists, 7))
    assert metrics.gini(ranked, 7) == pytest.approx(oracle.gini(lists, 7))
    assert metrics.mean_popularity(ranked, popularity) == pytest.approx(
        oracle.mean_popularity(lists, popularity.tolist())
    )
    assert metrics.div_ratio(ranked) == pytest.approx(oracle.div_ratio(lists))
    assert metrics.or_ratio(ranked) == pytest.approx(oracle.or_ratio(lists))
    np.testing.assert_allclose(
        metrics.ild(ranked, shares), [oracle.ild(row, shares.tolist()) for row in lists], atol=1e-12
    )
    recommended, consumed = metrics.group_share(ranked, shares), metrics.group_share(np.arange(7), shares)
    np.testing.assert_allclose(recommended, oracle.group_share(ranked.ravel().tolist(), shares.tolist()), atol=1e-12)
    assert metrics.mgu(recommended, consumed) == pytest.approx(oracle.mgu(recommended.tolist(), consumed.tolist()))
    assert metrics.dgu(recommended, consumed) == pytest.approx(oracle.dgu(recommended.tolist(), consumed.tolist()))


def test_diversity_by_hand():
    ranked = np.array([[0, 1], [0, 2], [0, -1]])
    assert metrics.coverage(ranked, 6) == 0.5
    assert metrics.gini(np.array([[0, 1, 2]]), 3) == 0
    assert metrics.gini(np.array([[0], [0]]), 4) == 0.75
    assert metrics.div_ratio(ranked) == 0.5
    assert metrics.or_ratio(np.array([[0, 1, 2, 3], [0, 1, 2, 4]])) == 0.75
    np.testing.assert_allclose(metrics.ild(ranked, np.array([[1.0, 0], [0, 2], [3, 0]])), [1, 0, 0])
    assert metrics.mgu(np.array([0.5, 0.5]), np.array([0.75, 0.25])) == 0.25
    assert metrics.dgu(np.array([0.5, 0.5]), np.array([0.75, 0.25])) == 0.5


def test_metrics_accept_any_leading_dimensions(monkeypatch):
    monkeypatch.setattr(metrics, "GATHERED_VALUES", 20)  # `ild` then uses several chunks
    rng = np.random.default_rng(0)
    lists, vectors = rng.integers(-1, 9, (3, 4, 5)), rng.normal(size=(9, 2))
    flat = lists.reshape(12, 5)
    np.testing.assert_allclose(
        metrics.ild(lists, vectors).ravel(), [oracle.ild(row, vectors.tolist()) for row in flat.tolist()]
    )
    np.testing.assert_array_equal(metrics.first_occurrences(lists).reshape(12, 5), metrics.first_occurrences(flat))
    hits, num_relevant = lists > 4, np.full((3, 4), 6)
    np.testing.assert_allclose(
        metrics.ndcg(hits, num_relevant, 3)[1, 2], metrics.ndcg(hits[1, 2], num_relevant[1, 2], 3)
    )
    np.testing.assert_allclose(metrics.mrr(hits, 3)[2, 0], metrics.mrr(hits[2, 0], 3))


def test_lists_without_any_item_give_zeros():
    ranked, shares = np.full((2, 3), -1), np.ones((4, 1))
    assert metrics.coverage(ranked, 4) == metrics.gini(ranked, 4) == metrics.or_ratio(ranked) == 0
    assert metrics.mean_popularity(ranked, np.ones(4)) == 0
    np.testing.assert_array_equal(metrics.group_share(ranked, shares), [0])


def test_metrics_import_only_numpy():
    heavy = "{'torch', 'pyarrow', 'datasets', 'transformers'}"
    code = f"import sys, trl_rec.evaluation.metrics; print(*{heavy} & set(sys.modules))"
    assert (
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == ""
    )
