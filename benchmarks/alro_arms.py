"""Compares ALRO and its parts with SFT, SFT bootstrapped over five orders, and the baselines, over several seeds.

    python benchmarks/alro_arms.py OUTPUT_FOLDER [--source ml-100k] [--candidates 10 20] [--seeds 0 1 2]
        [--lambda_weights 10 30 100] [--permutation_weights 1 10] [--letters] [--epochs 1]

A small model with one token per item ranks each user's last rated items, after it has learned which ratings to expect.
The answer names items by their own tokens or, with `--letters`, by the letters of their slots, as with titles.

All arms start from that model, see every list in two orders and take the same steps. Each keeps its best checkpoint by
validation NDCG@10. The weights are the best by validation with the first seed; ALRO uses the best weights of its
parts.

Test lists are shown in ten orders, and figures are means over them. `consistency` is Kendall's tau between the answers
to two orders. `SFT x 5` is the Borda count over five orders; its consistency compares the first five orders with the
last five. Results are saved in OUTPUT_FOLDER, per source and setting, and the same call resumes an interrupted study.
"""

from __future__ import annotations

import argparse
import os
import re
import time
from pathlib import Path
from typing import Any


os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")

import numpy as np
from datasets import disable_progress_bars
from studies import SMALL, kept

from trl_rec import AlroConfig, AlroTrainer, RecDataset, prepare
from trl_rec.decoding import RatedPromptFormat
from trl_rec.evaluation import (
    RankedLists,
    borda,
    comparison_table,
    evaluate_orders,
    evaluate_rated_baselines,
    slot_profile,
)
from trl_rec.evaluation import compare as compare_runs
from trl_rec.models import RecModelConfig, load_model, load_tokenizer
from trl_rec.trainer import build_ranker, held_out_rows, learn_ratings, rating_values


WITHOUT_CHECKPOINTS = {
    **SMALL,
    "eval_strategy": "no",
    "save_strategy": "no",
    "per_device_train_batch_size": 32,
    "logging_steps": 50,
    "weight_decay": 0.1,
    "warmup_steps": 50,
}
BEST_CHECKPOINT = {
    "eval_strategy": "steps",
    "eval_steps": 0.25,
    "save_strategy": "steps",
    "save_steps": 0.25,
    "save_total_limit": 1,
    "load_best_model_at_end": True,
    "metric_for_best_model": "eval_graded_ndcg@10",
    "eval_ks": [10],
    "overwrite": True,  # all runs share the folder of checkpoints
}
NO_WEIGHT = 1e-12  # not 0, so that lists are still shown in two orders
NUM_ORDERS = 10
METRICS = ["graded_ndcg@1", "graded_ndcg@5", "tau", "consistency", "slot_bias", "graded_ndcg@10"]
Weights = tuple[float, float]


class Study:
    """Runs the arms for lists of one length, or loads the results that an earlier call saved."""

    def __init__(
        self, source: str, count: int, output: Path, steps: int, letters: bool = False, epochs: int = 1
    ) -> None:
        self.count = count
        self.steps = steps
        self.letters = letters
        self.epochs = epochs

        source_folder = output / re.sub(r"\W+", "-", source)
        data = source_folder / f"data-{count}"
        self.output = source_folder / f"{count}-candidates-{steps}-steps"
        if letters or epochs > 1:
            self.output = self.output.with_name(f"{self.output.name}-{'letters' if letters else 'items'}-{epochs}")
        self.dataset: RecDataset = prepare(source, data, split="leave_last", num_held_out=count).with_surface(
            "item_token"
        )
        self.rows = held_out_rows(self.dataset.test, num_candidates=count)

    def start(self, seed: int) -> Path:
        """The folder of a model that has learned to predict the rating after an item."""
        folder = self.output / f"start-{seed}"
        ratings = rating_values(self.dataset.train)
        catalog = self.dataset.catalog

        options = {"letters": self.letters, "max_length": 256, "seed": seed}
        model, tokenizer, _ = build_ranker(catalog, ratings, RecModelConfig(dropout=0.3), **options)
        prompt_format = RatedPromptFormat.for_catalog(catalog, tokenizer, ratings, letters=self.letters)
        options = {**WITHOUT_CHECKPOINTS, "max_steps": self.steps, "seed": seed}
        learn_ratings(model, tokenizer, prompt_format, self.dataset, folder, resume=True, **options)
        return folder

    def trainer(self, weights: Weights, seed: int) -> AlroTrainer:
        start = self.start(seed)
        options = {**WITHOUT_CHECKPOINTS, **BEST_CHECKPOINT, "max_steps": self.steps}
        config = AlroConfig(
            str(self.output / "checkpoints"),
            **options,
            lambda_weight=weights[0],
            permutation_weight=weights[1] or NO_WEIGHT,
            num_candidates=self.count,
            max_history=60,
            max_length=192,
            num_train_epochs=self.epochs,
            letters=self.letters,
            learning_rate=5e-4,
            log_gradient_norms=True,
            seed=seed,
        )
        return AlroTrainer(
            load_model(start),
            config,
            train_dataset=self.dataset.train,
            eval_dataset=self.dataset.validation,
            processing_class=load_tokenizer(start),
            catalog=self.dataset.catalog,
        )

    def run(self, weights: Weights, seed: int) -> dict[str, Any]:
        """Places and slots of the test lists, best validation NDCG@10, seconds, and the log of one run."""

        def work() -> dict[str, Any]:
            trainer = self.trainer(weights, seed)
            start = time.perf_counter()
            trainer.train()
            trained = time.perf_counter()

            trainer.args.eval_num_orders = NUM_ORDERS
            lists = trainer.rank(self.dataset.test)
            seconds = {"train": trained - start, "rank": time.perf_counter() - trained}

            best = float(trainer.state.best_metric or 0)
            print(
                f"{self.count} candidates, weights {weights}, seed {seed}: validation {best:.4f}, {seconds}",
                flush=True,
            )
            log = trainer.state.log_history
            return {
                "places": lists.places.tolist(),
                "slots": lists.slots.tolist(),
                "best": best,
                "seconds": seconds,
                "log": log,
            }

        return kept(self.output / f"{weights[0]:g}-{weights[1]:g}-{seed}.json", work)

    def best(self, grid: list[Weights]) -> Weights:
        """The best weights by validation, with the first seed."""
        scores = {weights: self.run(weights, 0)["best"] for weights in grid}
        print(f"{self.count} candidates: {scores}", flush=True)
        return max(scores, key=lambda weights: scores[weights])

    def measure(self, result: dict[str, Any]) -> dict[str, np.ndarray]:
        lists = RankedLists(np.array(result["places"]), np.array(result["slots"]))
        return evaluate_orders(lists, self.rows).per_user

    def measure_bootstrapped(self, result: dict[str, Any]) -> dict[str, np.ndarray]:
        """Measures of the Borda counts over the first five and over the last five orders."""
        places = np.array(result["places"])
        half = NUM_ORDERS // 2
        joined = np.stack([borda(places[:, :half]), borda(places[:, half:])], 1)
        return evaluate_orders(RankedLists(joined, np.array(result["slots"])[:, [0, half]]), self.rows).per_user


