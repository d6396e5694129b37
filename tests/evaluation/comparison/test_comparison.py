"""Tests comparisons of recommenders with several seeds: pairing, Holm's adjustment, verdicts, and the table."""

import re

import numpy as np
import pytest

from trl_rec.evaluation import bootstrap_interval, compare, comparison_table, paired_comparison
from trl_rec.evaluation.comparison.compare import adjust, holm


RNG = np.random.default_rng(0)
RUNS = {
    "baseline": [{"recall@5": RNG.random(50), "ndcg@5": RNG.random(50) / 4}],
    "model a": [{"recall@5": RNG.random(50), "ndcg@5": RNG.random(50) / 2} for _ in range(3)],
    "model b": [{"recall@5": RNG.random(50), "ndcg@5": RNG.random(50) / 4}],
}


def cells(line: str) -> list[str]:
    return re.split(r"  +", line)


def constant(*means: float) -> list[dict[str, np.ndarray]]:
    """Returns one run per mean. The values of its users scatter around the mean, more widely in each further run."""
    noise = np.random.default_rng(1).normal(0, 0.01, 100)
    return [{"ndcg@5": mean + noise * (1 + seed)} for seed, mean in enumerate(means)]


def test_all_seeds_of_a_recommender_are_compared_with_the_reference() -> None:
    model_a, model_b = compare(RUNS, against="baseline", metric="ndcg@5")
    values = np.stack([run["ndcg@5"] for run in RUNS["model a"]])
    reference = RUNS["baseline"][0]["ndcg@5"]
    wanted = paired_comparison(values, reference, num_resamples=5000)
    assert (model_a.difference, model_a.low, model_a.high, model_a.p_value) == pytest.approx(tuple(wanted))
    assert (model_a.name, model_a.against, model_a.num_users, model_a.num_seeds) == ("model a", "baseline", 50, 3)
    assert (model_a.mean, model_a.reference) == pytest.approx((values.mean(), reference.mean()))
    assert model_a.by_seed == pytest.approx(values.mean(1))
    assert model_a.adjusted_p == min(1, 2 * model_a.p_value)
    assert (model_a.same_sign, model_a.verdict) == (True, "better")
    assert model_b.verdict == "no significant difference, one seed"


def test_holm_multiplies_the_smallest_p_value_most_and_keeps_the_order() -> None:
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.5, 0.9]) == [1, 1]
    assert holm([]) == []


def test_adjusting_comparisons_together_updates_their_verdicts() -> None:
    runs = {"a": constant(0.5), "b": constant(0.5015)}
    (alone,) = compare(runs, against="a", metric="ndcg@5")
    assert alone.verdict == "better, one seed"
    many = adjust([alone] * 1000)
    assert {one.verdict for one in many} == {"no significant difference, one seed"}


@pytest.mark.parametrize(
    ("metric", "means", "verdict"),
    [
        ("ndcg@5", [0.6, 0.7, 0.65], "better"),
        ("ndcg@5", [0.4, 0.3, 0.35], "worse"),
        ("ndcg@5", [0.6], "better, one seed"),
        ("ndcg@5", [0.5, 0.5, 0.5], "no significant difference"),
        ("mgu@5", [0.4], "better, one seed"),
        ("slot_bias", [0.4], "lower, one seed"),
        ("reward/mine", [0.4], "worse, one seed"),
    ],
)
def test_the_verdict_depends_on_the_metric_the_difference_and_the_seeds(
    metric: str, means: list[float], verdict: str
) -> None:
    runs = {
        name: [{metric: run["ndcg@5"]} for run in of_name]
        for name, of_name in {"base": constant(0.5), "arm": constant(*means)}.items()
    }
    (comparison,) = compare(runs, against="base", metric=metric)
    assert comparison.verdict == verdict


def test_a_seed_with_another_sign_prevents_the_verdict_better() -> None:
    means = 0.5 + np.linspace(-0.001, 0.1, 12)  # only the smallest difference is below 0
    (comparison,) = compare({"base": constant(0.5), "arm": constant(*means)}, against="base", metric="ndcg@5")
    assert comparison.adjusted_p < 0.05
    assert (comparison.same_sign, comparison.verdict) == (False, "the seeds disagree on the direction")


