"""Compares the times of three ways to train on a user's items: all in one row, one row per item, and with TRL.

    python benchmarks/every_position.py DATASET_FOLDER --model FOLDER_OR_GGUF [--tiny] [--items 20] [--runs 3]
        [--batch_size 4] [--max_length 1024] [--dtype float32|bfloat16]

Items are written as titles, which a language model's tokenizer splits into tokens. Each run uses one user. The user's
first `--items` + 1 items are a sequence, and all but the first are targets. A step is a forward and a backward pass
over these targets, in one of three ways:

- all targets in one row;
- one row per target, with `--batch_size` rows per micro-batch;
- for TRL, one row per target, packed by TRL into rows of `--max_length` tokens.

These ways take turns on the same user. They are measured with two kinds of softmax. With the softmax over legal
tokens, which TRL does not have, a token that is the only legal one is not learned. With the softmax over the
vocabulary, all tokens of titles are learned.

The program prints the number of tokens per step (without padding) and the median number of seconds per step. It
compares the first way with each of the others: the ratio of the tokens, the ratio of the seconds, and the largest
difference between the losses. `--tiny` uses 2 layers of random weights with the same vocabulary. OMP_NUM_THREADS sets
the number of threads.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from collections.abc import Iterator
from statistics import median
from typing import Any, NamedTuple


os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")

import numpy as np
import torch
from bear_step import tiny
from datasets import Dataset, disable_progress_bars
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from trl import SFTConfig, SFTTrainer, pack_dataset

from trl_rec import BearConfig, BearTrainer, RecDataset, load
from trl_rec.data import PromptFormat, build_rows
from trl_rec.models import load_model, load_tokenizer


EVERY, ROWS, TRL = "every position", "one row per target", "TRL, packed"


class Step(NamedTuple):
    """The number of tokens that a step read, its seconds, and its loss."""

    tokens: int
    seconds: float
    loss: float


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dataset")
    parser.add_argument("--model", required=True)
    parser.add_argument("--tiny", action="store_true")
    parser.add_argument("--items", type=int, default=20)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--batch_size", type=int, default=4)
    parser.add_argument("--max_length", type=int, default=1024)
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    arguments = parser.parse_args()
    disable_progress_bars()

    dataset = load(arguments.dataset).with_surface("title")
    tokenizer = load_tokenizer(arguments.model)
    dtype = getattr(torch, arguments.dtype)
    model = tiny(len(tokenizer)).to(dtype) if arguments.tiny else load_model(arguments.model, dtype=dtype)
    print(f"{torch.get_num_threads()} threads, {sum(map(torch.numel, model.parameters())) / 1e6:.1f} M parameters")
    for softmax in ("legal", "vocabulary"):
        measure(softmax, dataset, tokenizer, model.train(), arguments)


def users(dataset: RecDataset, num_items: int, count: int) -> Iterator[Dataset]:
    """Yields `count` training rows, each with one item as history and `num_items` targets."""
    lengths = np.array([len(targets) for targets in dataset.train["targets"]])
    enough = np.flatnonzero(lengths >= num_items)
    if len(enough) < count:
        raise SystemExit(f"only {len(enough)} users have {num_items + 1} training items; lower --items or --runs")
    for row in enough[np.linspace(0, len(enough) - 1, count).round().astype(int)].tolist():
        user = dataset.train.select([row])
        columns = {**user[0], "targets": user[0]["targets"][:num_items]}
        yield Dataset.from_list([columns], features=user.features, split="train")


def measure(
    softmax: str,
    dataset: RecDataset,
    tokenizer: PreTrainedTokenizerBase,
    model: PreTrainedModel,
    arguments: argparse.Namespace,
) -> None:
    """Prints the figures for one kind of softmax."""
    common: dict[str, Any] = {
        "max_length": arguments.max_length,
        "per_device_train_batch_size": arguments.batch_size,
        "use_cpu": not torch.cuda.is_available(),
        "bf16": False,
        "report_to": "none",
        "activation_checkpointing": False,
        "max_steps": 1,
    }
    steps: dict[str, list[Step]] = {EVERY: [], ROWS: []} | ({TRL: []} if softmax == "vocabulary" else {})
    for user in users(dataset, arguments.items, arguments.runs + 1):  # the first run warms up
        with tempfile.TemporaryDirectory() as folder:
            for name in steps:
                trainer = make(name, softmax, user, dataset, tokenizer, model, folder, common)
                steps[name].append(step(trainer, 1 if name == TRL else arguments.batch_size))

    # The first run is left out.
    seconds = {}
    tokens = {}
    for name, taken in steps.items():
        tokens[name] = sum(one.tokens for one in taken[1:]) / arguments.runs
        seconds[name] = median(one.seconds for one in taken[1:])
        print(f"{softmax}, {name}: {tokens[name]:.0f} tokens and {seconds[name]:.2f} s per {arguments.items} targets")
    for name in list(steps)[1:]:
        fewer = tokens[name] / tokens[EVERY]
        pairs = list(zip(steps[name][1:], steps[EVERY][1:], strict=True))
        faster = median(other.seconds / every.seconds for other, every in pairs)
        difference = max(abs(other.loss - every.loss) for other, every in pairs)
        print(
            f"{softmax}, every position against {name}: {fewer:.1f} times fewer tokens, {faster:.1f} times faster "
            f"(the speedup is {faster / fewer:.2f} of the token ratio), losses differ by {difference:.0e} at most"
        )


def make(
    name: str,
    softmax: str,
    user: Dataset,
    dataset: RecDataset,
    tokenizer: PreTrainedTokenizerBase,
    model: PreTrainedModel,
    folder: str,
    common: dict[str, Any],
) -> SFTTrainer:
    """Returns a trainer of one kind on the targets of one user."""
    if name != TRL:
        targets = "all" if name == EVERY else "last"
        config = BearConfig(folder, bear_weight=0, softmax=softmax, targets=targets, **common)
        trainer: SFTTrainer = BearTrainer(
            model, config, train_dataset=user, processing_class=tokenizer, catalog=dataset.catalog
        )
    else:
        rows = build_rows(user, PromptFormat.for_catalog(dataset.catalog, tokenizer), max_length=common["max_length"])
        packed = pack_dataset(rows.select_columns(["input_ids", "labels"]), common["max_length"], "bfd")
        # The rows are already tokenized and packed, so TRL must neither prepare nor truncate them.
        own = {"padding_free": True, "dataset_kwargs": {"skip_prepare_dataset": True}, "max_length": None}
        config = SFTConfig(folder, **(common | own))
        trainer = SFTTrainer(model, config, train_dataset=packed, processing_class=tokenizer)
    return trainer


def step(trainer: SFTTrainer, batch_size: int) -> Step:
    """Runs a forward and a backward pass over all rows of a trainer."""
    rows = [trainer.train_dataset[row] for row in range(len(trainer.train_dataset))]
    batches = [trainer.data_collator(rows[start : start + batch_size]) for start in range(0, len(rows), batch_size)]
    count = sum((batch["labels"][:, 1:] != -100).sum() for batch in batches)
    tokens = sum(
        int(batch["attention_mask"].sum()) if "attention_mask" in batch else batch["input_ids"].numel()
        for batch in batches
    )
    start = time.perf_counter()
    losses = [trainer.training_step(trainer.model, batch, num_items_in_batch=count) for batch in batches]
    seconds = time.perf_counter() - start
    trainer.model.zero_grad()
    return Step(tokens, seconds, float(sum(losses)))


if __name__ == "__main__":
    main()
