"""Checks the associations between items, and the popularity of items, against slow loops. An association measures how
much more often than by chance two items occur near each other."""

import numpy as np
import pytest
import torch
from datasets import concatenate_datasets
from hypothesis import given
from hypothesis import strategies as st

from tests.evaluation.logs import make_split, whole_rows, windowed_rows
from tests.oracles import baselines
from tests.oracles import semantic_ids as oracle
from trl_rec.semantic_ids.cooccurrence import associations, popularity


SEQUENCES = st.lists(st.lists(st.integers(0, 7), min_size=2, max_size=9), min_size=1, max_size=6).filter(
    lambda sequences: any(len(set(items)) > 1 and items[0] != items[1] for items in sequences)
)


def dense(matrix):
    rows = np.repeat(np.arange(len(matrix)), np.diff(matrix.offsets.numpy()))
    out = np.zeros((len(matrix), len(matrix)), np.float32)
    out[rows, matrix.columns.numpy()] = matrix.values.numpy()
    return out


@given(SEQUENCES, st.integers(1, 4))
def test_associations_equal_a_loop_over_pairs(sequences, window):
    expected = np.zeros((9, 9))
    for pair, value in oracle.associations(sequences, 9, window).items():
        expected[pair] = value
    for rows in (whole_rows(sequences), windowed_rows(sequences, width=window)):
        got = dense(associations(make_split(rows), 9, window=window))
        np.testing.assert_allclose(got, expected, atol=2e-6)
        np.testing.assert_array_equal(got, got.T)


@given(SEQUENCES)
def test_interactions_are_counted_once(sequences):
    """An interaction counts once, even if several rows contain it, as in windowed data (one row per target)."""
    for rows in (whole_rows(sequences), windowed_rows(sequences, width=3)):
        np.testing.assert_array_equal(popularity(make_split(rows), 8), baselines.popularity(sequences, 8))


def test_the_product_with_a_dense_matrix():
    matrix = associations(make_split(whole_rows([[0, 1, 2], [3, 4, 0], [2, 1]])), 7)
    other = torch.randn(7, 3, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(matrix.times(other), torch.from_numpy(dense(matrix)) @ other)


def test_held_out_rows_are_refused():
    train, test = make_split([(0, [0], [1, 2])]), make_split([(0, [0, 1, 2], [3])], "test")
    for rows in (test, make_split([(0, [0, 1, 2], [3])], "validation"), concatenate_datasets([train, test])):
        for learn in (associations, popularity):
            with pytest.raises(ValueError, match="semantic IDs must use only the training split"):
                learn(rows, 4)


def test_a_log_without_pairs_is_refused():
    with pytest.raises(ValueError, match="no user of the training split has two different items near each other"):
        associations(make_split([(0, [0], []), (1, [1], [1])]), 3)
