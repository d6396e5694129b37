"""The orders that chance gives a list of candidates: what stands in which slot, and which of equal ratings comes
first.

They are a function of a key, such as (seed, epoch, row), and of nothing else: neither of a process nor of what was
drawn before.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def draw_slots(count: int, num_orders: int, key: Sequence[int]) -> np.ndarray:
    """`(num_orders, count)`: the candidate in each slot. Each order is uniform, and never the same as the one before
    it where there are two candidates or more."""
    draw = np.random.default_rng([*key, 0])
    orders: list[np.ndarray] = []
    for _ in range(num_orders):
        order = draw.permutation(count)
        while orders and count > 1 and np.array_equal(order, orders[-1]):
            order = draw.permutation(count)
        orders.append(order)
    return np.stack(orders)


def draw_gold_rank(ratings: np.ndarray, key: Sequence[int]) -> np.ndarray:
    """`(count,)`: the place of each candidate in the answer, from 0, the best rating first, equal ones in random
    order."""
    ties = np.random.default_rng([*key, 1]).random(len(ratings))
    return np.argsort(np.lexsort((ties, -np.asarray(ratings))))
