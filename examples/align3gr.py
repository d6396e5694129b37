"""Runs Align3GR on MovieLens-100k: makes semantic IDs, fine-tunes on several tasks, and trains on preferences.

    python examples/align3gr.py [--source ml-100k] [--max_steps -1]

This is `trl-rec align3gr` in Python. Items and users get three codes each, made from their texts and from the users'
choices. A small model learns to read and write these codes. Then it learns, in five stages, to prefer the items that
users chose. In the first three stages, the rejected items are wrong items that the model's own beam search found: easy
ones in the first stage, and harder ones in the second and third. In the last two stages, the rejected items are items
that the same user rated lower than the chosen item. If the data is not cached and cannot be downloaded, the program
uses a synthetic dataset and prints a note. If the program is killed, run the same command again to continue.
"""

import argparse
from pathlib import Path
from typing import Any

import datasets

from trl_rec import BearConfig, RecDataset, Recommender, Schedule, SoftmaxDPOConfig, prepare
from trl_rec.data import FetchError
from trl_rec.models import RecModelConfig
from trl_rec.schedule import align, align3gr_stages, give_ids, learn_supervised
from trl_rec.semantic_ids import DualIdsConfig, describe_ids, read_ids_card


IDS = DualIdsConfig(text_encoder="words", codes=32, max_epochs=4)
# The number of rows of each task, as a multiple of the number of next-item rows.
TASKS = {"next_item": 1.0, "item_to_id": 0.1, "id_to_item": 0.1, "profile_to_user": 0.1, "history_to_preference": 0.1}
SHARED: dict[str, Any] = {
    "prompt_head": "{user}",  # prompts for the next item begin with the user's semantic ID
    "max_length": 192,  # enough for the codes of 62 items and of the user
    "per_device_train_batch_size": 16,
    "per_device_eval_batch_size": 64,
    "save_strategy": "no",
    "logging_steps": 100,
    "activation_checkpointing": False,
    "disable_tqdm": False,
    "report_to": "none",
    "use_cpu": True,
    "bf16": False,
}


def load_data(source: str) -> RecDataset:
    try:
        return prepare(source, f"data/example-{Path(source).name}")
    except FetchError as error:
        print(f"{error}\nContinuing with the synthetic dataset `toy`. Results on it say nothing about real users.\n")
        return prepare("toy", "data/example-toy")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--source", default="ml-100k", help="ml-100k, toy, or the folder of a log with ratings")
    parser.add_argument("--max_steps", type=int, default=-1, help="limit on the steps of each training; -1: no limit")
    arguments = parser.parse_args()
    datasets.disable_progress_bars()

    print("part 1 of 3: semantic IDs")
    dataset = give_ids(load_data(arguments.source), IDS)
    print(describe_ids(read_ids_card(dataset.path)))
    runs = f"runs/example-align3gr-{dataset.path.name.removeprefix('example-')}-{arguments.max_steps}"

    print("part 2 of 3: supervised fine-tuning on several tasks")
    supervised = BearConfig(
        f"{runs}/supervised",
        bear_weight=0,
        targets="all",
        tasks=TASKS,
        num_train_epochs=3,
        max_steps=arguments.max_steps,
        learning_rate=3e-3,
        warmup_steps=30,
        weight_decay=0.1,
        **SHARED,
    )
    start = learn_supervised(dataset, supervised, RecModelConfig())

    print("part 3 of 3: preference stages")
    config = SoftmaxDPOConfig(
        runs,
        normalize="catalogue",
        num_train_epochs=1,
        max_steps=arguments.max_steps,
        learning_rate=1e-4,
        sft_weight=1.0,
        **SHARED,
    )
    align(align3gr_stages(max_prompts=1000, num_beams=20), start, Schedule(dataset, config))

    recommender = Recommender.from_pretrained(runs)
    titles = dict(zip(dataset.catalog.ids, dataset.catalog.titles, strict=True))
    for user in dataset.users["user_id"].to_pylist()[:3]:
        history = dataset.history_of(user)
        print(f"\nuser {user}, after {' | '.join(titles[item] for item in history[:-4:-1])}")
        for rank, item in enumerate(recommender.recommend(history, user=dataset.user_index(user)), 1):
            print(f"{rank:>5}. {item.title}")


if __name__ == "__main__":
    main()
