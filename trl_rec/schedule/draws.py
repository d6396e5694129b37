"""Draws distinct random numbers for each row, as a function of (seed, row): batches and processes do not matter."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np

from trl_rec.evaluation.random_order import permuted


def draw(
    rows: np.ndarray, count: int, size: int, seed: int, allowed: Callable[[np.ndarray, np.ndarray], np.ndarray]
) -> np.ndarray:
    """The first `count` allowed numbers of each row's permutation of `range(size)`.

    Args:
        rows (`np.ndarray` of shape `(N,)`): A number per row, which decides its permutation together with the seed.
        count: Numbers to draw per row.
        size: The numbers are below it.
        seed: Chooses the permutations.
        allowed: Called with indices into `rows` `(M, 1)` and numbers `(M, W)`; returns a boolean `(M, W)`, which of
            the numbers the row may have.

    Returns:
        `(N, count)`, in the order drawn, -1 where a row has fewer.
    """
    out = np.full((len(rows), count), -1, np.int64)
    num_drawn = np.zeros(len(rows), np.int64)
    for start in range(0, size, count):
        # 1. The next W positions of the permutation, for the rows that need more numbers.
        unfinished = np.flatnonzero(num_drawn < count)  # (M,)
        positions = np.arange(start, min(start + count, size))
        numbers = permuted(
            np.tile(positions, len(unfinished)), np.repeat(rows[unfinished], len(positions)), seed, size
        ).reshape(len(unfinished), len(positions))

        # 2. Append those that are allowed, as far as there is room.
        good = allowed(unfinished[:, None], numbers)  # (M, W)
        rank = num_drawn[unfinished, None] + np.cumsum(good, 1) - 1
        row, position = np.nonzero(good & (rank < count))
        out[unfinished[row], rank[row, position]] = numbers[row, position]

        # 3. Stop when no row needs more.
        num_drawn[unfinished] += good.sum(1)
        if (num_drawn >= count).all():
            break
    return out


def draw_below(rows: np.ndarray, count: int, sizes: np.ndarray, seed: int) -> np.ndarray:
    """Up to `count` distinct numbers below each row's own size, `(N, count)`, -1 where a row has fewer.

    A row whose size is at most `count` gets all of its numbers.
    """
    out = np.where(np.arange(count) < sizes[:, None], np.arange(count), -1)

    # Rows with the same power of two above their size share a draw; numbers at or above a row's own size are skipped.
    bits = np.frexp(np.maximum(sizes - 1, 0))[1]  # bits of the largest number below each size
    for power in np.unique(bits[sizes > count]).tolist():
        group = np.flatnonzero((bits == power) & (sizes > count))
        out[group] = draw(rows[group], count, 1 << power, seed, partial(_is_below, sizes[group]))
    return out


def _is_below(sizes: np.ndarray, indices: np.ndarray, numbers: np.ndarray) -> np.ndarray:
    is_below: np.ndarray = numbers < sizes[indices]
    return is_below
