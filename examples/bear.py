"""Trains BEAR on MovieLens-100k, and compares it with SFT, MSL and the baselines (`trl-rec bear` in Python).

    python examples/bear.py [--source ml-100k] [--max_steps -1]

The program trains three small models from scratch with one token per item. Each training takes about a minute on two
CPU cores. All three models are trained on the same data, and decoded and evaluated in the same way. If the data is not
cached and cannot be downloaded, the program uses a synthetic dataset and prints a note.
"""

import argparse
from pathlib import Path

import datasets

from trl_rec import BearConfig, BearTrainer, RecDataset, prepare
from trl_rec.data import FetchError
from trl_rec.evaluation import Evaluation, evaluate_baselines, evaluate_policy, metrics_table, readable_lists
from trl_rec.models import make_model, make_tokenizer


ARMS = {
    "SFT": {"bear_weight": 0, "softmax": "vocabulary"},  # softmax over every token
    "MSL": {"bear_weight": 0},  # softmax over the tokens that continue an item
    "BEAR": {},  # MSL plus a term that keeps the target within the beam
}


def load_data(source: str) -> RecDataset:
    try:
        return prepare(source, f"data/{Path(source).name}")
    except FetchError as error:
        print(f"{error}\nContinuing with the synthetic dataset `toy`. Results on it say nothing about real users.\n")
        return prepare("toy", "data/toy")


def train(name: str, dataset: RecDataset, max_steps: int) -> BearTrainer:
    tokenizer = make_tokenizer(dataset.catalog)
    config = BearConfig(
        f"runs/example-{name.lower()}",
        **ARMS[name],
        targets="all",  # one forward pass trains on every item of a sequence
        max_length=128,
        num_train_epochs=10,
        max_steps=max_steps,
        learning_rate=3e-3,
        warmup_steps=30,
        per_device_train_batch_size=16,
        per_device_eval_batch_size=128,
        save_strategy="no",
        overwrite=True,  # the folder may contain the model of an earlier run
        logging_steps=100,
        activation_checkpointing=False,
        report_to="none",
        use_cpu=True,
        bf16=False,
    )
    trainer = BearTrainer(
        make_model(tokenizer, max_length=128),
        config,
        train_dataset=dataset.train,
        processing_class=tokenizer,
        catalog=dataset.catalog,
    )
    trainer.train()
    return trainer


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--source", default="ml-100k", help="ml-100k, toy, or the folder of a log")
    parser.add_argument("--max_steps", type=int, default=-1, help="limit on the steps of each model; -1 sets no limit")
    arguments = parser.parse_args()
    datasets.disable_progress_bars()

    dataset = load_data(arguments.source).with_surface("item_token")
    results: dict[str, Evaluation] = evaluate_baselines(dataset, recall_at=50)
    for name in ARMS:
        print(f"training {name}")
        with train(name, dataset, arguments.max_steps).policy() as policy:
            results[name] = evaluate_policy(policy, dataset, recall_at=50)

    print("\nTen of BEAR's lists; an arrow marks what the user chose next.\n")
    print(readable_lists(results["BEAR"].rankings, dataset.test, dataset.catalog), end="\n\n")
    print(
        metrics_table(results, caption=f"{dataset.path}: {dataset.test.num_rows} users, next item, history excluded")
    )


if __name__ == "__main__":
    main()
