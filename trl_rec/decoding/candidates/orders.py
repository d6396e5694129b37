"""Draws random orders: orders in which prompts list the candidates, and the order of equally rated candidates in an
answer.

Each position in a prompt's list of candidates is a slot. The results depend only on the arguments, which include a key
such as (seed, epoch, row). They do not depend on the process or on earlier calls.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from trl_rec.ranges import COUNT


def draw_slots(count: int, num_orders: int, key: Sequence[int]) -> np.ndarray:
    """Returns the index of the candidate in each slot, for `num_orders` random orders, `(num_orders, count)`.

    Each order is uniformly random, except that with two or more candidates it always differs from the one before it.
    """
    COUNT.check("num_orders", num_orders)
    draw = np.random.default_rng([*key, 0])
    orders: list[np.ndarray] = []
    for _ in range(num_orders):
        order = draw.permutation(count)
        while orders and count > 1 and np.array_equal(order, orders[-1]):
            order = draw.permutation(count)
        orders.append(order)
    return np.stack(orders)


def draw_gold_rank(ratings: np.ndarray, key: Sequence[int]) -> np.ndarray:
    """Returns the rank of each candidate in the answer, from 0, `(count,)`. Candidates with higher ratings come first,
    and candidates with equal ratings are in random order."""
    ties = np.random.default_rng([*key, 1]).random(len(ratings))
    return np.argsort(np.lexsort((ties, -np.asarray(ratings))))
