"""`permuted` returns a random permutation of the items for each row. All pairs of items are equally likely in the
first two positions."""

import numpy as np
import pytest

from trl_rec.evaluation.random_order import permuted


@pytest.mark.parametrize("num_items", [1, 2, 3, 4, 5, 16, 17, 100, 1000])
def test_each_row_is_a_permutation(num_items):
    rows, positions = np.divmod(np.arange(20 * num_items), num_items)
    items = permuted(positions, rows, 0, num_items).reshape(20, num_items)
    np.testing.assert_array_equal(np.sort(items, axis=1), np.tile(np.arange(num_items), (20, 1)))


@pytest.mark.parametrize("num_items", [3, 5, 12])
def test_every_pair_of_items_is_equally_likely_in_the_first_two_positions(num_items):
    num_rows = 20000
    rows, positions = np.divmod(np.arange(num_rows * 2), 2)
    first, second = permuted(positions, rows, 1, num_items).reshape(num_rows, 2).T
    pairs = np.bincount(first * num_items + second, minlength=num_items**2).reshape(num_items, num_items)
    expected = num_rows / (num_items * (num_items - 1))
    off_diagonal = pairs[~np.eye(num_items, dtype=bool)]
    assert np.abs(off_diagonal - expected).max() < 5 * np.sqrt(expected)
    assert np.diagonal(pairs).sum() == 0


def test_the_orders_of_different_rows_and_seeds_differ():
    positions = np.arange(50)
    orders = {tuple(permuted(positions, np.full(50, row), seed, 50)) for row in range(20) for seed in (-1, 0, 1, 2)}
    assert len(orders) == 80
