"""Measures how often simulated studies reach the verdict "better", both without a true difference and with one that
they should find.

`python -m pytest -m long -s tests/evaluation/comparison/test_simulated_studies.py` prints the figures of
docs/evaluation.md.
"""

import itertools

import numpy as np
import pytest

from trl_rec.evaluation import compare, smallest_difference


METRIC = "ndcg@10"
GAINS = np.array([1.0, 0.5])  # NDCG@10 if the only relevant item is at rank 1, and at rank 3
Study = dict[str, dict[int, dict[str, np.ndarray]]]


def draw_study(
    rng: np.random.Generator, *, users: int, seeds: int, arms: int, seed_sd: float, effect: float = 0.0
) -> Study:
    """Returns the runs of a reference, and of arms whose expected NDCG@10 is higher by `effect`.

    Some users are easier to serve than others, and each arm serves different users well. NDCG@10 is 0 for about four
    in five users. Each run has random hits, and its expected NDCG@10 also has a random shift. The standard deviation
    of this shift is `seed_sd`.
    """
    easy = rng.normal(size=users)
    runs: Study = {}
    for arm in range(arms + 1):
        served = 1 / (1 + np.exp(1.6 - easy - 0.5 * rng.normal(size=users)))
        runs["reference" if arm == 0 else f"arm {arm}"] = by_seed = {}
        for seed in range(seeds):
            shift = (effect if arm else 0) + seed_sd * rng.normal()
            hit = rng.random(users) < np.clip(served + shift / GAINS.mean(), 0, 1)
            by_seed[seed] = {METRIC: np.where(hit, GAINS[rng.integers(0, 2, users)], 0.0)}
    return runs


def better(runs: Study, seed: int) -> list[str]:
    """Returns the names of the arms that are called better than the reference."""
    compared = compare(runs, against="reference", metric=METRIC, num_resamples=199, seed=seed)
    return [one.name for one in compared if one.verdict.startswith("better")]


def share_of_false_alarms(num_studies: int, **size: float) -> float:
    """Simulates studies without a difference, and returns the share of them that call at least one arm better."""
    rng = np.random.default_rng(0)
    return float(np.mean([bool(better(draw_study(rng, **size), study)) for study in range(num_studies)]))


def share_of_findings(num_studies: int, **size: float) -> tuple[float, float]:
    """Simulates studies whose true difference is twice the smallest difference that they can detect, as estimated from
    a pilot. Returns the share of the studies that call arm 1 better, and the median of these smallest differences.

    The pilot of a study is another study of the same size, with one arm and without a difference.
    """
    rng = np.random.default_rng(1)
    found = []
    printed = []
    for study in range(num_studies):
        pilot = draw_study(rng, **{**size, "arms": 1})
        resolved = smallest_difference(
            pilot["arm 1"], pilot["reference"], metric=METRIC, num_comparisons=size["arms"], seed=study
        )
        found.append("arm 1" in better(draw_study(rng, **size, effect=2 * resolved), study))
        printed.append(resolved)
    return float(np.mean(found)), float(np.median(printed))


# A verdict from one seed applies only to the models that were trained, not to other seeds of the methods. Studies with
# one seed are therefore simulated without the random shift (`seed_sd` 0).
SIZES = [
    {"users": users, "seeds": seeds, "arms": arms, "seed_sd": seed_sd}
    for users, seeds, arms, seed_sd in itertools.product([200, 1000], [1, 3, 6], [1, 3], [0.0, 0.02])
    if seeds > 1 or seed_sd == 0
]


@pytest.mark.slow
@pytest.mark.parametrize("size", [SIZES[0], SIZES[5]], ids=str)
def test_no_difference_is_rarely_called_better(size: dict[str, float]) -> None:
    assert share_of_false_alarms(1000, **size) <= 0.05


@pytest.mark.slow
@pytest.mark.parametrize("size", [SIZES[0], SIZES[3]], ids=str)
def test_twice_the_smallest_difference_is_found(size: dict[str, float]) -> None:
    assert share_of_findings(100, **size)[0] >= 0.9


@pytest.mark.long
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_rates_of_many_studies(size: dict[str, float]) -> None:
    false_alarms = share_of_false_alarms(1000, **size)
    found, resolved = share_of_findings(1000, **size)
    print(  # noqa: T201
        f"\n{size}: called better without a difference {false_alarms:.1%}, with a difference {found:.1%}; "
        f"median smallest difference {resolved:.4f}"
    )
    assert false_alarms <= 0.05
    assert found >= 0.9
