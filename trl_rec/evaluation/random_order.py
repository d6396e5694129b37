"""Random permutations of the catalogue, one per row, of which single positions can be read without the rest.

A Feistel network permutes the numbers below the next power of four. Where it leaves the range of the catalogue, it is
applied to its own output until the result is an item ("cycle walking"); this permutes the items. The round function
hashes (seed, row), so that a row's permutation depends neither on batches nor on processes.
"""

from __future__ import annotations

import numpy as np


ROUNDS = 12  # with 4 or 6, some pairs of items are visibly favoured in catalogues of a few items


def permuted(positions: np.ndarray, rows: np.ndarray, seed: int, num_items: int) -> np.ndarray:
    """The item at each position of a row's permutation of `range(num_items)`.

    Args:
        positions (`np.ndarray` of shape `(T,)`): Positions below `num_items`.
        rows (`np.ndarray` of shape `(T,)`): The row of each position; together with the seed it selects the
            permutation.
        seed (`int`): Below 2^63.
        num_items (`int`): Size of the catalogue.

    Returns:
        `np.ndarray` of shape `(T,)`.
    """
    keys = _mixed(_mixed(np.array([seed], np.int64).view(np.uint64)) + rows.astype(np.uint64))
    half_bits = np.uint64(max(1, ((num_items - 1).bit_length() + 1) // 2))

    # Each position walks until it lands on an item. The network is at most four times as wide, so long walks are rare.
    items = positions.astype(np.uint64)
    outside = np.arange(len(items))
    while len(outside):
        items[outside] = _feistel(items[outside], keys[outside], half_bits)
        outside = outside[items[outside] >= num_items]
    return items.astype(np.int64)


def _feistel(values: np.ndarray, keys: np.ndarray, half_bits: np.uint64) -> np.ndarray:
    """A keyed bijection of the numbers below 2^(2 * `half_bits`)."""
    mask = (np.uint64(1) << half_bits) - np.uint64(1)
    left = values >> half_bits
    right = values & mask
    for number in range(ROUNDS):
        scrambled = _mixed(keys ^ (right * np.uint64(ROUNDS) + np.uint64(number))) & mask
        left, right = right, left ^ scrambled
    return left << half_bits | right


def _mixed(values: np.ndarray) -> np.ndarray:
    """The finaliser of SplitMix64: a fixed bijection of 64-bit integers whose output looks random."""
    values = values + np.uint64(0x9E3779B97F4A7C15)
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    values = values ^ (values >> np.uint64(31))
    return values
