"""Measures how well popularity and mean ratings separate held-out items that a user liked from disliked ones.

    python benchmarks/preference_headroom.py data/ml-100k-next-ten

Prints the `preference_accuracy` of the baselines that ALRO is compared with, on the validation and the test split: the
share of the pairs of a liked and a disliked item of a user in which the liked one is ranked higher. The baselines use
at most one number per item, and no histories of users. Models that learn from ratings, such as those of Align3GR's
feedback stages, should therefore be able to reach the value of the best baseline. The number after ± is half the width
of a 95 % bootstrap interval over users. Takes seconds.
"""

from __future__ import annotations

import argparse

import numpy as np
import pyarrow as pa
from datasets import Dataset

from trl_rec.data import load
from trl_rec.evaluation.graded.baselines import RATED_BASELINES
from trl_rec.evaluation.intervals import bootstrap_interval
from trl_rec.evaluation.preferences import RatedTargets
from trl_rec.evaluation.tables import aligned


def main(words: list[str] | None = None) -> None:
    """Measures the baselines, and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("dataset", help="dataset folder with ratings up to 5")
    dataset = load(parser.parse_args(words).dataset)
    splits = {"validation": dataset.validation, "test": dataset.test}

    table = [["", *splits]]
    for name in RATED_BASELINES:
        cells = [name]
        for rows in splits.values():
            accuracy = preference_accuracy(name, dataset.train, rows, len(dataset.catalog))
            low, high = bootstrap_interval(accuracy)
            cells.append(f"{accuracy.mean():.4f} ±{(high - low) / 2:.4f}")
        table.append(cells)
    print("\n".join(aligned(table)))


def preference_accuracy(baseline: str, train: Dataset, rows: Dataset, num_items: int) -> np.ndarray:
    """Returns the `preference_accuracy` of each user who has both liked and disliked held-out items."""
    rated = RatedTargets.from_split(rows)
    if rated is None:
        raise SystemExit("the dataset has no ratings up to 5, so no held-out item is liked or disliked")

    # The liked and disliked items of a user are the candidates. A candidate in an earlier place has a higher score.
    lists = Dataset(pa.table({"candidates": rated.items.to_arrow(), "row": np.arange(len(rated.items))}))
    places = RATED_BASELINES[baseline](train, lists, num_items, 0)  # (num_rows, most candidates), padded with -1
    if not rated.has_pairs.any():
        raise SystemExit(
            "no user of a split has both liked and disliked held-out items, so there is nothing to measure"
        )
    accuracy = rated.accuracy(-places[places >= 0])
    return accuracy[rated.has_pairs]


if __name__ == "__main__":
    main()