def compare(study: Study, arguments: argparse.Namespace) -> None:
    """Chooses the weights, runs the arms, and prints the tables."""
    seeds = arguments.seeds

    # 1. Choose the weights by validation.
    alpha = study.best([(weight, 0.0) for weight in arguments.lambda_weights])[0]
    beta = study.best([(0.0, weight) for weight in arguments.permutation_weights])[1]
    arms: dict[str, Weights] = {
        "SFT": (0.0, 0.0),
        "SFT + SLL": (alpha, 0.0),
        "SFT + PSL": (0.0, beta),
        "ALRO": (alpha, beta),
    }

    # 2. Run the arms, and measure them and the baselines.
    results = {name: [study.run(weights, seed) for seed in seeds] for name, weights in arms.items()}
    baselines = evaluate_rated_baselines(study.dataset.train, study.rows, len(study.dataset.catalog))
    runs = {
        name: [{**baseline.per_user, "consistency": 0 * baseline.per_user["tau"] + 1}]
        for name, baseline in baselines.items()
    }
    runs |= {name: [study.measure(result) for result in by_seed] for name, by_seed in results.items()}
    runs["SFT x 5"] = [study.measure_bootstrapped(result) for result in results["SFT"]]
    for values in (values for by_seed in runs.values() for values in by_seed):
        values.setdefault("slot_bias", 0 * values["tau"])

    # 3. Print the table, then time and slots per arm.
    print(f"\n{study.count} candidates, {len(study.rows)} users, weights {arms}")
    compared = compare_runs(runs, against="SFT", metric="graded_ndcg@10")
    print(comparison_table(runs, compared, metrics=METRICS))
    for name, by_seed in results.items():
        first = [slot_profile(np.array(result["places"]), np.array(result["slots"])) for result in by_seed]
        ranking = np.mean([result["seconds"]["rank"] for result in by_seed])
        milliseconds = 1000 * ranking / len(study.rows) / NUM_ORDERS
        trained = np.mean([result["seconds"]["train"] for result in by_seed])
        best = np.mean([result["best"] for result in by_seed])
        print(f"{name}: {milliseconds:.1f} ms per user, trained in {trained:.0f} s, validation {best:.4f}")
        print("  wins by slot: " + " ".join(f"{share:.2f}" for share in np.mean(first, 0)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output", type=Path)
    parser.add_argument("--source", default="ml-100k")
    parser.add_argument("--candidates", type=int, nargs="+", default=[10, 20])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--letters", action="store_true", help="name the candidates by letters")
    parser.add_argument("--epochs", type=int, default=1, help="epochs of training on lists")
    parser.add_argument("--max_steps", type=int, default=-1, help="steps of each training; all by default")
    parser.add_argument("--lambda_weights", type=float, nargs="+", default=[10.0, 30.0, 100.0])
    parser.add_argument("--permutation_weights", type=float, nargs="+", default=[1.0, 10.0])
    arguments = parser.parse_args()
    disable_progress_bars()
    for count in arguments.candidates:
        study = Study(
            arguments.source, count, arguments.output, arguments.max_steps, arguments.letters, arguments.epochs
        )
        compare(study, arguments)


if __name__ == "__main__":
    main()
