"""A training step of BLADE against one of TRL's `GRPOTrainer`: same model, prompts, group size and completion length.

    python benchmarks/blade_step.py [--items 1682] [--prompts 8] [--lists 8] [--length 10] [--steps 6] [--runs 3]

Rollouts, rewards, the reference's forward, backward and update all count, of a small model of random weights that
writes one token an item. `GRPOTrainer` runs twice: as it is, which draws from the whole vocabulary, so that lists
repeat items and hold what is none; and with `generate` given a logits processor that leaves distinct items of the
catalogue. What it does not do either way: leave out the history, and score all lists of a prompt in one row. The
trainers take turns; prints medians.
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
    """The seconds of each step."""

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
        ways = {
            "BladeTrainer": partial(blade, dataset, arguments, folder),
            "GRPOTrainer": partial(grpo, dataset, arguments, folder, constrained=False),
            "GRPOTrainer, constrained": partial(grpo, dataset, arguments, folder, constrained=True),
        }
        seconds: dict[str, list[float]] = {name: [] for name in ways}
        for _ in range(arguments.runs):
            for name, make in ways.items():
                seconds[name].append(median(timed(make())))
    print(
        f"{torch.get_num_threads()} threads, {arguments.prompts} prompts, {arguments.lists} lists of {arguments.length} items"
    )
    for name, taken in seconds.items():
        ratio = median(other / ours for other, ours in zip(taken, seconds["BladeTrainer"], strict=True))
        print(f"  {name}: {median(taken):.3f} s a step, {ratio:.1f} times ours", flush=True)


def timed(trainer: Any) -> list[float]:
    """Seconds of the steps after the first."""
    clock = Clock()
    trainer.add_callback(clock)
    trainer.train()
    return clock.seconds[1:]


def policy(dataset: RecDataset, arguments: argparse.Namespace) -> tuple[Any, Any]:
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
    """The same prompts as text; the reward is NDCG of the tokens."""
    ours = blade(dataset, arguments, folder)
    model, tokenizer = policy(dataset, arguments)
    prompts = [
        tokenizer.decode(row[1:]) for row in ours.train_dataset["prompt_ids"]
    ]  # GRPO's tokenizer begins them itself
    first = tokenizer.convert_tokens_to_ids("<item_0>")
    rows = {"prompt": prompts, "wanted": [[first + item for item in row] for row in ours.train_dataset["targets"]]}
    model.save_pretrained(folder + "/policy")  # by whose name the trainer loads the reference
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
    """`generate` with the processor, made anew for each call's prompts."""
    generate = model.generate

    def constrained(*args: Any, input_ids: torch.Tensor, **kwargs: Any) -> Any:
        processors = LogitsProcessorList([ListProcessor(trie, input_ids.shape[1], length)])
        return generate(*args, input_ids=input_ids, logits_processor=processors, **kwargs)

    return constrained


def ndcg(completion_ids: list[list[int]], wanted: list[list[int]], **_: Any) -> list[float]:
    """NDCG of each list of tokens."""
    gains = 1 / np.log2(np.arange(2, 2 + max(map(len, completion_ids))))
    return [
        float(sum(gains[place] for place, token in enumerate(ids) if token in right) / gains[: len(right)].sum())
        for ids, right in zip(completion_ids, wanted, strict=True)
    ]


if __name__ == "__main__":
    main()
