"""Semantic IDs, supervised fine-tuning and preference training in stages, on MovieLens-100k: `trl-rec align3gr` in Python.

    python examples/align3gr.py [--source ml-100k] [--max_steps -1]

A small model learns to write items as three codes each. Then it is trained against its own mistakes, from easy to hard, and
against what the users disliked. Without a network and without a copy in the cache it falls back to a toy world, and says so.
Killed or run again, it goes on where it stopped.
"""

import argparse
from pathlib import Path

import datasets

from trl_rec import BearConfig, BearTrainer, RecDataset, Schedule, SoftmaxDPOConfig, prepare, run_stages
from trl_rec.data import FetchError
from trl_rec.models import make_model, make_tokenizer
from trl_rec.schedule import align3gr_stages, conclude_stages
from trl_rec.semantic_ids import make_semantic_ids


SHARED = {
    "max_length": 192,  # 63 items of three codes
    "per_device_eval_batch_size": 64,
    "gradient_checkpointing": False,
    "disable_tqdm": False,
    "report_to": "none",
    "use_cpu": True,
    "bf16": False,
}


def load_data(source: str) -> RecDataset:
    try:
        dataset = prepare(source, f"data/example-{Path(source).name}")
    except FetchError as error:
        print(f"{error}\nGoing on with the toy world: its figures say nothing about real users.\n")
        dataset = prepare("toy", "data/example-toy")
    return make_semantic_ids(dataset, codes=32).with_surface("semantic_id")


def supervised(dataset: RecDataset, folder: str, max_steps: int) -> str:
    """The folder of a policy that has learned what users choose next."""
    if Path(folder, "recommender.json").is_file():  # what is written last
        return folder
    tokenizer = make_tokenizer(dataset.catalog)
    config = BearConfig(
        folder,
        bear_weight=0,
        targets="all",
        num_train_epochs=13,
        max_steps=max_steps,
        learning_rate=3e-3,
        warmup_steps=30,
        weight_decay=0.1,
        per_device_train_batch_size=16,
        save_strategy="no",
        logging_steps=100,
        **SHARED,
    )
    model = make_model(tokenizer, max_length=192)
    trainer = BearTrainer(model, config, train_dataset=dataset.train, processing_class=tokenizer, catalog=dataset.catalog)
    trainer.train()
    trainer.save_model()
    return folder


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--source", default="ml-100k", help="ml-100k, toy, or the folder of a log with ratings")
    parser.add_argument("--max_steps", type=int, default=-1, help="training steps of each part; all by default")
    arguments = parser.parse_args()
    datasets.disable_progress_bars()

    dataset = load_data(arguments.source)
    name = f"{dataset.path.name.removeprefix('example-')}-{arguments.max_steps}"
    start = supervised(dataset, f"runs/example-align3gr-sft-{name}", arguments.max_steps)
    config = SoftmaxDPOConfig(
        f"runs/example-align3gr-{name}",
        normalize="catalogue",  # as in the supervised part: over the codes that continue an item
        sft_weight=0.1,
        num_train_epochs=1,
        max_steps=arguments.max_steps,
        learning_rate=1e-4,
        per_device_train_batch_size=16,
        save_strategy="no",
        logging_steps=50,
        **SHARED,
    )
    schedule = Schedule(dataset, config)
    stages = align3gr_stages(max_prompts=1000, num_beams=20)
    conclude_stages(run_stages(stages, start, schedule), start, schedule)


if __name__ == "__main__":
    main()
