"""The evaluation of orders of rated candidates, and of the baselines over the same lists in the same way."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from datasets import Dataset

from trl_rec.data.dataset import split_rows
from trl_rec.evaluation.graded.baselines import RATED_BASELINES
from trl_rec.evaluation.graded.measures import graded_ndcg_of, order_consistency, rank_correlation, slot_correlation
from trl_rec.evaluation.graded.ranking import RankedLists
from trl_rec.evaluation.intervals import bootstrap_interval
from trl_rec.evaluation.results import Evaluation


def evaluate_orders(
    lists: RankedLists, rows: Dataset, *, ks: Sequence[int] = (1, 3, 5, 10), seed: int = 0
) -> Evaluation:
    """What the orders of rated rows are worth, with intervals over the rows.

    Args:
        lists: What [`rank_rated_rows`] returned for these rows.
        rows: Rows of [`held_out_rows`].
        ks (*optional*, defaults to `(1, 3, 5, 10)`): Lengths that lists are cut at.
        seed (*optional*, defaults to `0`): Of the bootstrap.

    Returns:
        `graded_ndcg@k` for every k and `tau`, Kendall's with the true order, means over the orders that a list was
        shown in; and where there are several of those, `consistency` and `slot_bias`.
    """
    ratings = split_rows(rows, "ratings").padded(fill=-1).astype(float)
    orders = range(lists.places.shape[1])
    per_user = {
        f"graded_ndcg@{k}": np.mean([graded_ndcg_of(lists.places[:, one], ratings, k) for one in orders], 0)
        for k in ks
    }
    per_user["tau"] = np.mean([rank_correlation(lists.places[:, one], -ratings) for one in orders], 0)
    if len(orders) > 1:
        per_user["consistency"] = order_consistency(lists.places)
        per_user["slot_bias"] = slot_correlation(lists.places, lists.slots)
    metrics: dict[str, float] = {name: float(values.mean()) for name, values in per_user.items()}
    intervals = {name: bootstrap_interval(values, seed=seed) for name, values in per_user.items()}
    return Evaluation({**metrics, "num_users": len(ratings)}, intervals, per_user)


def evaluate_rated_baselines(
    train: Dataset, rows: Dataset, num_items: int, *, ks: Sequence[int] = (1, 3, 5, 10), seed: int = 0
) -> dict[str, Evaluation]:
    """The baselines `random`, `popularity`, `item mean` and `bias`, learned from a training split, on rated rows.

    Args:
        train: `RecDataset.train`.
        rows: Rows of [`held_out_rows`].
        num_items: Size of the catalogue.
        ks (*optional*, defaults to `(1, 3, 5, 10)`): Lengths that lists are cut at.
        seed (*optional*, defaults to `0`): Of the random baseline and of the bootstrap.
    """
    results = {}
    for name, baseline in RATED_BASELINES.items():
        places = baseline(train, rows, num_items, seed)[:, None]
        results[name] = evaluate_orders(RankedLists(places, places), rows, ks=ks, seed=seed)
    return results
