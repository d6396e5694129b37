"""Tests item vectors that are made from the singular vectors of a matrix of associations. An association measures how
much more often than by chance two items occur near each other."""

import numpy as np
import pytest
import torch

from tests.evaluation.logs import make_split, whole_rows
from tests.semantic_ids.test_cooccurrence import dense
from trl_rec.semantic_ids import cooccurrence_vectors
from trl_rec.semantic_ids.cooccurrence import associations
from trl_rec.semantic_ids.item_vectors import truncated_svd


@pytest.fixture(scope="module")
def matrix():
    """Associations of 60 items. The last two never occur, and each user chooses only from one half of the others."""
    rng = np.random.default_rng(0)
    sequences = [(rng.integers(0, 29, 12) + 29 * (user % 2)).tolist() for user in range(60)]
    return associations(make_split(whole_rows(sequences)), 60)


def test_the_largest_singular_vectors(matrix):
    exact = np.linalg.svd(dense(matrix).astype(np.float64))
    left, values = truncated_svd(matrix, 8)
    np.testing.assert_allclose(values, exact.S[:8], rtol=1e-2)
    np.testing.assert_allclose(values[:2], exact.S[:2], rtol=1e-5)
    np.testing.assert_allclose(np.abs((left.numpy() * exact.U[:, :8]).sum(0))[:2], 1, atol=1e-5)
    np.testing.assert_allclose(left.T @ left, np.eye(8), atol=1e-4)


def test_signs_are_fixed_and_seeds_agree(matrix):
    first, *others = (truncated_svd(matrix, 8, seed=seed)[0] for seed in (0, 0, 1, 2, 3, 4))
    assert torch.equal(first, others[0])
    for left in others:
        assert (left.gather(0, left.abs().argmax(0, keepdim=True)) > 0).all()
        torch.testing.assert_close(left[:, :2], first[:, :2], atol=1e-3, rtol=0)


def test_vectors_beyond_the_rank_are_zero():
    left, values = truncated_svd(associations(make_split(whole_rows([[0, 1], [2, 3]])), 6), 6)
    assert (values > 0).tolist() == [True] * 4 + [False] * 2 and (left[:, 4:] == 0).all()


def test_items_of_one_half_are_near_each_other_and_unseen_items_are_zero():
    rng = np.random.default_rng(1)
    sequences = [(rng.integers(0, 14, 12) + 14 * (user % 2)).tolist() for user in range(60)]
    vectors = cooccurrence_vectors(make_split(whole_rows(sequences)), 30, width=6)
    torch.testing.assert_close(vectors.norm(dim=1), torch.tensor([1.0] * 28 + [0.0] * 2))

    # Unseen items also get zero vectors if they are the first items of the catalogue.
    shifted = cooccurrence_vectors(
        make_split(whole_rows([[item + 2 for item in one] for one in sequences])), 30, width=6
    )
    torch.testing.assert_close(shifted.norm(dim=1), torch.tensor([0.0] * 2 + [1.0] * 28))

    cosines = vectors @ vectors.T
    assert cosines[:14, :14].mean() > 0.1 + cosines[:14, 14:28].mean()
