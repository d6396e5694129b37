"""The table of several seeds: values are averaged over seeds before intervals and p-values are computed."""

import re

import numpy as np
import pytest

from trl_rec.evaluation import bootstrap_interval, paired_comparison, seeds_table


RNG = np.random.default_rng(0)
RUNS = {
    "baseline": [{"recall@5": RNG.random(50), "ndcg@5": RNG.random(50) / 4}],
    "model a": [{"recall@5": RNG.random(50), "ndcg@5": RNG.random(50) / 2} for _ in range(3)],
}


def cells(line: str) -> list[str]:
    return re.split(r"  +", line)


def test_intervals_and_p_values_use_each_users_mean_over_the_seeds() -> None:
    table = seeds_table(
        RUNS, metrics=["recall@5", "ndcg@5"], against="baseline", notes={"validation": {"model a": 0.25}}
    )
    head, rule, baseline, model = table.splitlines()[:4]
    assert cells(head) == ["", "recall@5", "ndcg@5", "over baseline", "p", "ndcg@5 by seed", "validation"]
    assert set(rule) == {"-"}
    assert cells(baseline)[3:] == ["1.000", "-", f"{RUNS['baseline'][0]['ndcg@5'].mean():.4f}", "-"]
    wanted = ["model a"]
    for metric in ("recall@5", "ndcg@5"):
        values = sum(run[metric] for run in RUNS["model a"]) / 3
        low, high = bootstrap_interval(values)
        wanted.append(f"{values.mean():.4f} ±{(high - low) / 2:.4f}")
    base = RUNS["baseline"][0]["ndcg@5"]
    wanted += [f"{values.mean() / base.mean():.3f}", f"{paired_comparison(values, base).p_value:.3f}"]
    by_seed = " ".join(f"{run['ndcg@5'].mean():.4f}" for run in RUNS["model a"])
    assert cells(model) == [*wanted, by_seed, "0.2500"]


def test_users_with_the_same_mean_over_seeds_give_a_narrow_interval() -> None:
    """Each of two seeds hits one half of the users, so that all users have the same mean."""
    half = np.repeat([0.0, 1.0], 25)
    table = seeds_table({"model": [{"hit@1": half}, {"hit@1": 1 - half}]}, metrics=["hit@1"], against="model")
    assert "0.5000 ±0.0000" in table
    assert "0.5000 0.5000" in table


@pytest.mark.parametrize("value", [0.0, -0.25])
def test_a_reference_not_above_zero_is_compared_by_difference(value: float) -> None:
    runs = {"baseline": [{"reward": np.full(50, value)}], "model": [{"reward": np.full(50, -0.125)}]}
    lines = seeds_table(runs, metrics=["reward"], against="baseline").splitlines()
    assert [cells(line)[2] for line in lines[2:4]] == ["+0.0000", f"{-0.125 - value:+.4f}"]


@pytest.mark.parametrize(("runs", "against"), [(RUNS, "counter"), ({**RUNS, "b": []}, "baseline"), ({}, "baseline")])
def test_a_missing_reference_or_run_is_an_error(runs: dict, against: str) -> None:
    with pytest.raises(ValueError, match=f"one run of each recommender, including '{against}'"):
        seeds_table(runs, metrics=["ndcg@5"], against=against)
