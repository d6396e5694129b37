"""Compares two ways to train on a log that has grown: continuing with yesterday's model, and starting from scratch.

Yesterday's log is the first 90 % of the interactions by time, and today's log is all of them. Items that occur only in
the last 10 % are not in yesterday's catalogue. Three models with one token per item are trained:

1. yesterday's model, from scratch on yesterday's log;
2. a model from scratch on today's log. Its best NDCG@10 on today's validation split is the goal;
3. yesterday's model, whose training continues with today's log, for at most `--share` of the steps that the second
   model needed to reach the goal, once for each of `--continued_learning_rates`.

Prints the number of steps after which the second and the third model reach the goal. Both are measured on today's
validation split. Yesterday's model was not trained on this split: it was trained only on the items before each user's
validation item in yesterday's log, and the user's validation item in today's log is the same item or a later one. (The
exception would be a user with two interactions in yesterday's log and three in today's. With two interactions, a user
has no validation item, so both items are training items, and the second is the validation item of today's log.
MovieLens-100k has no such user.) Yesterday's catalogue is shuffled, so the third model does well only if its items are
matched with today's by id, not by position.

    OMP_NUM_THREADS=1 python benchmarks/tomorrow.py --dataset data/ml-100k

The defaults take about six CPU-minutes.
"""

from __future__ import annotations

import argparse
import csv
import logging
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from trl_rec import BearConfig, RecDataset, load, prepare
from trl_rec.models import RecModelConfig
from trl_rec.trainer import build_bear_trainer


METRIC = "eval_ndcg@10"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--dataset", default="data/ml-100k", help="dataset folder whose log is cut in two")
    parser.add_argument("--arriving", type=float, default=0.1, help="share of the log that arrives today")
    parser.add_argument("--epochs", type=int, default=12, help="epochs of training from scratch")
    parser.add_argument(
        "--share",
        type=float,
        default=0.2,
        help="maximum steps of continued training, relative to the steps that training from scratch needs",
    )
    parser.add_argument("--learning_rate", type=float, default=3e-3)
    parser.add_argument("--continued_learning_rates", type=float, nargs="+", default=[1e-3, 3e-4, 1e-4])
    parser.add_argument("--evaluations", type=int, default=12, help="evaluations per training")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    logging.getLogger("trl_rec.trainer.base.continuing").setLevel(logging.INFO)

    with tempfile.TemporaryDirectory() as folder:
        compare(arguments, Path(folder))


def compare(arguments: argparse.Namespace, folder: Path) -> None:
    """Makes the two logs, trains the three models, and prints when the second and the third model reach the goal."""
    # 1. Cut the log.
    source = load(arguments.dataset)
    when = source.interactions["timestamp"].to_numpy()
    cut = np.quantile(when, 1 - arguments.arriving)
    yesterday = write_log(source, when < cut, folder / "yesterday", shuffle=True)
    today = write_log(source, when >= when.min(), folder / "today")
    print(
        f"yesterday: {len(yesterday.catalog):,} items, {yesterday.card['num_interactions']:,} interactions; "
        f"today: {len(today.catalog):,} items, {today.card['num_interactions']:,} interactions; "
        "new interactions come from "
        f"{len(np.unique(source.interactions['user'].to_numpy()[when >= cut])):,} of {len(today.users):,} users"
    )

    # 2. Train yesterday's model, and the model from scratch.
    steps = arguments.epochs * -(-len(today.train) // 16)
    options: dict[str, Any] = {"learning_rate": arguments.learning_rate, "warmup_steps": 50, "max_steps": steps}
    train(arguments, yesterday, folder / "model", RecModelConfig(dropout=0.3), eval_strategy="no", **options)
    scratch = train(arguments, today, folder / "scratch", RecModelConfig(dropout=0.3), **options)
    goal = max(scratch.values())
    needed = first_at(scratch, goal)
    print(f"from scratch: NDCG@10 {goal:.4f} after {needed:,} of {steps:,} steps")

    # 3. Continue to train yesterday's model.
    most = int(arguments.share * needed)
    for rate in arguments.continued_learning_rates:
        options = {"learning_rate": rate, "warmup_steps": 10, "max_steps": most}
        name = f"continued-{rate:g}"
        continued = train(arguments, today, folder / name, RecModelConfig(str(folder / "model")), **options)
        reports = ", ".join(f"{value:.4f} after {step}" for step, value in sorted(continued.items()))
        print(f"{name}: NDCG@10 {reports} steps")
        reached = first_at(continued, goal)
        if reached is None:
            print(f"{name}: did not reach {goal:.4f} in {most:,} steps; its best is {max(continued.values()):.4f}")
        else:
            share = f"{reached / needed:.2f} times the steps from scratch"
            print(f"{name}: reached {goal:.4f} after {reached:,} steps, which is {share}")


def write_log(source: RecDataset, kept: np.ndarray, folder: Path, *, shuffle: bool = False) -> RecDataset:
    """Prepares a dataset from the kept interactions of `source` and the items that occur in them."""
    files = folder / "source"
    files.mkdir(parents=True)
    log = source.interactions.filter(kept)
    items = np.unique(log["item"].to_numpy())
    if shuffle:
        items = np.random.default_rng(0).permutation(items)
    with (files / "items.csv").open("w", newline="", encoding="utf-8") as file:
        titles = [[source.catalog.ids[item], source.catalog.titles[item]] for item in items]
        csv.writer(file).writerows([["item_id", "title"], *titles])

    users = source.users["user_id"].to_pylist()
    columns = (log[name].to_pylist() for name in ("user", "item", "timestamp"))
    rows = [[users[user], source.catalog.ids[item], when] for user, item, when in zip(*columns, strict=True)]
    with (files / "interactions.csv").open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([["user_id", "item_id", "timestamp"], *rows])
    return prepare(files, folder / "data").with_surface("item_token")


def train(
    arguments: argparse.Namespace, dataset: RecDataset, output: Path, model: RecModelConfig, **options: Any
) -> dict[int, float]:
    """Trains and saves a model, and returns the metric on the validation split by step, from step 0."""
    config = BearConfig(
        str(output),
        targets="all",
        max_length=128,
        bear_weight=0.0,
        weight_decay=0.1,
        per_device_train_batch_size=16,
        per_device_eval_batch_size=128,
        eval_steps=max(options["max_steps"] // arguments.evaluations, 1),
        save_strategy="no",
        use_cpu=True,
        bf16=False,
        activation_checkpointing=False,
        report_to="none",
        disable_tqdm=True,
        logging_strategy="no",
        seed=arguments.seed,
        **{"eval_strategy": "steps", **options},
    )
    start = time.process_time()
    trainer = build_bear_trainer(dataset, config, model)
    before = {} if config.eval_strategy == "no" else {0: trainer.evaluate()[METRIC]}
    trainer.train()
    trainer.save_model()
    print(f"{output.name}: {config.max_steps:,} steps in {time.process_time() - start:.0f} CPU-seconds", flush=True)
    return before | {entry["step"]: entry[METRIC] for entry in trainer.state.log_history if METRIC in entry}


def first_at(values: dict[int, float], goal: float) -> int | None:
    """Returns the first step at which the metric is at least the goal, or None."""
    return min((step for step, value in values.items() if value >= goal), default=None)


if __name__ == "__main__":
    main()
