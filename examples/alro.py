"""Trains models with ALRO and SFT to order films that MovieLens-100k users rated, and compares them with baselines.

    accelerate launch examples/alro.py [--source ml-100k] [--max_steps -1]

This is `trl-rec alro` in Python. A small model is trained from scratch to predict ratings. From this model, two others
are trained to order ten films: one with supervised fine-tuning (SFT) alone, and one with the two additional losses of
ALRO. They are tested on the last ten films that each user rated. This takes about two minutes on two CPU cores. If the
data is not cached and cannot be downloaded, the program uses a synthetic dataset and prints a note.
"""

import argparse
from pathlib import Path
from typing import Any

import datasets
from accelerate import PartialState

from trl_rec import AlroConfig, AlroTrainer, RecDataset, prepare
from trl_rec.data import FetchError
from trl_rec.decoding import RatedPromptFormat
from trl_rec.evaluation import Evaluation, evaluate_orders, evaluate_rated_baselines, paired_comparison
from trl_rec.models import RecModelConfig, load_model, load_tokenizer
from trl_rec.trainer import build_ranker, held_out_rows, learn_ratings, orders_table, rating_values


ARMS = {
    "SFT": {"lambda_weight": 0.0, "permutation_weight": 0.0},
    "ALRO": {"lambda_weight": 30.0, "permutation_weight": 3.0},
}
RANKING = {"max_history": 60, "max_length": 160, "num_train_epochs": 1, "learning_rate": 5e-4, "eval_num_orders": 5}
SHARED: dict[str, Any] = {
    "per_device_train_batch_size": 32,
    "per_device_eval_batch_size": 128,
    "save_strategy": "no",
    "overwrite": True,  # the folders may contain an earlier call's models
    "weight_decay": 0.1,
    "warmup_steps": 50,
    "logging_steps": 100,
    "activation_checkpointing": False,
    "report_to": "none",
    "use_cpu": True,
    "bf16": False,
}


def load_data(source: str) -> RecDataset:
    """Returns the data. Each user's last ten items are test items, and the ten before them are validation items."""
    try:
        return prepare(source, f"data/next-ten-{Path(source).name}", split="leave_last", num_held_out=10)
    except FetchError as error:
        print(f"{error}\nContinuing with the synthetic dataset `toy`. Results on it say nothing about real users.\n")
        return prepare("toy", "data/next-ten-toy", split="leave_last", num_held_out=10)


def learn_to_rate(dataset: RecDataset, folder: str, max_steps: int) -> None:
    """Trains a model to predict a user's rating of an item, and saves the model in `folder`."""
    ratings = rating_values(dataset.train)
    model, tokenizer, _ = build_ranker(dataset.catalog, ratings, RecModelConfig(dropout=0.3), max_length=160)
    prompt_format = RatedPromptFormat.for_catalog(dataset.catalog, tokenizer, ratings)
    learn_ratings(model, tokenizer, prompt_format, dataset, folder, **SHARED, max_steps=max_steps)


def learn_to_rank(
    weights: dict[str, float], start: str, dataset: RecDataset, folder: str, max_steps: int
) -> AlroTrainer:
    """Returns a trainer whose model, loaded from the folder `start`, has learned to order candidates."""
    trainer = AlroTrainer(
        load_model(start),
        AlroConfig(folder, **SHARED, **RANKING, **weights, max_steps=max_steps),
        train_dataset=dataset.train,
        processing_class=load_tokenizer(start),
        catalog=dataset.catalog,
    )
    trainer.train()
    return trainer


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--source", default="ml-100k", help="ml-100k, toy, or the folder of a log with ratings")
    parser.add_argument("--max_steps", type=int, default=-1, help="limit on the steps of each training; -1: no limit")
    arguments = parser.parse_args()
    datasets.disable_progress_bars()

    dataset = load_data(arguments.source).with_surface("item_token")
    rows = held_out_rows(dataset.test)
    results: dict[str, Evaluation] = evaluate_rated_baselines(dataset.train, rows, len(dataset.catalog))
    start = "runs/example-alro-rating"
    print("training a model to predict ratings")
    learn_to_rate(dataset, start, arguments.max_steps)

    for name, weights in ARMS.items():
        print(f"training {name}")
        trainer = learn_to_rank(weights, start, dataset, f"runs/example-alro-{name.lower()}", arguments.max_steps)
        results[name] = evaluate_orders(trainer.rank(dataset.test), rows)

    if PartialState().is_main_process:
        print("\n" + orders_table(results, caption=f"{dataset.path}: the last ten ratings of {len(rows)} users"))
        gain = paired_comparison(*(results[name].per_user["graded_ndcg@10"] for name in ("ALRO", "item mean")))
        figures = f"{gain.difference:+.4f} [{gain.low:+.4f}, {gain.high:+.4f}], p {gain.p_value:.3f}"
        print(f"\nALRO over the item mean, NDCG@10: {figures}")


if __name__ == "__main__":
    main()
