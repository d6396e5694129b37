"""Trains a recipe with a softmax over all items and over sampled items, and prints NDCG@10 against training time.

There is one run with the full softmax, over all items, and one run per number of sampled items. All runs have the
seed, the model and the learning rate schedule of the recipe. NDCG@10 is measured several times during training, on the
same validation users and with all items ranked. `--every` is the interval between two measurements, as a share of all
steps, such as 0.125. Times are CPU seconds of the steps, without the evaluations. With one thread on an idle machine,
CPU seconds equal the elapsed time.

    OMP_NUM_THREADS=1 python benchmarks/sampled_training.py data/beauty --sampled_items 512
"""

from __future__ import annotations

import argparse
import logging
import tempfile
import time
from typing import Any

from transformers import (
    PrinterCallback,
    ProgressCallback,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)

from trl_rec.data import load
from trl_rec.models import RecModelConfig
from trl_rec.scripts.options.parsing import DataArguments, parse
from trl_rec.trainer import BearConfig, build_bear_trainer


METRIC = "eval_ndcg@10"


def main() -> None:
    """Trains with the full softmax and with each number of sampled items, and prints one table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("dataset", help="folder made by trl-rec prepare")
    parser.add_argument("--config", default="bear/beauty", help="a recipe of 'trl-rec bear' with one token per item")
    parser.add_argument("--sampled_items", type=int, nargs="+", default=[512])
    parser.add_argument("--sampled_from", choices=["uniform", "popularity"], default="uniform")
    parser.add_argument("--every", type=float, default=0.125, help="share of the steps between two measurements")
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE", help="keys of the recipe to change")
    arguments = parser.parse_args()

    logging.disable(logging.INFO)
    common = [word for pair in arguments.set for word in (f"--{pair.split('=', 1)[0]}", pair.split("=", 1)[1])]
    curves = {"full softmax": train(arguments, common)}
    for number in arguments.sampled_items:
        sampled = ["--sampled_items", str(number), "--sampled_from", arguments.sampled_from]
        curves[f"{number:,} sampled items"] = train(arguments, [*common, *sampled])

    print_table(curves)


def train(arguments: argparse.Namespace, words: list[str]) -> list[tuple[float, float]]:
    """Trains a model, and returns the CPU seconds of training and NDCG@10 at each measurement."""
    with tempfile.TemporaryDirectory() as folder:
        every = str(arguments.every)
        steps = ["--eval_strategy", "steps", "--eval_steps", every, "--save_strategy", "no"]
        fixed = ["--load_best_model_at_end", "false", "--prior", "none", "--eval_ks", "10", "--disable_tqdm", "true"]
        argv = ["--config", arguments.config, "--dataset", arguments.dataset, "--output_dir", folder]
        data, model, config = parse(
            (DataArguments, RecModelConfig, BearConfig), [*argv, *steps, *fixed, *words], "bear"
        )
        trainer = build_bear_trainer(load(data.dataset).with_surface(data.surface), config, model)
        trainer.remove_callback(PrinterCallback)
        trainer.remove_callback(ProgressCallback)
        curve = Curve()
        trainer.add_callback(curve)
        trainer.train()
        trainer.end()
    return curve.points


class Curve(TrainerCallback):
    """Adds up the CPU seconds of the steps, and records NDCG@10 at each evaluation."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self.points: list[tuple[float, float]] = []

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Starts the clock."""
        self.since = time.process_time()

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Adds the time since the last step or evaluation."""
        now = time.process_time()
        self.seconds += now - self.since
        self.since = now

    def on_evaluate(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **logs: Any) -> None:
        """Records the measurement, and starts the clock again."""
        self.points.append((self.seconds, logs["metrics"][METRIC]))
        self.since = time.process_time()


def print_table(curves: dict[str, list[tuple[float, float]]]) -> None:
    """Prints a row per measurement, and the time at which each run reaches the highest NDCG@10 that all runs reach."""
    for name, points in curves.items():
        print(name)
        for seconds, figure in points:
            print(f"  {seconds:>8,.0f} s  NDCG@10 {figure:.4f}")

    shared = min(max(figure for _, figure in points) for points in curves.values())
    print(f"NDCG@10 of at least {shared:.4f} is reached")
    for name, points in curves.items():
        first = next(seconds for seconds, figure in points if figure >= shared)
        print(f"  by {name:<24} after {first:,.0f} s")


if __name__ == "__main__":
    main()
