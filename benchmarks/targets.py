"""Compares `targets="all"` with `targets="last"`: training time to the same validation NDCG@10.

    python benchmarks/targets.py DATASET_FOLDER [--seconds 240] [--seed 0]

`targets="last"` (one row per prefix) trains for the given time. `targets="all"` (every position a target) then trains
until it reaches the best value of `last`. Both use the same model from scratch, one token per item, and the same batch
size and learning rate. The time of evaluations does not count.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from typing import Any


os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")

from studies import SMALL
from transformers import TrainerCallback

from trl_rec import BearConfig, BearTrainer, RecDataset, load
from trl_rec.models import make_model, make_tokenizer


class Clock(TrainerCallback):
    """Prints the training seconds at each evaluation. Stops training after `seconds`, or at an NDCG@10 of `goal`."""

    def __init__(self, seconds: float, goal: float) -> None:
        self.seconds = seconds
        self.goal = goal
        self.spent = 0.0  # training seconds so far
        self.best = 0.0  # best NDCG@10 so far
        self.reached = 0.0  # training seconds when it was reached

    def on_step_begin(self, *_: Any, **__: Any) -> None:
        self.start = time.perf_counter()

    def on_step_end(self, args: Any, state: Any, control: Any, **__: Any) -> None:
        self.spent += time.perf_counter() - self.start

    def on_evaluate(self, args: Any, state: Any, control: Any, metrics: dict[str, float], **__: Any) -> None:
        ndcg = metrics["eval_ndcg@10"]
        if ndcg > self.best:
            self.best, self.reached = ndcg, self.spent
        print(f"  {self.spent:6.0f} s, step {state.global_step}: NDCG@10 {ndcg:.4f}", flush=True)
        control.should_training_stop = self.spent > self.seconds or ndcg >= self.goal


def run(dataset: RecDataset, targets: str, clock: Clock, seed: int, eval_steps: int) -> None:
    tokenizer = make_tokenizer(dataset.catalog)
    with tempfile.TemporaryDirectory() as folder:
        config = BearConfig(
            folder,
            **SMALL,
            bear_weight=0,
            targets=targets,
            max_length=128,
            max_steps=100_000,
            learning_rate=3e-3,
            lr_scheduler_type="constant_with_warmup",
            warmup_steps=30,
            eval_steps=eval_steps,
            save_strategy="no",
            seed=seed,
        )
        trainer = BearTrainer(
            make_model(tokenizer, max_length=128, seed=seed),
            config,
            train_dataset=dataset.train,
            eval_dataset=dataset.validation,
            processing_class=tokenizer,
            catalog=dataset.catalog,
            callbacks=[clock],
        )
        trainer.train()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dataset")
    parser.add_argument("--seconds", type=float, default=240)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    dataset = load(arguments.dataset).with_surface("item_token")
    print("one row per prefix")
    last = Clock(arguments.seconds, float("inf"))
    run(dataset, "last", last, arguments.seed, eval_steps=200)
    print(f"every position a target, until {last.best:.4f}")
    every = Clock(float("inf"), last.best)
    run(dataset, "all", every, arguments.seed, eval_steps=10)
    ratio = last.reached / every.reached
    print(f"NDCG@10 {last.best:.4f}: {last.reached:.0f} s against {every.reached:.0f} s, {ratio:.1f} times shorter")


if __name__ == "__main__":
    main()
