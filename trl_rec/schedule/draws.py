"""Draws distinct random numbers per row. They depend only on the seed and the row, not on other rows or processes."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np

from trl_rec.evaluation.random_order import permuted


def draw(
    rows: np.ndarray, count: int, size: int, seed: int, allowed: Callable[[np.ndarray, np.ndarray], np.ndarray]
) -> np.ndarray:
    """Draws up to `count` allowed numbers per row: the first allowed numbers of a random permutation of `range(size)`.

    Args:
        rows (`np.ndarray` of shape `(N,)`): One key per row. The key and the seed determine the row's permutation.
        count: How many numbers to draw per row.
        size: Exclusive upper bound of the numbers.
        seed: Seed of the permutations.
        allowed: Function that returns which numbers are allowed, a boolean array `(M, W)`. Its arguments are M
            indices into `rows`, `(M, 1)`, and W numbers for each of these rows, `(M, W)`.

    Returns:
        The drawn numbers of each row, in the order of drawing, `(N, count)`, padded with -1.
    """
    out = np.full((len(rows), count), -1, np.int64)
    num_drawn = np.zeros(len(rows), np.int64)
    for start in range(0, size, count):
        # 1. For each row that needs more numbers, read the next W positions of its permutation.
        unfinished = np.flatnonzero(num_drawn < count)  # (M,)
        positions = np.arange(start, min(start + count, size))
        numbers = permuted(
            np.tile(positions, len(unfinished)), np.repeat(rows[unfinished], len(positions)), seed, size
        ).reshape(len(unfinished), len(positions))

        # 2. Append the allowed numbers, up to `count` per row.
        good = allowed(unfinished[:, None], numbers)  # (M, W)
        rank = num_drawn[unfinished, None] + np.cumsum(good, 1) - 1
        row, position = np.nonzero(good & (rank < count))
        out[unfinished[row], rank[row, position]] = numbers[row, position]

        # 3. Stop when all rows have `count` numbers.
        num_drawn[unfinished] += good.sum(1)
        if (num_drawn >= count).all():
            break
    return out


def draw_below(rows: np.ndarray, count: int, sizes: np.ndarray, seed: int) -> np.ndarray:
    """Draws up to `count` distinct numbers from `range(sizes[i])` for each row `i`, `(N, count)`, padded with -1.

    If `sizes[i]` is at most `count`, row `i` gets all numbers of this range. `rows` and `seed` have the same meaning
    as in [`draw`].
    """
    # 1. Give the rows with small ranges all of their numbers.
    out = np.where(np.arange(count) < sizes[:, None], np.arange(count), -1)

    # 2. For all other rows, round the size up to a power of two. Rows with the same rounded size are processed
    # together: numbers below the rounded size are drawn, and those that are not below the row's own size are skipped.
    bits = np.frexp(np.maximum(sizes - 1, 0))[1]  # the rounded size of a row is 2 ** bits
    for power in np.unique(bits[sizes > count]).tolist():
        group = np.flatnonzero((bits == power) & (sizes > count))
        out[group] = draw(rows[group], count, 1 << power, seed, partial(_is_below, sizes[group]))
    return out


def _is_below(sizes: np.ndarray, indices: np.ndarray, numbers: np.ndarray) -> np.ndarray:
    """Returns whether each number is below the size of its row, `(M, W)`, for [`draw`]."""
    is_below: np.ndarray = numbers < sizes[indices]
    return is_below
