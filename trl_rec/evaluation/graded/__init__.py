"""Evaluates how models order rated candidates, by graded NDCG, Kendall's tau and measures of position bias. Also
contains baselines that order the same candidates."""

from typing import TYPE_CHECKING

from trl_rec._lazy import lazy_names


__all__ = [
    "RATED_BASELINES",
    "RankedLists",
    "borda",
    "evaluate_orders",
    "evaluate_rated_baselines",
    "order_consistency",
    "order_ndcg",
    "rank_correlation",
    "rank_rated_rows",
    "slot_correlation",
    "slot_profile",
]

if TYPE_CHECKING:
    from trl_rec.evaluation.graded.baselines import RATED_BASELINES
    from trl_rec.evaluation.graded.measures import (
        borda,
        order_consistency,
        order_ndcg,
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
                "order_consistency",
                "order_ndcg",
                "rank_correlation",
                "slot_correlation",
                "slot_profile",
            ],
            "ranking": ["RankedLists", "rank_rated_rows"],
            "results": ["evaluate_orders", "evaluate_rated_baselines"],
        },
    )
