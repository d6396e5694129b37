"""What a recommender is worth: metrics, intervals and paired tests, and the floors it is shown beside."""

from trl_rec._lazy import lazy_names


__all__ = [
    "Evaluation",
    "ListBatch",
    "PairedComparison",
    "PopularityFloor",
    "RandomFloor",
    "TransitionFloor",
    "bootstrap_interval",
    "evaluate_floors",
    "evaluate_rankings",
    "evaluate_split",
    "metrics_table",
    "paired_comparison",
    "per_user_metrics",
    "rank_histories",
    "rank_split",
    "readable_lists",
    "score_lists",
    "write_metrics",
]
__getattr__, __dir__ = lazy_names(
    __name__,
    {
        "Evaluation": "results",
        "ListBatch": "rewards",
        "PairedComparison": "intervals",
        "PopularityFloor": "floors",
        "RandomFloor": "floors",
        "TransitionFloor": "floors",
        "bootstrap_interval": "intervals",
        "evaluate_floors": "results",
        "evaluate_rankings": "evaluator",
        "evaluate_split": "results",
        "metrics_table": "tables",
        "paired_comparison": "intervals",
        "per_user_metrics": "evaluator",
        "rank_histories": "rank",
        "rank_split": "rank",
        "readable_lists": "lists",
        "score_lists": "rewards",
        "write_metrics": "metrics_file",
    },
)
