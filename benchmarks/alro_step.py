"""Compares the times of an ALRO training step, an SFT step, and an ALRO step with two forward passes.

    python benchmarks/alro_step.py [DATASET_FOLDER --model FOLDER_OR_HUB_ID [--lora]] [--candidates 10 20]
        [--batch_size 4] [--runs 7]

ALRO reads each list of candidates in two orders, both in the same forward pass. For comparison, a variant of its
trainer uses a separate forward pass for each order. The SFT step is that of `AlroTrainer` without its two additional
losses. It reads each list in one order. Without arguments, a small model is trained on the toy dataset, where each
item is one token. With a dataset and a model, a language model is trained on titles. The three trainers take turns on
the same lists. The program prints the median number of seconds per step, which consists of the forward passes, a
backward pass and an optimizer update.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from statistics import median
from typing import Any


os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")

import torch
from peft import LoraConfig

from trl_rec import AlroConfig, AlroTrainer, RecDataset, load, prepare
from trl_rec.decoding import rated_tokens
from trl_rec.models import load_model, load_tokenizer, make_model, make_tokenizer
from trl_rec.trainer import rating_values
from trl_rec.trainer.alro.tables import AnswerTable


QUIET = {"use_cpu": True, "bf16": False, "report_to": "none", "disable_tqdm": True, "activation_checkpointing": False}


class SeparateForwards(AlroTrainer):
    """Trains with ALRO, but with a separate forward pass for each order of a list. Each pass reads the history."""

    def _answers(self, model: Any, inputs: dict[str, Any]) -> AnswerTable:
        names = ("completion_ids", "completion_mask", "answer_mask", "names")  # each (B, orders, ...)
        orders = []
        for order in range(inputs["names"].shape[1]):
            orders.append(
                super()._answers(model, {**inputs, **{name: inputs[name][:, order : order + 1] for name in names}})
            )
        return AnswerTable(*(None if parts[0] is None else torch.cat(parts, 1) for parts in zip(*orders, strict=True)))


KINDS = {
    "SFT": (AlroTrainer, {"lambda_weight": 0.0, "permutation_weight": 0.0}),
    "ALRO": (AlroTrainer, {}),
    "ALRO, two forward passes": (SeparateForwards, {}),
}


def make_trainers(dataset: RecDataset, arguments: Any, count: int, folder: str) -> dict[str, AlroTrainer]:
    if arguments.model is None:
        dataset = dataset.with_surface("item_token")
        tokenizer = make_tokenizer(dataset.catalog)
        tokenizer.add_tokens(rated_tokens(dataset.catalog, rating_values(dataset.train)))
    else:
        tokenizer = load_tokenizer(arguments.model)
    trainers = {}
    for name, (kind, options) in KINDS.items():
        model = (
            make_model(tokenizer, max_length=1024) if arguments.model is None else load_model(arguments.model).train()
        )
        config = AlroConfig(
            folder,
            **{**QUIET, **options},
            num_candidates=count,
            max_length=1024,
            per_device_train_batch_size=arguments.batch_size,
            max_steps=100,
        )
        adapter = LoraConfig(task_type="CAUSAL_LM", r=8, target_modules="all-linear") if arguments.lora else None
        common = {"train_dataset": dataset.train, "processing_class": tokenizer, "catalog": dataset.catalog}
        trainers[name] = kind(model, config, peft_config=adapter, **common)
    return trainers


def measure(trainers: dict[str, AlroTrainer], runs: int) -> dict[str, list[float]]:
    """Returns the seconds of every step except the first, for each trainer."""
    # 1. Make the same batches for all trainers, and an optimizer for each.
    seconds: dict[str, list[float]] = {name: [] for name in trainers}
    batches = {}
    for name, trainer in trainers.items():
        trainer.model.train()
        trainer.create_optimizer()
        trainer.state.max_steps = trainer.args.max_steps
        trainer.current_gradient_accumulation_steps = 1  # as `train` would set it
        torch.manual_seed(0)  # gives every trainer the same order of the rows
        batches[name] = [batch for _, batch in zip(range(runs + 1), trainer.get_train_dataloader(), strict=False)]

    # 2. Time the steps. The trainers take turns.
    for run in range(runs + 1):
        for name, trainer in trainers.items():
            start = time.perf_counter()
            trainer.training_step(trainer.model, dict(batches[name][run]))
            trainer.optimizer.step()
            trainer.optimizer.zero_grad()
            seconds[name].append(time.perf_counter() - start)
    return {name: values[1:] for name, values in seconds.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dataset", nargs="?")
    parser.add_argument("--model")
    parser.add_argument("--lora", action="store_true")
    parser.add_argument("--candidates", type=int, nargs="+", default=[10, 20])
    parser.add_argument("--batch_size", type=int, default=4)
    parser.add_argument("--runs", type=int, default=7)
    arguments = parser.parse_args()

    with tempfile.TemporaryDirectory() as folder:
        dataset = load(arguments.dataset) if arguments.dataset else prepare("toy", f"{folder}/data")
        for count in arguments.candidates:
            seconds = measure(make_trainers(dataset, arguments, count, folder), arguments.runs)
            print(
                f"{count} candidates: "
                + ", ".join(f"{name} {median(values):.3f} s" for name, values in seconds.items())
            )
            for other in ("SFT", "ALRO, two forward passes"):
                ratio = median(b / a for a, b in zip(seconds[other], seconds["ALRO"], strict=True))
                print(
                    f"  ALRO takes {ratio:.2f} times the time of {other} (median of {arguments.runs} pairs)",
                    flush=True,
                )


if __name__ == "__main__":
    main()
