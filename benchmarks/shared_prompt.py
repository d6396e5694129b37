"""Compares the speed and memory of two ways to process K completions of a prompt: in one row, and in K rows.

    python benchmarks/shared_prompt.py [--prompt 200] [--tokens 5] [--completions 16 4 3] [--batch_size 1] [--runs 7]

The completions share one row that contains the prompt once, or each has a separate row with a copy of the prompt. Each
run computes the sum of the completions' log-probabilities and its gradient, with a small Llama that has random
weights. Both methods compute logits only at the completions, and they take turns. For each method, the program prints
the median time and the peak memory of all tensors except weights and gradients. It also prints how many times faster
the shared row is, how many times fewer tokens it contains than the separate rows, and the largest difference between
the log-probabilities of the two methods. OMP_NUM_THREADS sets the number of threads.
"""

from __future__ import annotations

import argparse
import os
import time
from statistics import median


os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")

import torch
from bear_step import PeakBytes
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from trl_rec.models import completion_logps
from trl_rec.models.completions import _read, lay_out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prompt", type=int, default=200)
    parser.add_argument("--tokens", type=int, default=5)
    parser.add_argument("--completions", type=int, nargs="+", default=[16, 4, 3])
    parser.add_argument("--batch_size", type=int, default=1)
    parser.add_argument("--vocabulary", type=int, default=8000)
    parser.add_argument("--runs", type=int, default=7)
    arguments = parser.parse_args()
    model = small(arguments.vocabulary)
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)  # allocated now, so that it is not counted in either measurement
    print(f"{torch.get_num_threads()} threads, {sum(map(torch.numel, model.parameters())) / 1e6:.1f} M parameters")
    for count in arguments.completions:
        measure(model, arguments.batch_size, arguments.prompt, count, arguments.tokens, arguments.runs)


def small(vocab_size: int) -> LlamaForCausalLM:
    torch.manual_seed(0)
    size = {"hidden_size": 256, "intermediate_size": 1024, "num_hidden_layers": 4}
    heads = {"num_attention_heads": 8, "num_key_value_heads": 4}
    return LlamaForCausalLM(LlamaConfig(vocab_size=vocab_size, **size, **heads)).train()


def measure(model: LlamaForCausalLM, batch: int, prompt: int, count: int, tokens: int, runs: int) -> None:
    """Prints the time and memory of separate and of shared rows on the same texts."""
    texts = make_texts(model.config.vocab_size, batch, prompt, count, tokens)
    methods = {"separate": False, "shared": True}
    seconds: dict[str, list[float]] = {name: [] for name in methods}
    peaks = {}
    logps = {}

    # Measure time first, because counting bytes slows a step down. The first run warms up.
    for _ in range(runs + 1):
        for name, shared in methods.items():
            start = time.perf_counter()
            logps[name] = step(model, texts, shared)
            seconds[name].append(time.perf_counter() - start)
    for name, shared in methods.items():
        with PeakBytes() as alive:
            step(model, texts, shared)
        peaks[name] = alive.peak
        print(f"K={count} {name}: {median(seconds[name][1:]):.3f} s, {alive.peak / 2**20:.0f} MiB at the peak")

    faster = median(a / b for a, b in zip(seconds["separate"][1:], seconds["shared"][1:], strict=True))
    fewer = count * (prompt + tokens) / (prompt + count * tokens)
    speed = f"shared is {faster:.1f} times faster (median of {runs} pairs)"
    share = f"the speedup is {faster / fewer:.2f} of the token ratio"
    print(f"K={count}: {speed} and reads {fewer:.1f} times fewer tokens; {share}")
    difference = (logps["shared"] - logps["separate"]).abs().max()
    memory = f"shared uses {peaks['shared'] / peaks['separate']:.2f} times the memory of separate at the peak"
    print(f"K={count}: {memory}; log-probabilities differ by {difference:.0e} at most")


def make_texts(
    vocab_size: int, batch: int, prompt: int, count: int, tokens: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Returns prompts `(B, P)` and completions `(B, K, T)` of random ids, each with its mask."""
    prompt_ids = torch.randint(vocab_size, (batch, prompt))
    completion_ids = torch.randint(vocab_size, (batch, count, tokens))
    return prompt_ids, torch.ones_like(prompt_ids).bool(), completion_ids, torch.ones_like(completion_ids).bool()


def step(model: LlamaForCausalLM, texts: tuple[Tensor, Tensor, Tensor, Tensor], shared: bool) -> Tensor:
    """Runs a forward and a backward pass, and returns the log-probabilities of the completions' tokens."""
    logps = completion_logps(_read(model, model, lay_out(*texts, texts[-1], shared=shared)), *texts[2:])
    logps.sum().backward()
    return logps.detach()


if __name__ == "__main__":
    main()
