"""Defines the counts that a [`MixturePrior`] mixes, and computes the share that a count gives to each item.

Here, a count is a table that predicts items from a history. It contains weighted pairs of items that the same user
chose in the training split. In each pair, one item is the target, which the count predicts from the other item.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from trl_rec.data.train_interactions import TrainInteractions
from trl_rec.data.transitions import PairRule, TransitionCounts, count_pairs
from trl_rec.ragged import Ragged, is_in


class Count(NamedTuple):
    """Defines which pairs of training interactions are counted, and how the counts are applied to a history.

    Args:
        rule (`PairRule`): Which pairs are counted, and with which weight.
        max_history (`int`): Maximum number of history items to use. Older items are ignored.
        decay (`float`): How fast the weight of history items falls with their age, as in [`TransitionCounts`]; 0 gives
            all of them the same weight.
    """

    rule: PairRule
    max_history: int = 10
    decay: float = 1.0


# The two numbers of a `PairRule` are the smallest and the largest distance between the items of a pair. By default,
# only the later item is predicted from the earlier one. `backward=True` adds the opposite direction. The weight of a
# pair is 1 / distance, or the same for all distances with `far=0`. `rare=0.5` gives rare targets more weight.
NEAR = PairRule(1, 10, backward=True)
TOGETHER = PairRule(1, 10, backward=True, far=0)
COUNTS = {
    "counter": Count(PairRule(1, 3)),  # as in TransitionPrior
    "after the last": Count(PairRule(1, 3), max_history=1),
    "next to the last": Count(PairRule(1, 1), max_history=1),
    "next": Count(PairRule(1, 1)),
    "second": Count(PairRule(2, 2)),
    "third": Count(PairRule(3, 3)),
    "before": Count(PairRule(1, 3, forward=False, backward=True)),
    "near": Count(NEAR),
    "near, long history": Count(NEAR, max_history=50),
    "together": Count(TOGETHER, max_history=50, decay=0.5),
    "similar": Count(TOGETHER._replace(rare=0.5), max_history=50, decay=0.5),
}
# Each count keeps at most `MOST_FOLLOWERS` targets per item (those with the largest shares), and at most `MOST_PAIRS`
# pairs in total. `MOST_FOLLOWERS` limits the time per history, and `MOST_PAIRS` limits the memory. With more than
# 250,000 items, fewer targets are kept per item.
MOST_FOLLOWERS = 200
MOST_PAIRS = 50_000_000


def make_counts(interactions: TrainInteractions) -> dict[str, TransitionCounts]:
    """Makes all counts of `COUNTS`. Counts with the same rule share their arrays."""
    most = min(MOST_FOLLOWERS, max(MOST_PAIRS // max(interactions.num_items, 1), 1))
    rules = list(dict.fromkeys(count.rule for count in COUNTS.values()))
    counted = dict(zip(rules, count_pairs(interactions, rules, most=most), strict=True))
    return {
        name: TransitionCounts(*counted[count.rule], count.max_history, count.decay) for name, count in COUNTS.items()
    }


def partial_shares(
    counts: TransitionCounts, histories: Ragged, num_items: int, exclude_history: bool, total: float = 1.0
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns the shares that a count gives to items after each history, in parts.

    The share of an item is the sum of its parts, one for each item of the history from which the count predicts it.
    The shares after a history add up to `total`, or to 0 if the count gives no item a share. With `exclude_history`,
    items of the history have no share.

    Returns:
        The index of the history, the item and the value of each part, `(N,)` each.
    """
    followers, scores = counts.followers(histories)
    rows = followers.row_ids
    items = followers.values
    if exclude_history:
        is_new = ~is_in(rows * num_items + items, histories.row_ids * num_items + histories.values)
        rows = rows[is_new]
        items = items[is_new]
        scores = scores[is_new]
    sums = np.bincount(rows, scores, len(histories))[rows]
    return rows, items, np.divide(total * scores, sums, out=np.zeros(len(rows)), where=sums > 0)
