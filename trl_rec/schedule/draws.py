"""A few distinct numbers for each row, drawn by (seed, row): processes, blocks and the other rows play no part."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from trl_rec.evaluation.random_order import permuted


def draw(
    rows: np.ndarray, count: int, size: int, seed: int, allowed: Callable[[np.ndarray, np.ndarray], np.ndarray]
) -> np.ndarray:
    """The first `count` allowed numbers of each row's permutation of `range(size)`.

    Args:
        rows (`np.ndarray` of shape `(N,)`): What each row is known by.
        count: Numbers a row.
        size: All numbers are below it.
        seed: Chooses the permutations, together with `rows`.
        allowed: Given places in `rows` `(M, 1)` and numbers `(M, W)`, tells which numbers these rows may have, `(M,
            W)`.

    Returns:
        `(N, count)`, in the order drawn; -1 where a row has no more.
    """
    out = np.full((len(rows), count), -1, np.int64)
    found = np.zeros(len(rows), np.int64)
    for start in range(0, size, count):
        wanting = np.flatnonzero(found < count)
        positions = np.arange(start, min(start + count, size))
        places = np.tile(positions, len(wanting)), np.repeat(rows[wanting], len(positions))
        numbers = permuted(*places, seed, size).reshape(len(wanting), len(positions))
        good = allowed(wanting[:, None], numbers)
        rank = found[wanting, None] + np.cumsum(good, 1) - 1
        row, place = np.nonzero(good & (rank < count))
        out[wanting[row], rank[row, place]] = numbers[row, place]
        found[wanting] += good.sum(1)
        if (found >= count).all():
            break
    return out


def draw_below(rows: np.ndarray, count: int, sizes: np.ndarray, seed: int) -> np.ndarray:
    """Up to `count` distinct numbers below each row's own size, `(N, count)`: all of them where they are not more than
    `count`, -1 filling up."""
    out = np.where(np.arange(count) < sizes[:, None], np.arange(count), -1)
    bits = np.frexp(np.maximum(sizes - 1, 0))[1]  # of the largest number below each size
    for power in np.unique(bits[sizes > count]).tolist():
        mine = np.flatnonzero((bits == power) & (sizes > count))
        out[mine] = draw(rows[mine], count, 1 << power, seed, _Below(sizes[mine]))
    return out


class _Below:
    """Allows each row the numbers below its size."""

    def __init__(self, sizes: np.ndarray) -> None:
        self.sizes = sizes

    def __call__(self, at: np.ndarray, numbers: np.ndarray) -> np.ndarray:
        return numbers < self.sizes[at]
