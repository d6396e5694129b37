"""Trains BLADE on MovieLens-100k to write lists that match each user's genres (`trl-rec blade` in Python).

    accelerate launch examples/blade.py [--source ml-100k] [--max_steps -1]

A small model is trained from scratch to write the next ten items. Then it is trained on the rewards of lists that it
samples: a list is rewarded for items that the user chose next (NDCG), and for genres that match the user's history
(MGU). This second training is run twice from the same model. One run compares each sampled list only with fixed lists,
which this model wrote before the second training (Best-of-8). The other run also compares the lists that are sampled
for the same prompt in the same step with each other (BLADE). The table at the end shows how the rewards and the
accuracy change. The program takes three to five minutes on a CPU. If the data is not cached and cannot be downloaded,
the program uses a synthetic dataset and prints a note.
"""

import argparse
from concurrent.futures import Executor, ProcessPoolExecutor
from contextlib import ExitStack
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import datasets
from accelerate import PartialState

from trl_rec import BearConfig, BearTrainer, BladeConfig, BladeTrainer, RecDataset, prepare
from trl_rec.data import FetchError
from trl_rec.evaluation import (
    Evaluation,
    evaluate_baselines,
    evaluate_split,
    metrics_table,
    paired_comparison,
    readable_lists,
    write_evaluation,
    write_report,
)
from trl_rec.models import load_model, load_tokenizer, make_model, make_tokenizer
from trl_rec.trainer import save_run


