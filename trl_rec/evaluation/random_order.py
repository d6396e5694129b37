"""Computes random permutations of the catalogue, one for each row number.

A row number is any integer that identifies a permutation, such as the number of a user's row in a split.

The item at any position can be computed without the rest of the permutation. A Feistel network permutes the numbers
below a power of four that is at least the size of the catalogue. While the output of the network is not an item index,
the network is applied to the output again ("cycle walking"). The result is a permutation of the items. The key
of the network is a hash of the seed and the row number, so a permutation does not depend on the batch or the process.
"""

from __future__ import annotations

import numpy as np


# Rounds of the Feistel network. With 4 or 6 rounds, some items are adjacent too often in very small catalogues.
ROUNDS = 12


def permuted(positions: np.ndarray, rows: np.ndarray, seed: int, num_items: int) -> np.ndarray:
    """Returns the item at each given position. Every row has its own permutation of `range(num_items)`.

    Args:
        positions (`np.ndarray` of shape `(T,)`): Positions below `num_items`.
        rows (`np.ndarray` of shape `(T,)`): For each position, the number of the row in whose permutation the item is
            looked up. The seed and the row number determine the permutation.
        seed (`int`): Seed of the permutations, below 2^63.
        num_items (`int`): Size of the catalogue.

    Returns:
        `np.ndarray` of shape `(T,)`.
    """
    keys = _mixed(_mixed(np.array([seed], np.int64).view(np.uint64)) + rows.astype(np.uint64))
    half_bits = np.uint64(max(1, ((num_items - 1).bit_length() + 1) // 2))

    # Repeat until every result is an item index. The range of the network is at most four times the size of the
    # catalogue, so this takes few repetitions.
    items = positions.astype(np.uint64)
    outside = np.arange(len(items))
    while len(outside):
        items[outside] = _feistel(items[outside], keys[outside], half_bits)
        outside = outside[items[outside] >= num_items]
    return items.astype(np.int64)


def _feistel(values: np.ndarray, keys: np.ndarray, half_bits: np.uint64) -> np.ndarray:
    """Applies to each value a bijection of the numbers below 2^(2 * `half_bits`). The key selects the bijection."""
    mask = (np.uint64(1) << half_bits) - np.uint64(1)
    left = values >> half_bits
    right = values & mask
    for number in range(ROUNDS):
        scrambled = _mixed(keys ^ (right * np.uint64(ROUNDS) + np.uint64(number))) & mask
        left, right = right, left ^ scrambled
    return left << half_bits | right


def _mixed(values: np.ndarray) -> np.ndarray:
    """Hashes 64-bit integers with the finaliser of SplitMix64, which is a bijection."""
    values = values + np.uint64(0x9E3779B97F4A7C15)
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    values = values ^ (values >> np.uint64(31))
    return values
