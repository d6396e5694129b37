"""Random orders of a list of candidates: which candidate is in which slot, and which of equal ratings comes first.

They depend only on a key, such as (seed, epoch, row), never on the process or on earlier draws.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def draw_slots(count: int, num_orders: int, key: Sequence[int]) -> np.ndarray:
    """`(num_orders, count)`: the candidate in each slot, in uniformly random orders.

    With two candidates or more, no order is the same as the one before it.
    """
    draw = np.random.default_rng([*key, 0])
    orders: list[np.ndarray] = []
    for _ in range(num_orders):
        order = draw.permutation(count)
        while orders and count > 1 and np.array_equal(order, orders[-1]):
            order = draw.permutation(count)
        orders.append(order)
    return np.stack(orders)


def draw_gold_rank(ratings: np.ndarray, key: Sequence[int]) -> np.ndarray:
    """`(count,)`: the rank of each candidate in the answer, from 0. Higher ratings come first, equal ratings in random
    order."""
    ties = np.random.default_rng([*key, 1]).random(len(ratings))
    return np.argsort(np.lexsort((ties, -np.asarray(ratings))))