REWARDS = {"ndcg": 1.0, "mgu": 4.0}
ARMS = {
    "Best-of-8": {"target": "best_of_n"},  # judges a list by its rank among fixed lists of the supervised model
    "BLADE": {"target": "blade"},  # judges a list by its rank among these lists and those sampled in the same step
}
SHOWN = "BLADE"  # the arm whose progress is shown when both are trained at the same time
# The table has no recall@50, because the models write lists of only ten items.
COLUMNS = ["recall@10", "ndcg@10", "ild@10", "coverage@10", "reward/mgu", "reward"]
REPORT = "runs/example-blade.html"
REFERENCES = "runs/example-blade-references"
SHARED: dict[str, Any] = {
    "list_length": 10,
    "max_length": 128,
    "save_strategy": "no",
    "overwrite": True,  # the folders may contain the models of an earlier run
    "per_device_eval_batch_size": 128,
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


def supervised(dataset: RecDataset, folder: str, max_steps: int) -> BearTrainer:
    """Returns a trainer whose model has learned to continue sequences of items."""
    tokenizer = make_tokenizer(dataset.catalog)
    config = BearConfig(
        folder,
        bear_weight=0,
        targets="all",  # a sequence is treated as one long list, so every item is a target
        num_train_epochs=8,
        max_steps=max_steps,
        learning_rate=3e-3,
        warmup_steps=30,
        per_device_train_batch_size=16,
        logging_steps=100,
        **SHARED,
    )
    model = make_model(tokenizer, max_length=128)
    trainer = BearTrainer(
        model, config, train_dataset=dataset.train, processing_class=tokenizer, catalog=dataset.catalog
    )
    trainer.train()
    return trainer


def blade_trainer(name: str, start: str, dataset: RecDataset, max_steps: int) -> BladeTrainer:
    """Returns a trainer that starts from the model in the folder `start`."""
    config = BladeConfig(
        f"runs/example-{name.lower()}",
        rewards=REWARDS,
        reference_dir=REFERENCES,  # both arms start from one model and share its fixed lists
        max_steps=300 if max_steps < 0 else max_steps,
        max_prompts=2400,  # 300 steps of 8 prompts
        learning_rate=1e-3,
        warmup_steps=10,
        per_device_train_batch_size=8,
        logging_steps=20,
        **ARMS[name],
        **SHARED,
    )
    return BladeTrainer(
        load_model(start),
        args=config,
        train_dataset=dataset.train,
        processing_class=load_tokenizer(start),
        catalog=dataset.catalog,
    )


def train_arms(
    start: str, dataset: RecDataset, max_steps: int, baselines: dict[str, Evaluation], pool: Executor | None
) -> list[tuple[Any, Evaluation]]:
    """Trains the model in the folder `start` on the rewards of its own lists, once per arm, and measures the results.

    The arms are trained at the same time, each in a process of the pool. They draw the fixed lists together. Without a
    pool, one arm is trained after the other.
    """
    tasks = [(name, start, dataset, max_steps, baselines) for name in ARMS]
    return list(map(train_arm, tasks) if pool is None else pool.map(train_arm, tasks))


def train_arm(task: tuple[str, str, RecDataset, int, dict[str, Evaluation]]) -> tuple[Any, Evaluation]:
    """Trains and measures one arm."""
    name, start, dataset, max_steps, baselines = task
    datasets.disable_progress_bars()
    trainer = blade_trainer(name, start, dataset, max_steps)
    if PartialState().num_processes == 1 and name != SHOWN:
        from transformers import ProgressCallback  # imported after trl_rec, which hides a notice of bitsandbytes

        trainer.remove_callback(ProgressCallback)
    trainer.train()
    return measured(trainer, name, dataset, baselines)


def measured(
    trainer: BearTrainer | BladeTrainer, name: str, dataset: RecDataset, baselines: dict[str, Evaluation]
) -> tuple[Any, Evaluation]:
    """Saves the model, ranks items for the test users, and saves the evaluation of these rankings."""
    save_run(trainer)
    ranked = trainer.rank(dataset.test)
    evaluation = evaluate_split(ranked, dataset, rewards=REWARDS)
    if PartialState().is_main_process:
        write_evaluation(
            trainer.args.output_dir,
            {**baselines, name: evaluation},
            dataset=dataset,
            ks=[1, 5, 10],
            exclude_history=True,
            recommender=name,
            seed=trainer.args.seed,
        )
    return ranked, evaluation


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--source", default="ml-100k", help="ml-100k, toy, or the folder of a log")
    parser.add_argument(
        "--max_steps", type=int, default=-1, help="maximum number of steps of each training; -1 runs all steps"
    )
    arguments = parser.parse_args()
    datasets.disable_progress_bars()

    # If accelerate launch started a single process, each arm gets a process of its own. These processes are started
    # early, so that they import their packages while the supervised model is trained.
    with ExitStack() as stack:
        pool = None
        if PartialState().num_processes == 1:
            pool = stack.enter_context(ProcessPoolExecutor(len(ARMS), get_context("spawn")))
            pool.submit(int)
        run(arguments, pool)


def run(arguments: argparse.Namespace, pool: Executor | None) -> None:
    """Trains the supervised model and the arms, and compares them with the baselines."""
    dataset = load_data(arguments.source).with_surface("item_token")
    baselines = evaluate_baselines(dataset, rewards=REWARDS)
    print("training the supervised model (SFT)")
    start = "runs/example-blade-sft"
    before, sft = measured(supervised(dataset, start, arguments.max_steps), "SFT", dataset, baselines)
    print(f"training {' and '.join(ARMS)}; the progress shown is that of {SHOWN}")
    arms = train_arms(start, dataset, arguments.max_steps, baselines, pool)

    if PartialState().is_main_process:
        after = arms[-1][0]
        evaluations = {name: evaluation for name, (_, evaluation) in zip(ARMS, arms, strict=True)}
        report(dataset, {**baselines, "SFT": sft, **evaluations}, before, after)


def report(dataset: RecDataset, results: dict[str, Evaluation], before: Any, after: Any) -> None:
    """Prints lists and the table, and writes a page with the charts."""
    for name, ranked in (("before", before), ("after", after)):
        print(f"\nTen lists {name} BLADE; an arrow marks what the user chose next.\n")
        print(readable_lists(ranked, dataset.test, dataset.catalog))
    caption = f"{dataset.path}: {dataset.test.num_rows} users, the next ten items, history excluded"
    print("\n" + metrics_table(results, columns=COLUMNS, caption=caption))

    best, other = sorted(ARMS, key=lambda name: -results[name].metrics["reward"])
    print(f"\nOf the two runs, {best} has the higher reward.")
    for name in (other, "SFT"):
        gain = paired_comparison(results[best].per_user["reward"], results[name].per_user["reward"])
        print(
            f"{best} over {name}, reward: {gain.difference:+.4f} [{gain.low:+.4f}, {gain.high:+.4f}], "
            f"p {gain.p_value:.3f}"
        )

    write_report(["runs/example-blade-sft", *(f"runs/example-{name.lower()}" for name in ARMS)], REPORT)
    print(f"{REPORT} shows the course of the trainings; open it in a browser")


if __name__ == "__main__":
    main()
