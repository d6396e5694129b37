"""Tests the tables of results, as text and as Markdown."""

import pytest

from trl_rec.evaluation.results import Evaluation
from trl_rec.evaluation.tables import metrics_table


RESULTS = {
    "popularity": Evaluation({"recall@10": 0.0859, "gini@10": 0.98, "popularity@10": 312.25, "invalid": 0}),
    "bear|ml": Evaluation(
        {"recall@10": 0.1835, "gini@10": 0.8, "popularity@10": 170.0, "invalid": 3, "ndcg@10": 0.1},
        {"recall@10": (0.16, 0.208)},
    ),
}


def test_columns_are_aligned_and_the_best_values_marked():
    text = metrics_table(
        RESULTS, columns=["recall@10", "gini@10", "popularity@10", "ndcg@10"], caption="ml-100k, test"
    )
    lines = text.splitlines()
    assert lines[:2] == ["ml-100k, test", ""]
    assert lines[2:6] == [
        "                  recall@10  gini@10  popularity@10  ndcg@10",
        "------------------------------------------------------------",
        "popularity          0.0859   0.9800           312.2        -",
        "bear|ml     0.1835* ±0.0240  0.8000*          170.0   0.1000",
    ]
    gini = "gini: inequality of how often items are recommended, from 0 (all equally) to 1 (only one item)"
    assert f"{gini} (lower is better)" in lines
    assert "±: half the width of the 95 % bootstrap interval over users" in lines
    assert lines[-1] == "*: best of its column"


def test_decimal_points_are_aligned():
    lines = metrics_table(RESULTS, columns=["gini@10"]).splitlines()
    assert lines[2].index(".") == lines[3].index(".")


def test_markdown_has_bold_best_values_and_escaped_names():
    lines = metrics_table(RESULTS, columns=["recall@10"], intervals="range", markdown=True).splitlines()
    assert lines[:4] == [
        "|  | recall@10 |",
        "| --- | ---: |",
        "| popularity | 0.0859 |",
        "| bear\\|ml | **0.1835** [0.1600, 0.2080] |",
    ]
    assert lines[-1] == "- bold: best of its column"


def test_the_default_columns_are_metrics_at_the_largest_k_and_counts_of_errors():
    header = metrics_table(RESULTS | {"k1": Evaluation({"recall@1": 0.5})}).splitlines()[0]
    assert header.split() == ["recall@10", "ndcg@10", "gini@10", "popularity@10", "invalid"]
    assert "invalid" not in metrics_table({"popularity": RESULTS["popularity"]}).splitlines()[0]


def test_recall_at_a_larger_cutoff_and_preferences_have_columns():
    """A larger cutoff of recall does not hide the columns of the other metrics."""
    metrics = {"recall@10": 0.2, "recall@50": 0.4, "ndcg@10": 0.1, "liked@10": 0.3, "disliked@10": 0.2}
    assert metrics_table({"model": Evaluation(metrics)}).split("\n")[0].split() == [
        "recall@10",
        "recall@50",
        "ndcg@10",
    ]
    text = metrics_table({"model": Evaluation(metrics | {"preference_accuracy": 0.6})})
    header = text.splitlines()[0].split()
    assert header[3:] == ["preference_accuracy", "liked@10", "disliked@10"]
    assert "chance is 0.5 (higher is better)" in text and "rated 2 or less (lower is better)" in text


def test_a_single_result_and_equal_results_have_no_best_value():
    one = Evaluation({"recall@1": 0.5})
    assert "0.5000*" not in metrics_table({"one": one}) + metrics_table({"one": one, "two": one})


def test_intervals_can_be_left_out():
    assert "±" not in metrics_table(RESULTS, intervals="none")


def test_bad_input_is_an_error():
    with pytest.raises(ValueError, match="no results to show"):
        metrics_table({})
    with pytest.raises(ValueError, match="unknown intervals 'both'; choose half_width, range or none"):
        metrics_table(RESULTS, intervals="both")
