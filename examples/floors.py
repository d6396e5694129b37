"""The floors that every recommender has to clear, on MovieLens-100k: the verbs `prepare` and `evaluate` in Python.

    python examples/floors.py [--source ml-100k]

Without a network and without a copy in the cache it falls back to a toy world, and says so.
"""

import argparse

import datasets

from trl_rec.data import FetchError, prepare
from trl_rec.evaluation import evaluate_floors, metrics_table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--source", default="ml-100k", help="ml-100k, toy, or the folder of a log")
    parser.add_argument("--output_dir", help="dataset folder to make or reuse; data/SOURCE by default")
    arguments = parser.parse_args()

    datasets.disable_progress_bars()
    source = arguments.source
    try:
        dataset = prepare(source, arguments.output_dir or f"data/{source}")
    except FetchError as error:
        print(f"{error}\nGoing on with the toy world: its figures say nothing about real users.\n")
        source = "toy"
        dataset = prepare(source, "data/toy")

    results = evaluate_floors(dataset, split="test", ks=(1, 5, 10), exclude_history=True)
    print(metrics_table(results, caption=f"{source}: {dataset.test.num_rows} users, next item, history excluded"))


if __name__ == "__main__":
    main()
