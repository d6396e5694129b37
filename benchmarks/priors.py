"""Compares the rankings of three priors without a model: transition ("counter"), and mixture with and without titles.

The mixture is a weighted sum of several tables, which count pairs of items in different ways. With titles, one more
table compares the titles of two items. The weights of the mixture are fitted to one random half of the validation
users. All priors are measured on the other half. Each seed divides the users differently.

    python benchmarks/priors.py data/beauty data/ml-100k
"""

from __future__ import annotations

import argparse
import logging
from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
import torch

from trl_rec.data import RecDataset, load
from trl_rec.data.dataset import split_rows
from trl_rec.decoding import MixturePrior, Prior, TransitionPrior
from trl_rec.evaluation.evaluator import per_user_metrics
from trl_rec.evaluation.tables import aligned


if TYPE_CHECKING:
    from datasets import Dataset

K = 10
BATCH = 256


def main() -> None:
    """Prints NDCG@10 of each prior and seed, one table per dataset."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("datasets", nargs="+", help="folders made by trl-rec prepare")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    arguments = parser.parse_args()
    logging.disable(logging.INFO)

    for path in arguments.datasets:
        dataset = load(path)
        rows = [["prior", *(f"seed {seed}" for seed in arguments.seeds)]]
        for name, fit in KINDS.items():
            cells = [f"{measure(dataset, fit, seed):.4f}" for seed in arguments.seeds]
            rows.append([name, *cells])
        print(f"{path}: NDCG@{K} on half of the validation users, history excluded\n")
        print("\n".join(aligned(rows)), "\n")


def counter(dataset: RecDataset, _: Dataset) -> Prior:
    """Returns the transition prior, which is not fitted to validation users."""
    return TransitionPrior.fit(dataset.train, len(dataset.catalog))


def mixture(dataset: RecDataset, fitting: Dataset) -> Prior:
    """Returns the mixture that counts only interactions."""
    return MixturePrior.fit(dataset.train, fitting, len(dataset.catalog))


def mixture_with_titles(dataset: RecDataset, fitting: Dataset) -> Prior:
    """Returns the mixture that counts interactions, and also compares titles."""
    return MixturePrior.fit(dataset.train, fitting, len(dataset.catalog), titles=dataset.catalog.titles)


KINDS: dict[str, Callable[[RecDataset, Dataset], Prior]] = {
    "counter": counter,
    "mixture without titles": mixture,
    "mixture": mixture_with_titles,
}


def measure(dataset: RecDataset, fit: Callable[[RecDataset, Dataset], Prior], seed: int) -> float:
    """Fits a prior to one half of the validation users, and returns its mean NDCG@10 over the other half."""
    # 1. Divide the users at random.
    order = np.random.default_rng(seed).permutation(len(dataset.validation))
    half = len(order) // 2
    prior = fit(dataset, dataset.validation.select(np.sort(order[:half])))
    held_out = dataset.validation.select(np.sort(order[half:]))

    # 2. Rank the items that are not in the history.
    histories = split_rows(held_out, "history")
    best = []
    for start in range(0, len(histories), BATCH):
        some = histories.take(np.arange(start, min(start + BATCH, len(histories))))
        weights = prior.weights(some)
        dense = torch.zeros(len(some), len(dataset.catalog) + 1)  # the last column takes the padding
        if weights.items is not None and weights.values is not None:
            dense.scatter_add_(1, weights.items.long() % dense.shape[1], weights.values.float())
        dense = dense[:, :-1]
        if weights.shared is not None:
            dense = dense + weights.shared
        dense[some.row_ids, some.values] = -1
        best.append(dense.topk(K, 1).indices)

    # 3. Measure the rankings.
    ranked = torch.cat(best).numpy()
    return float(per_user_metrics(ranked, split_rows(held_out, "targets"), ks=[K])[f"ndcg@{K}"].mean())


if __name__ == "__main__":
    main()