def test_runs_are_paired_by_seed() -> None:
    first, second, third = constant(0.5, 0.6, 0.7)
    a = {2: third, 0: first, 5: first}
    b = {0: first, 1: second, 2: third}
    (comparison,) = compare({"a": a, "b": b}, against="a", metric="ndcg@5")
    assert (comparison.difference, comparison.num_seeds, comparison.p_value) == (0, 2, 1)

    # Without a common seed, runs are paired in order. The third run has no partner, so it is left out.
    (unpaired,) = compare(
        {"a": {0: first, 1: second}, "b": {7: first, 8: second, 9: third}}, against="a", metric="ndcg@5"
    )
    assert (unpaired.difference, unpaired.num_seeds) == (0, 2)

    # A run without a seed is paired with every run of the other recommender.
    (with_all,) = compare({"a": {None: first}, "b": b}, against="a", metric="ndcg@5")
    assert with_all.num_seeds == 3
    (one,) = compare({"a": {0: first}, "b": b}, against="a", metric="ndcg@5")
    assert (one.num_seeds, one.verdict.endswith("one seed")) == (1, True)


def test_users_without_a_value_are_left_out() -> None:
    values = np.array([0.1, np.nan, 0.3, 0.4, 0.8])
    other = np.array([0.1, 0.2, np.nan, 0.4, 0.6])
    (comparison,) = compare({"a": [{"m": values}], "b": [{"m": other}]}, against="b", metric="m")
    assert (comparison.num_users, comparison.difference) == (3, pytest.approx(0.2 / 3))
    with pytest.raises(ValueError, match="no user has a value of m for both a and b; compare another metric"):
        compare({"a": [{"m": values}], "b": [{"m": np.full(5, np.nan)}]}, against="b", metric="m")


def test_the_table_has_a_row_per_recommender_and_its_verdict() -> None:
    compared = compare(RUNS, against="baseline", metric="ndcg@5")
    table = comparison_table(RUNS, compared, metrics=["recall@5"], notes={"validation": {"model a": 0.25}})
    head, rule, baseline, model = table.splitlines()[:4]
    headings = ["", "recall@5", "ndcg@5", "difference", "95 % interval", "p", "adjusted p", "ndcg@5 by seed"]
    assert cells(head) == [*headings, "validation", "verdict"]
    assert set(rule) == {"-"}
    mean = f"{RUNS['baseline'][0]['ndcg@5'].mean():.4f}"
    assert cells(baseline)[3:] == ["-", "-", "-", "-", mean, "-", "reference"]

    wanted = ["model a"]
    for metric in ("recall@5", "ndcg@5"):
        values = np.stack([run[metric] for run in RUNS["model a"]])
        low, high = bootstrap_interval(values)
        wanted.append(f"{values.mean():.4f} ±{(high - low) / 2:.4f}")
    first = compared[0]
    wanted += [f"{first.difference:+.4f}", f"{first.low:+.4f} to {first.high:+.4f}"]
    wanted += [f"{first.p_value:.4f}", f"{first.adjusted_p:.4f}", " ".join(f"{mean:.4f}" for mean in first.by_seed)]
    assert cells(model) == [*wanted, "0.2500", "better"]
    assert (
        "50 users; ndcg@5 of each recommender is compared with that of baseline, paired by user and by seed" in table
    )


@pytest.mark.parametrize(("alpha", "written"), [(0.05, ".05"), (0.1, ".1"), (0.001, ".001")])
def test_the_legend_names_the_significance_level_of_the_verdicts(alpha: float, written: str) -> None:
    compared = compare(RUNS, against="baseline", metric="ndcg@5", alpha=alpha)
    assert [one.alpha for one in compared] == [alpha, alpha]
    assert f"better, worse: the adjusted p is below {written}, and" in comparison_table(RUNS, compared)


@pytest.mark.parametrize(
    ("runs", "against", "message"),
    [
        (RUNS, "counter", "against is 'counter', but there are runs only of "),
        ({**RUNS, "c": []}, "baseline", "there are no runs of 'c'; give at least one"),
        ({}, "baseline", "there are no runs; give at least one run of each recommender, and of 'baseline'"),
    ],
)
def test_a_missing_reference_or_run_is_an_error(runs: dict, against: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        compare(runs, against=against, metric="ndcg@5")


def test_runs_that_cannot_be_compared_are_an_error() -> None:
    with pytest.raises(ValueError, match="model a has no values of mrr@5 per user; choose one of recall@5, ndcg@5"):
        compare(RUNS, against="baseline", metric="mrr@5")
    fewer = {"few": [{"ndcg@5": np.zeros(3)}]}
    with pytest.raises(ValueError, match="few has 3 users, but baseline has 50; compare recommenders over the same"):
        compare(RUNS | fewer, against="baseline", metric="ndcg@5")
    with pytest.raises(ValueError, match="the runs of mixed have 3 and 50 users"):
        compare(RUNS | {"mixed": [*fewer["few"], *RUNS["model b"]]}, against="baseline", metric="ndcg@5")
    with pytest.raises(ValueError, match="alpha must be"):
        compare(RUNS, against="baseline", metric="ndcg@5", alpha=0)
    with pytest.raises(ValueError, match="at least one recommender besides the reference"):
        comparison_table(RUNS, [])
