"""Compares SFT, MSL and BEAR with the transition baseline on MovieLens-100k, over several seeds.

    python benchmarks/bear_arms.py DATASET_FOLDER OUTPUT_FOLDER [--seeds 0 1 2] [--weights 0.6875 2.75] [--epochs 30]

All arms train the same small model from scratch, with one token per item, and keep the best of ten checkpoints by
validation. Every weight of both variants runs with the first seed. SFT, MSL and the best weight of each variant by
validation run with all seeds.

Each run saves its lists in OUTPUT_FOLDER, and the same call resumes an interrupted study. Intervals are over users, of
each user's mean over the seeds.
"""

from __future__ import annotations

import argparse
import os
import tempfile
from functools import partial
from pathlib import Path
from typing import Any


os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")

import numpy as np
from studies import SMALL, kept

from trl_rec import BearConfig, BearTrainer, RecDataset, load
from trl_rec.evaluation import compare, comparison_table, evaluate_baselines, evaluate_split
from trl_rec.models import make_model, make_tokenizer


def train(options: dict[str, Any], dataset: RecDataset, seed: int, epochs: float) -> dict[str, Any]:
    """Best validation NDCG@10, last pruning rate, and test lists of one run."""
    tokenizer = make_tokenizer(dataset.catalog)
    with tempfile.TemporaryDirectory() as folder:
        config = BearConfig(
            folder,
            **SMALL,
            **options,
            targets="all",
            max_length=128,
            num_train_epochs=epochs,
            learning_rate=3e-3,
            weight_decay=0.1,
            warmup_steps=50,
            eval_steps=0.1,
            save_strategy="steps",
            save_steps=0.1,
            save_total_limit=1,
            save_only_model=True,
            load_best_model_at_end=True,
            metric_for_best_model="eval_ndcg@10",
            logging_steps=100,
            seed=seed,
        )
        trainer = BearTrainer(
            make_model(tokenizer, max_length=128, dropout=0.3, seed=seed),
            config,
            train_dataset=dataset.train,
            eval_dataset=dataset.validation,
            processing_class=tokenizer,
            catalog=dataset.catalog,
        )
        trainer.train()
        log = trainer.state.log_history
        return {
            "validation": max(entry["eval_ndcg@10"] for entry in log if "eval_ndcg@10" in entry),
            "pruned": [entry["eval_bear/pruned"] for entry in log if "eval_bear/pruned" in entry][-1],
            "ranked": trainer.rank(dataset.test).items.tolist(),
        }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dataset")
    parser.add_argument("output", type=Path)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--weights", type=float, nargs="+", default=[0.6875, 2.75])
    parser.add_argument("--epochs", type=float, default=30)
    arguments = parser.parse_args()
    dataset = load(arguments.dataset).with_surface("item_token")
    seeds = arguments.seeds

    def run(name: str, options: dict[str, Any], seed: int) -> dict[str, Any]:
        path = arguments.output / f"{name}-{seed}-{arguments.epochs:g}.json"
        result = kept(path, partial(train, options, dataset, seed, arguments.epochs))
        print(f"{name}, seed {seed}: validation NDCG@10 {result['validation']:.4f}", flush=True)
        return result

    # 1. Choose the weight of each variant by validation, with the first seed.
    arms: dict[str, dict[str, Any]] = {"SFT": {"bear_weight": 0, "softmax": "vocabulary"}, "MSL": {"bear_weight": 0}}
    for variant in ("paper", "survival"):
        grid = {f"{variant} {weight:g}": {"variant": variant, "bear_weight": weight} for weight in arguments.weights}
        best = max(grid, key=lambda name: run(name, grid[name], seeds[0])["validation"])
        arms[best] = grid[best]

    # 2. Run all arms with all seeds, and compare their test lists.
    results = {name: [run(name, options, seed) for seed in seeds] for name, options in arms.items()}
    runs = {"transition": [evaluate_baselines(dataset, ks=[10])["transition"].per_user]}
    for name, by_seed in results.items():
        runs[name] = [evaluate_split(np.array(result["ranked"]), dataset, ks=[10]).per_user for result in by_seed]
    notes = {
        key: {name: float(np.mean([result[key] for result in by_seed])) for name, by_seed in results.items()}
        for key in ("validation", "pruned")
    }
    compared = compare(runs, against="transition", metric="ndcg@10")
    print("\n" + comparison_table(runs, compared, metrics=["recall@10"], notes=notes))


if __name__ == "__main__":
    main()
