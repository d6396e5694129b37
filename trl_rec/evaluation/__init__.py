"""Evaluates recommenders and baselines with ranking metrics, compares them with confidence intervals and paired tests,
and writes tables and reports."""

from typing import TYPE_CHECKING

from trl_rec._lazy import lazy_names


__all__ = [
    "BeamGap",
    "Comparison",
    "Evaluation",
    "EvaluationConfig",
    "KeptEvaluation",
    "ListBatch",
    "PairedComparison",
    "Policy",
    "PopularityBaseline",
    "PriorChoice",
    "RandomBaseline",
    "RankedLists",
    "Rankings",
    "TransitionBaseline",
    "beam_gap_table",
    "best_of_split",
    "bootstrap_interval",
    "borda",
    "check_comparable",
    "choose_prior",
    "closing_verdict",
    "compare",
    "comparison_table",
    "draw_lists",
    "evaluate_baselines",
    "evaluate_best_of",
    "evaluate_orders",
    "evaluate_policy",
    "evaluate_product",
    "evaluate_rankings",
    "evaluate_rated_baselines",
    "evaluate_split",
    "evaluate_with_baselines",
    "evaluation_settings",
    "measure_beam_gap",
    "measure_beam_gaps",
    "metrics_table",
    "paired_comparison",
    "per_user_metrics",
    "rank_histories",
    "rank_rated_rows",
    "rank_split",
    "read_evaluation",
    "read_lists",
    "readable_lists",
    "score_lists",
    "score_split",
    "slices",
    "slices_table",
    "slot_profile",
    "smallest_difference",
    "verdict",
    "write_beam_gaps",
    "write_evaluation",
    "write_metrics",
    "write_report",
    "write_results",
]

if TYPE_CHECKING:
    from trl_rec.evaluation.baselines import PopularityBaseline, RandomBaseline, TransitionBaseline
    from trl_rec.evaluation.beam_gap import (
        BeamGap,
        beam_gap_table,
        measure_beam_gap,
        measure_beam_gaps,
        write_beam_gaps,
    )
    from trl_rec.evaluation.best_of_n import best_of_split, draw_lists, evaluate_best_of
    from trl_rec.evaluation.comparison.closing import closing_verdict
    from trl_rec.evaluation.comparison.compare import Comparison, compare, verdict
    from trl_rec.evaluation.comparison.resolution import smallest_difference
    from trl_rec.evaluation.comparison.table import comparison_table
    from trl_rec.evaluation.comparison.user_slices import slices, slices_table
    from trl_rec.evaluation.evaluator import evaluate_rankings, per_user_metrics
    from trl_rec.evaluation.given_lists import read_lists
    from trl_rec.evaluation.graded.measures import borda, slot_profile
    from trl_rec.evaluation.graded.ranking import RankedLists, rank_rated_rows
    from trl_rec.evaluation.graded.results import evaluate_orders, evaluate_rated_baselines
    from trl_rec.evaluation.intervals import PairedComparison, bootstrap_interval, paired_comparison
    from trl_rec.evaluation.kept.metrics_file import write_metrics
    from trl_rec.evaluation.kept.reading import KeptEvaluation, check_comparable, read_evaluation
    from trl_rec.evaluation.kept.writing import write_evaluation
    from trl_rec.evaluation.lists import readable_lists
    from trl_rec.evaluation.policy import Policy, evaluate_policy
    from trl_rec.evaluation.prior_choice import PriorChoice, choose_prior
    from trl_rec.evaluation.prior_rows import evaluate_product
    from trl_rec.evaluation.rank import rank_histories, rank_split
    from trl_rec.evaluation.rankings import Rankings
    from trl_rec.evaluation.report.page import write_report
    from trl_rec.evaluation.results import Evaluation, evaluate_baselines, evaluate_split
    from trl_rec.evaluation.rewards import ListBatch, score_lists, score_split
    from trl_rec.evaluation.saved_model.config import EvaluationConfig
    from trl_rec.evaluation.saved_model.evaluating import evaluate_with_baselines
    from trl_rec.evaluation.saved_model.settings import evaluation_settings
    from trl_rec.evaluation.saved_model.writing import write_results
    from trl_rec.evaluation.tables import metrics_table
else:
    __getattr__, __dir__ = lazy_names(
        __name__,
        {
            "prior_rows": ["evaluate_product"],
            "prior_choice": ["PriorChoice", "choose_prior"],
            "baselines": ["PopularityBaseline", "RandomBaseline", "TransitionBaseline"],
            "beam_gap": ["BeamGap", "beam_gap_table", "measure_beam_gap", "measure_beam_gaps", "write_beam_gaps"],
            "best_of_n": ["best_of_split", "draw_lists", "evaluate_best_of"],
            "comparison.closing": ["closing_verdict"],
            "comparison.compare": ["Comparison", "compare", "verdict"],
            "comparison.resolution": ["smallest_difference"],
            "comparison.table": ["comparison_table"],
            "comparison.user_slices": ["slices", "slices_table"],
            "evaluator": ["evaluate_rankings", "per_user_metrics"],
            "given_lists": ["read_lists"],
            "graded.measures": ["borda", "slot_profile"],
            "graded.ranking": ["RankedLists", "rank_rated_rows"],
            "graded.results": ["evaluate_orders", "evaluate_rated_baselines"],
            "intervals": ["PairedComparison", "bootstrap_interval", "paired_comparison"],
            "kept.metrics_file": ["write_metrics"],
            "kept.reading": ["KeptEvaluation", "check_comparable", "read_evaluation"],
            "kept.writing": ["write_evaluation"],
            "lists": ["readable_lists"],
            "policy": ["Policy", "evaluate_policy"],
            "rank": ["rank_histories", "rank_split"],
            "rankings": ["Rankings"],
            "report.page": ["write_report"],
            "results": ["Evaluation", "evaluate_baselines", "evaluate_split"],
            "rewards": ["ListBatch", "score_lists", "score_split"],
            "saved_model.config": ["EvaluationConfig"],
            "saved_model.evaluating": ["evaluate_with_baselines"],
            "saved_model.settings": ["evaluation_settings"],
            "saved_model.writing": ["write_results"],
            "tables": ["metrics_table"],
        },
    )
