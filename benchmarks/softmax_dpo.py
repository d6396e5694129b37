"""Compares time and memory of a Softmax-DPO training step with those of TRL's `DPOTrainer` on the same data.

    python benchmarks/softmax_dpo.py [--completions 16 3] [--prompts 2] [--prompt_tokens 200] [--vocabulary 8192]
    [--runs 5]

A prompt with one chosen and K - 1 rejected completions is one row for `SoftmaxDPOTrainer`. For `DPOTrainer`, it is
K - 1 rows, which pair the chosen completion with each rejected one. The model is a small Llama. A step consists of the
forward passes of the model and of the reference model, the backward pass and the optimizer update. The trainers take
turns on the same prompts. The program prints the median seconds per step, and the peak bytes of all tensors, including
the gradients but not the weights or the optimizer's state.

The comparison favours trl-rec in three ways. First, on a CPU (not on a GPU), TRL also applies the output layer to the
positions of the prompt. To make this difference small, run with `--vocabulary 512`. Second, TRL also measures entropy,
mean logits and token accuracy. Third, users of `DPOTrainer` would seldom make a pair for every rejected completion.
"""

from __future__ import annotations

import argparse
import os
import random
import tempfile
import time
from copy import deepcopy
from statistics import median
from typing import Any


os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")

import torch
from bear_step import PeakBytes
from datasets import Dataset, disable_progress_bars
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel, PreTrainedTokenizerFast
from trl import DPOConfig, DPOTrainer

from trl_rec.trainer import SoftmaxDPOConfig, SoftmaxDPOTrainer


COMPLETION_TOKENS = 5
COMMON: dict[str, Any] = {
    "use_cpu": True,
    "bf16": False,
    "report_to": "none",
    "activation_checkpointing": False,
    "max_length": None,
    "max_steps": 100,
    "disable_tqdm": True,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--completions", type=int, nargs="+", default=[16, 3])
    parser.add_argument("--prompts", type=int, default=2)
    parser.add_argument("--prompt_tokens", type=int, default=200)
    parser.add_argument("--vocabulary", type=int, default=8192)
    parser.add_argument("--runs", type=int, default=5)
    arguments = parser.parse_args()
    disable_progress_bars()
    tokenizer = make_tokenizer(arguments.vocabulary)
    for completions in arguments.completions:
        rows = make_rows(arguments.prompts, arguments.prompt_tokens, completions, arguments.vocabulary)
        pairs = [{**row, "rejected": rejected} for row in rows for rejected in row["rejected"]]
        with tempfile.TemporaryDirectory() as folder:
            trainers = {
                "DPOTrainer": make(DPOTrainer, DPOConfig(folder, **COMMON), pairs, tokenizer),
                "SoftmaxDPOTrainer": make(SoftmaxDPOTrainer, SoftmaxDPOConfig(folder, **COMMON), rows, tokenizer),
            }
            print(f"{completions} completions per prompt, {arguments.prompts} prompts per step:")
            measure(trainers, arguments.runs)


def make_tokenizer(size: int) -> PreTrainedTokenizerFast:
    """Returns a tokenizer with one token per word."""
    special = {"<pad>": 0, "<eos>": 1}
    words = {f"w{index}": index for index in range(len(special), size)}
    tokenizer = Tokenizer(models.WordLevel({**special, **words}, unk_token="<pad>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<eos>")


def make_rows(count: int, prompt_tokens: int, completions: int, vocabulary: int) -> list[dict[str, Any]]:
    """Returns random texts. The trainers append EOS, so completions have one word less than `COMPLETION_TOKENS`."""
    draw = random.Random(0)

    def text(length: int) -> str:
        return " ".join(f"w{draw.randrange(2, vocabulary)}" for _ in range(length))

    several = [[" " + text(COMPLETION_TOKENS - 1) for _ in range(completions)] for _ in range(count)]
    return [{"prompt": text(prompt_tokens), "chosen": chosen, "rejected": rejected} for chosen, *rejected in several]


def make(kind: type[DPOTrainer], config: DPOConfig, rows: list[dict[str, Any]], tokenizer: Any) -> DPOTrainer:
    model = make_model(len(tokenizer))
    return kind(model, deepcopy(model), config, train_dataset=Dataset.from_list(rows), processing_class=tokenizer)


def make_model(vocabulary: int) -> PreTrainedModel:
    torch.manual_seed(0)
    size = {"hidden_size": 256, "intermediate_size": 1024, "num_hidden_layers": 4, "num_attention_heads": 4}
    return LlamaForCausalLM(LlamaConfig(vocab_size=vocabulary, tie_word_embeddings=True, **size))


def measure(trainers: dict[str, DPOTrainer], runs: int) -> None:
    """Prints the time and memory of a step of each trainer, on a batch of all rows of the trainer's dataset."""
    # 1. Make one batch of all rows and an optimizer for each trainer.
    seconds: dict[str, list[float]] = {name: [] for name in trainers}
    batches = {}
    peaks = {}
    for name, trainer in trainers.items():
        trainer.model.train()
        trainer.create_optimizer()
        trainer.current_gradient_accumulation_steps = 1  # as `train` would set it
        batches[name] = trainer.data_collator(list(trainer.train_dataset))

    # 2. Time the steps. The trainers take turns.
    for _ in range(runs + 1):
        for name, trainer in trainers.items():
            start = time.perf_counter()
            step(trainer, batches[name])
            seconds[name].append(time.perf_counter() - start)

    # 3. Measure memory in a separate step, because counting the bytes slows a step down.
    for name, trainer in trainers.items():
        with PeakBytes() as bytes_:
            step(trainer, batches[name])
        peaks[name] = bytes_.peak
        mebibytes = peaks[name] / 2**20
        print(f"  {name}: {median(seconds[name][1:]):.3f} s per step, {mebibytes:.0f} MiB of tensors at the peak")

    theirs, ours = trainers
    ratio = median(a / b for a, b in zip(seconds[theirs][1:], seconds[ours][1:], strict=True))
    print(
        f"  {ours} is {ratio:.1f} times as fast as {theirs} (median of {runs} turns), and uses "
        f"{peaks[ours] / peaks[theirs]:.3f} times the bytes"
    )


def step(trainer: DPOTrainer, batch: dict[str, torch.Tensor]) -> None:
    trainer.training_step(trainer.model, dict(batch))
    trainer.optimizer.step()
    trainer.optimizer.zero_grad()


if __name__ == "__main__":
    main()
