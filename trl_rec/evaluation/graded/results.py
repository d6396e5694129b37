"""Evaluates the orders in which a model or a baseline ranks rated candidates.

Legend: N rows, m candidates per row (padded), S rankings of the same candidates.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from datasets import Dataset

from trl_rec.data.dataset import split_rows
from trl_rec.evaluation.graded.baselines import RATED_BASELINES
from trl_rec.evaluation.graded.measures import order_consistency, order_ndcg, rank_correlation, slot_correlation
from trl_rec.evaluation.graded.ranking import RankedLists
from trl_rec.evaluation.intervals import bootstrap_interval
from trl_rec.evaluation.rankings import Rankings
from trl_rec.evaluation.results import Evaluation


def evaluate_orders(
    lists: RankedLists, rows: Dataset, *, ks: Sequence[int] = (1, 3, 5, 10), seed: int = 0
) -> Evaluation:
    """Evaluates the orders of the rated candidates of each row, with bootstrap intervals over the rows.

    Args:
        lists: The orders, as returned by [`rank_rated_rows`] for these rows.
        rows: Rows from [`held_out_rows`].
        ks (*optional*, defaults to `(1, 3, 5, 10)`): The cutoffs k of graded NDCG.
        seed (*optional*, defaults to `0`): Seed of the bootstrap.

    Returns:
        The evaluation, with the metrics `graded_ndcg@k` for every k, and `tau`, which is Kendall's tau between a
        model's order and the order of the ratings. These metrics are averaged over the S rankings of each row (see
        [`RankedLists`]). If S is above 1, the metrics also include `consistency` (how much the S rankings agree, see
        [`order_consistency`]) and `slot_bias` (how much a ranking follows the order of the candidates in the prompt,
        see [`slot_correlation`]). `slot_bias` is left out if each ranking combines several prompts. The field
        `rankings` contains only the first ranking of each row.
    """
    ratings = split_rows(rows, "ratings").padded(fill=-1).astype(float)  # (N, m)
    orders = [lists.places[:, order] for order in range(lists.places.shape[1])]  # S arrays (N, m)

    per_user = {f"graded_ndcg@{k}": np.mean([order_ndcg(places, ratings, k) for places in orders], 0) for k in ks}
    # The ratings are negated, because the lowest place is the best, but the highest rating is the best.
    per_user["tau"] = np.mean([rank_correlation(places, -ratings) for places in orders], 0)
    if len(orders) > 1:
        per_user["consistency"] = order_consistency(lists.places)
        if lists.slots is not None:
            per_user["slot_bias"] = slot_correlation(lists.places, lists.slots)

    metrics: dict[str, float] = {name: float(values.mean()) for name, values in per_user.items()}
    intervals = {name: bootstrap_interval(values, seed=seed) for name, values in per_user.items()}
    return Evaluation({**metrics, "num_users": len(ratings)}, intervals, per_user, _rankings(orders[0], rows))


def _rankings(places: np.ndarray, rows: Dataset) -> Rankings:
    """Returns the candidates of each row in the order of their places, `(N, m)`."""
    candidates = split_rows(rows, "candidates").padded()
    items = np.full_like(candidates, -1)
    row, candidate = np.nonzero(places >= 0)
    items[row, places[row, candidate]] = candidates[row, candidate]
    return Rankings(items)


def evaluate_rated_baselines(
    train: Dataset, rows: Dataset, num_items: int, *, ks: Sequence[int] = (1, 3, 5, 10), seed: int = 0
) -> dict[str, Evaluation]:
    """Fits the baselines `random`, `popularity`, `item mean` and `bias` on a training split and evaluates them.

    Args:
        train: `RecDataset.train`.
        rows: Rows from [`held_out_rows`] to evaluate on.
        num_items: Size of the catalogue.
        ks (*optional*, defaults to `(1, 3, 5, 10)`): The cutoffs k of graded NDCG.
        seed (*optional*, defaults to `0`): Seed of the random baseline and of the bootstrap.

    Returns:
        `dict[str, Evaluation]`: the evaluation of each baseline by name.
    """
    results = {}
    for name, baseline in RATED_BASELINES.items():
        places = baseline(train, rows, num_items, seed)[:, None]  # one order per row
        results[name] = evaluate_orders(RankedLists(places, places), rows, ks=ks, seed=seed)
    return results
