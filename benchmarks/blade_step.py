"""Compares the time of a BLADE training step with that of a step of TRL's `GRPOTrainer`.

    python benchmarks/blade_step.py [--items 1682] [--prompts 8] [--lists 8] [--length 10] [--steps 6] [--runs 3]

Both trainers use the same small model with random weights, with one token per item, and the same prompts, group size
and completion length. A step consists of the rollouts, the rewards, the forward passes of the policy and the reference
model, the backward pass and the optimizer update.

`GRPOTrainer` is timed in two ways. Without changes, it samples from the whole vocabulary, so its lists may contain
duplicates and tokens that are not items. With a logits processor, it samples only distinct items of the catalogue. In
both cases, its lists may contain items of the history, and the forward passes read the prompt again for each list. The
trainers take turns. The program prints the median number of seconds per step.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from functools import partial
from statistics import median
from typing import Any


os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")

import numpy as np
import torch
from datasets import Dataset, disable_progress_bars
from rollouts import ListProcessor
from transformers import LogitsProcessorList, TrainerCallback
from trl import GRPOConfig, GRPOTrainer

from trl_rec import BladeConfig, BladeTrainer, RecDataset, TokenTrie, prepare
from trl_rec.models import make_model, make_tokenizer


COMMON: dict[str, Any] = {
    "use_cpu": True,
    "bf16": False,
    "report_to": "none",
    "activation_checkpointing": False,
    "learning_rate": 1e-5,
    "disable_tqdm": True,
    "logging_steps": 1000,
    "save_strategy": "no",
    "num_iterations": 1,
    "beta": 0.1,
    "temperature": 1.0,
}


class Clock(TrainerCallback):
    """Records the seconds of each step."""

    def __init__(self) -> None:
        self.seconds: list[float] = []
        self.start = 0.0

    def on_step_begin(self, *_: Any, **__: Any) -> None:
        self.start = time.perf_counter()

    def on_step_end(self, *_: Any, **__: Any) -> None:
        self.seconds.append(time.perf_counter() - self.start)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--items", type=int, default=1682)
    parser.add_argument("--prompts", type=int, default=8)
    parser.add_argument("--lists", type=int, default=8)
    parser.add_argument("--length", type=int, default=10)
    parser.add_argument("--hidden", type=int, default=64)
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--runs", type=int, default=3)
    arguments = parser.parse_args()
    disable_progress_bars()

    with tempfile.TemporaryDirectory() as folder:
        dataset = prepare("toy", folder + "/data", toy_users=500, toy_items=arguments.items).with_surface("item_token")
        trainers = {
            "BladeTrainer": partial(blade, dataset, arguments, folder),
            "GRPOTrainer": partial(grpo, dataset, arguments, folder, constrained=False),
            "GRPOTrainer, constrained": partial(grpo, dataset, arguments, folder, constrained=True),
        }
        seconds: dict[str, list[float]] = {name: [] for name in trainers}
        for _ in range(arguments.runs):
            for name, make in trainers.items():
                seconds[name].append(median(timed(make())))

    sizes = f"{arguments.prompts} prompts, {arguments.lists} lists of {arguments.length} items"
    print(f"{torch.get_num_threads()} threads, {sizes}")
    for name, taken in seconds.items():
        ratio = median(other / ours for other, ours in zip(taken, seconds["BladeTrainer"], strict=True))
        print(f"  {name}: {median(taken):.3f} s per step, {ratio:.1f} times the time of BladeTrainer", flush=True)


def timed(trainer: Any) -> list[float]:
    """Returns the seconds of each step after the first."""
    clock = Clock()
    trainer.add_callback(clock)
    trainer.train()
    return clock.seconds[1:]


def policy(dataset: RecDataset, arguments: argparse.Namespace) -> tuple[Any, Any]:
    """Returns a small model with random weights, and its tokenizer."""
    tokenizer = make_tokenizer(dataset.catalog)
    size = {"hidden_size": arguments.hidden, "num_layers": arguments.layers, "dropout": 0.0}
    return make_model(tokenizer, max_length=256, **size), tokenizer


def blade(dataset: RecDataset, arguments: argparse.Namespace, folder: str) -> BladeTrainer:
    model, tokenizer = policy(dataset, arguments)
    config = BladeConfig(
        folder + "/blade",
        **COMMON,
        list_length=arguments.length,
        num_generations=arguments.lists,
        num_references=0,
        target="reward",
        max_length=256,
        max_prompts=64 * arguments.prompts,
        per_device_train_batch_size=arguments.prompts,
        max_steps=arguments.steps,
        eval_ks=[arguments.length],
    )
    return BladeTrainer(
        model, args=config, train_dataset=dataset.train, processing_class=tokenizer, catalog=dataset.catalog
    )


def grpo(dataset: RecDataset, arguments: argparse.Namespace, folder: str, *, constrained: bool) -> GRPOTrainer:
    """Returns a `GRPOTrainer` that trains on the prompts of `blade`, as text. The reward of a list is its NDCG."""
    ours = blade(dataset, arguments, folder)
    model, tokenizer = policy(dataset, arguments)

    # Leave out the first token, because `GRPOTrainer` tokenizes the text again, which adds this token.
    prompts = [tokenizer.decode(row[1:]) for row in ours.train_dataset["prompt_ids"]]
    first = tokenizer.convert_tokens_to_ids("<item_0>")
    rows = {"prompt": prompts, "wanted": [[first + item for item in row] for row in ours.train_dataset["targets"]]}
    model.save_pretrained(folder + "/policy")  # the trainer loads the policy and the reference model from here

    config = GRPOConfig(
        folder + "/grpo",
        **COMMON,
        max_steps=arguments.steps,
        per_device_train_batch_size=arguments.prompts * arguments.lists,
        num_generations=arguments.lists,
        max_completion_length=arguments.length,
    )
    trainer = GRPOTrainer(
        folder + "/policy", ndcg, config, train_dataset=Dataset.from_dict(rows), processing_class=tokenizer
    )
    if constrained:
        trie = TokenTrie.from_catalog(dataset.catalog, tokenizer, lists=True)
        trainer.model.generate = constrained_generate(trainer.model, trie, arguments.length)
    return trainer


def constrained_generate(model: Any, trie: TokenTrie, length: int) -> Any:
    """Returns a replacement for the model's `generate` that allows only distinct items.

    Each call makes a new processor, because the prompts differ in length from call to call.
    """
    generate = model.generate

    def constrained(*args: Any, input_ids: torch.Tensor, **kwargs: Any) -> Any:
        processors = LogitsProcessorList([ListProcessor(trie, input_ids.shape[1], length)])
        return generate(*args, input_ids=input_ids, logits_processor=processors, **kwargs)

    return constrained


def ndcg(completion_ids: list[list[int]], wanted: list[list[int]], **_: Any) -> list[float]:
    """Returns the NDCG of each list of tokens."""
    gains = 1 / np.log2(np.arange(2, 2 + max(map(len, completion_ids))))
    return [
        float(sum(gains[place] for place, token in enumerate(ids) if token in right) / gains[: len(right)].sum())
        for ids, right in zip(completion_ids, wanted, strict=True)
    ]


if __name__ == "__main__":
    main()
