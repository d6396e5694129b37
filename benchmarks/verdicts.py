"""How often the verdict "better" comes in synthetic studies, without and with a difference.

    python benchmarks/verdicts.py [--studies 1000] [--users 200 1000] [--seeds 1 3 6] [--arms 1 3] [--seed_sd 0 0.02]

Each study compares some arms with a reference on NDCG@10. Users differ in how easily they are served, arms in the
users that they serve well, and runs in the items that they hit, so about three in four values are 0. With `--seed_sd`,
the mean of every run varies with its seed as well. Without a difference, the share of studies that call any arm better
should be at most 5 %; given a difference of twice the smallest one that a pilot of the same size resolves, at least
90 % should call it better.

With one seed, a study without a difference is one whose *models* do not differ; `--seed_sd` applies to several seeds.
"""

from __future__ import annotations

import argparse
import time
from itertools import product

import numpy as np

from trl_rec.evaluation import compare, smallest_difference


GAINS = np.array([1.0, 0.5])  # NDCG@10 of one relevant item at ranks 1 and 3; few values make the simulation fast
METRIC = "ndcg@10"


def draw_study(
    rng: np.random.Generator, *, num_users: int, num_seeds: int, num_arms: int, seed_sd: float, effect: float = 0.0
) -> dict[str, dict[int, dict[str, np.ndarray]]]:
    """The runs of a reference and of arms whose expected NDCG@10 is higher by `effect`."""
    easy = rng.normal(size=num_users)
    runs: dict[str, dict[int, dict[str, np.ndarray]]] = {}
    for arm in range(num_arms + 1):
        served = 1 / (1 + np.exp(1.6 - easy - 0.5 * rng.normal(size=num_users)))
        runs["reference" if arm == 0 else f"arm {arm}"] = by_seed = {}
        for seed in range(num_seeds):
            shift = (effect if arm else 0) + seed_sd * rng.normal()
            hit = rng.random(num_users) < np.clip(served + shift / GAINS.mean(), 0, 1)
            by_seed[seed] = {METRIC: np.where(hit, GAINS[rng.integers(0, 2, num_users)], 0.0)}
    return runs


def is_better(runs: dict[str, dict[int, dict[str, np.ndarray]]], seed: int, *names: str) -> bool:
    """Whether any arm is called better, or any of `names` if given."""
    compared = compare(runs, against="reference", metric=METRIC, num_resamples=999, seed=seed)
    return any(one.verdict.startswith("better") for one in compared if not names or one.name in names)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--studies", type=int, default=1000)
    parser.add_argument("--users", type=int, nargs="+", default=[200, 1000])
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 3, 6])
    parser.add_argument("--arms", type=int, nargs="+", default=[1, 3])
    parser.add_argument("--seed_sd", type=float, nargs="+", default=[0.0, 0.02])
    arguments = parser.parse_args()

    print("users  seeds  seed sd  arms   better without   with   smallest difference (median)  seconds")
    for num_users, num_seeds, seed_sd, num_arms in product(
        arguments.users, arguments.seeds, arguments.seed_sd, arguments.arms
    ):
        if num_seeds == 1 and seed_sd > 0:
            continue
        size = {"num_users": num_users, "num_seeds": num_seeds, "num_arms": num_arms, "seed_sd": seed_sd}
        rng = np.random.default_rng(0)
        start = time.perf_counter()
        without: list[bool] = []
        found: list[bool] = []
        printed: list[float] = []
        for study in range(arguments.studies):
            runs = draw_study(rng, **size)
            without.append(is_better(runs, study))

            # The study without a difference is the pilot of one with twice the smallest difference.
            pilot = {"metric": METRIC, "num_comparisons": num_arms, "seed": study}
            printed.append(smallest_difference(runs["arm 1"], runs["reference"], **pilot))
            found.append(is_better(draw_study(rng, **size, effect=2 * printed[-1]), study, "arm 1"))
        print(
            f"{num_users:>5}  {num_seeds:>5}  {seed_sd:>7g}  {num_arms:>4}  {np.mean(without):>15.1%}  "
            f"{np.mean(found):>5.1%}  {np.median(printed):>28.4f}  {time.perf_counter() - start:>7.0f}",
            flush=True,
        )


if __name__ == "__main__":
    main()
