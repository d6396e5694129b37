"""Measures orders of rated candidates: graded NDCG, Kendall's tau, consistency between shuffles, and their
baselines."""

from typing import TYPE_CHECKING

from trl_rec._lazy import lazy_names


__all__ = [
    "RATED_BASELINES",
    "RankedLists",
    "borda",
    "evaluate_orders",
    "evaluate_rated_baselines",
    "graded_ndcg_of",
    "order_consistency",
    "rank_correlation",
    "rank_rated_rows",
    "slot_correlation",
    "slot_profile",
]

if TYPE_CHECKING:
    from trl_rec.evaluation.graded.baselines import RATED_BASELINES
    from trl_rec.evaluation.graded.measures import (
        borda,
        graded_ndcg_of,
        order_consistency,
        rank_correlation,
        slot_correlation,
        slot_profile,
    )
    from trl_rec.evaluation.graded.ranking import RankedLists, rank_rated_rows
    from trl_rec.evaluation.graded.results import evaluate_orders, evaluate_rated_baselines
else:
    __getattr__, __dir__ = lazy_names(
        __name__,
        {
            "baselines": ["RATED_BASELINES"],
            "measures": [
                "borda",
                "graded_ndcg_of",
                "order_consistency",
                "rank_correlation",
                "slot_correlation",
                "slot_profile",
            ],
            "ranking": ["RankedLists", "rank_rated_rows"],
            "results": ["evaluate_orders", "evaluate_rated_baselines"],
        },
    )
