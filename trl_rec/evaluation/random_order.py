"""A permutation of the catalogue for each row, of which any part can be asked for without making the rest.

A Feistel network permutes the next power of four; following it until it comes back below the number of items permutes
those. Its rounds hash (seed, row), so that blocks and processes play no part.
"""

from __future__ import annotations

import numpy as np


ROUNDS = 12  # with 4 or 6, some pairs of items are favoured in catalogues of a few items


def permuted(positions: np.ndarray, rows: np.ndarray, seed: int, num_items: int) -> np.ndarray:
    """The item at each position of a row's permutation of `range(num_items)`.

    Args:
        positions (`np.ndarray` of shape `(T,)`): Positions below `num_items`.
        rows (`np.ndarray` of shape `(T,)`): The row of each: chooses the permutation, together with the seed.
        seed (`int`): Below 2^63.
        num_items (`int`): Size of the catalogue.
    """
    keys = _mixed(_mixed(np.array([seed], np.int64).view(np.uint64)) + rows.astype(np.uint64))
    half = np.uint64(max(1, ((num_items - 1).bit_length() + 1) // 2))  # bits
    items = positions.astype(np.uint64)
    outside = np.arange(len(items))
    while len(outside):
        items[outside] = _feistel(items[outside], keys[outside], half)
        outside = outside[items[outside] >= num_items]
    return items.astype(np.int64)


def _feistel(values: np.ndarray, keys: np.ndarray, half: np.uint64) -> np.ndarray:
    low = (np.uint64(1) << half) - np.uint64(1)
    left, right = values >> half, values & low
    for number in range(ROUNDS):
        left, right = right, left ^ (_mixed(keys ^ (right * np.uint64(ROUNDS) + np.uint64(number))) & low)
    return left << half | right


def _mixed(values: np.ndarray) -> np.ndarray:
    """The finaliser of SplitMix64: a fixed bijection of 64-bit integers that looks random."""
    values = values + np.uint64(0x9E3779B97F4A7C15)
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))
