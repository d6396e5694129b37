"""SFT, MSL and BEAR beside the floors on MovieLens-100k, over several seeds.

    python benchmarks/bear_arms.py DATASET_FOLDER OUTPUT_FOLDER [--seeds 0 1 2] [--weights 0.6875 2.75] [--epochs 30]

Same small model from nothing, one token an item, the checkpoint chosen on validation among ten. Every weight of both variants
is run with the first seed; SFT, MSL and the best weight of each variant, by validation, with all seeds. Every run leaves its
lists in OUTPUT_FOLDER, and a call that was interrupted goes on where it stopped. Intervals are over users, of their mean over
the seeds.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
from pathlib import Path
from typing import Any


os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")

import numpy as np

from trl_rec import BearConfig, BearTrainer, RecDataset, load
from trl_rec.evaluation import bootstrap_interval, evaluate_floors, evaluate_split, paired_comparison
from trl_rec.models import make_model, make_tokenizer


def arm(variant: str, weight: float) -> dict[str, Any]:
    return {"variant": variant, "bear_weight": weight}


def run(name: str, options: dict[str, Any], dataset: RecDataset, seed: int, output: Path, epochs: float) -> dict[str, Any]:
    """Validation and pruning rate of a run, and its lists for the test split; trained if it has not been yet."""
    path = output / f"{name}-{seed}.json"
    if path.is_file():
        return json.loads(path.read_text())
    tokenizer = make_tokenizer(dataset.catalog)
    with tempfile.TemporaryDirectory() as folder:
        config = BearConfig(
            folder,
            **options,
            targets="all",
            max_length=128,
            num_train_epochs=epochs,
            learning_rate=3e-3,
            weight_decay=0.1,
            warmup_steps=50,
            per_device_train_batch_size=16,
            per_device_eval_batch_size=128,
            eval_strategy="steps",
            eval_steps=0.1,
            save_strategy="steps",
            save_steps=0.1,
            save_total_limit=1,
            save_only_model=True,
            load_best_model_at_end=True,
            metric_for_best_model="eval_ndcg@10",
            eval_ks=[10],
            logging_steps=100,
            report_to="none",
            disable_tqdm=True,
            gradient_checkpointing=False,
            use_cpu=True,
            bf16=False,
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
        found = {
            "validation": max(entry["eval_ndcg@10"] for entry in log if "eval_ndcg@10" in entry),
            "pruned": [entry["eval_bear/pruned"] for entry in log if "eval_bear/pruned" in entry][-1],
            "ranked": trainer.rank(dataset.test).tolist(),
        }
    output.mkdir(parents=True, exist_ok=True)
    path.with_suffix(".tmp").write_text(json.dumps(found))
    path.with_suffix(".tmp").replace(path)
    print(f"{name}, seed {seed}: validation NDCG@10 {found['validation']:.4f}", flush=True)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dataset")
    parser.add_argument("output", type=Path)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--weights", type=float, nargs="+", default=[0.6875, 2.75])
    parser.add_argument("--epochs", type=float, default=30)
    arguments = parser.parse_args()
    dataset, seeds = load(arguments.dataset).with_surface("item_token"), arguments.seeds
    where = {"dataset": dataset, "output": arguments.output, "epochs": arguments.epochs}

    arms = {"SFT": {"bear_weight": 0, "softmax": "vocabulary"}, "MSL": {"bear_weight": 0}}
    for variant in ("paper", "survival"):
        grid = {f"{variant} {weight:g}": arm(variant, weight) for weight in arguments.weights}
        first = {name: run(name, options, seed=seeds[0], **where)["validation"] for name, options in grid.items()}
        print(f"{variant}, seed {seeds[0]}, validation NDCG@10: {first}", flush=True)
        best = max(first, key=lambda name: first[name])
        arms[best] = grid[best]

    floor = evaluate_floors(dataset, ks=[10])["transition"].per_user
    print(f"\n{'':<16}{'recall@10':>18}{'ndcg@10':>18}{'over floor':>12}{'p':>7}{'by seed':>24}{'validation':>12}{'pruned':>8}")
    rows = {"transition": [floor]}
    told: dict[str, list[dict[str, Any]]] = {"transition": []}
    for name, options in arms.items():
        told[name] = [run(name, options, seed=seed, **where) for seed in seeds]
        rows[name] = [evaluate_split(np.array(one["ranked"]), dataset, ks=[10]).per_user for one in told[name]]
    for name, runs in rows.items():
        mean = {metric: np.mean([one[metric] for one in runs], 0) for metric in ("recall@10", "ndcg@10")}
        cells = []
        for values in mean.values():
            low, high = bootstrap_interval(values)
            cells.append(f"{values.mean():.4f} ±{(high - low) / 2:.4f}")
        against = paired_comparison(mean["ndcg@10"], floor["ndcg@10"])
        by_seed = " ".join(f"{one['ndcg@10'].mean():.4f}" for one in runs)
        rest = [np.mean([one[key] for one in told[name]]) if told[name] else float("nan") for key in ("validation", "pruned")]
        ratio = mean["ndcg@10"].mean() / floor["ndcg@10"].mean()
        print(
            f"{name:<16}{cells[0]:>18}{cells[1]:>18}{ratio:>12.3f}{against.p_value:>7.3f}{by_seed:>24}{rest[0]:>12.4f}{rest[1]:>8.3f}"
        )


if __name__ == "__main__":
    main()
