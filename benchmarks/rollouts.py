"""Compares how fast `sample_item_lists` and `model.generate` sample lists of distinct items.

    python benchmarks/rollouts.py [--items 1682] [--prompts 8] [--lists 8] [--length 10] [--history 50] [--runs 5]

The model is a Llama with random weights. Items are written as one token each, as semantic IDs of three tokens, or as
titles of 4 to 16 tokens. `generate` uses a logits processor, which allows only tokens that lead to an item which the
list does not contain yet. The processor handles all rows at once. `generate` is timed in two ways: with one call per
prompt, as in a rollout loop over histories of different lengths, and with one call for all prompts. The methods take
turns. The program prints the median number of lists per second. OMP_NUM_THREADS sets the number of threads.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable
from statistics import median


os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")

import numpy as np
import torch
from torch import Tensor
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM, LogitsProcessor, LogitsProcessorList

from trl_rec.decoding import sample_item_lists
from trl_rec.decoding.excluded import Excluded
from trl_rec.items import TokenTrie


EOS = 1  # token 0 is padding, and token 2 begins a prompt
FIRST = 3  # the smallest token id that is used in items


class ListProcessor(LogitsProcessor):
    """Allows only tokens that continue a list of distinct items, and only EOS after a complete list."""

    def __init__(self, trie: TokenTrie, prompt_length: int, list_length: int) -> None:
        self.trie = trie
        self.prompt_length = prompt_length
        self.list_length = list_length
        self.nodes = torch.empty(0)  # (rows,): the trie node of each row
        self.items = torch.empty(0)  # (rows, list_length): the items of each list, then -1

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Returns the scores `(rows, V)`, minus infinity at illegal tokens."""
        self._advance(input_ids)

        # Keep the children that lead to an item which is not in the list.
        tokens, children, legal = self.trie.children(self.nodes)
        legal &= ~Excluded(self.trie, self.items, len(scores)).emptied(children)
        masked = torch.full_like(scores, -torch.inf)
        masked.scatter_reduce_(1, tokens, scores.gather(1, tokens).masked_fill(~legal, -torch.inf), "amax")

        # A complete list continues with EOS.
        done = (self.items >= 0).sum(1) == self.list_length
        masked[done] = -torch.inf
        masked[:, EOS] = torch.where(done, 0.0, masked[:, EOS])
        return masked

    def _advance(self, input_ids: Tensor) -> None:
        if input_ids.shape[1] == self.prompt_length:
            self.nodes = torch.zeros(len(input_ids), dtype=torch.int64)
            self.items = torch.full((len(input_ids), self.list_length), -1)
            return

        # If a path has ended, add its item to the list and return to the root.
        self.nodes = self.trie.advance(self.nodes, input_ids[:, -1])
        ended = (self.nodes >= 0) & (self.trie.row_offsets[self.nodes] == self.trie.row_offsets[self.nodes + 1])
        item = self.trie.items[self.trie.item_starts[self.nodes]].long()
        slot = (self.items >= 0).sum(1, keepdim=True).clamp(max=self.list_length - 1)
        self.items.scatter_(1, slot, torch.where(ended.unsqueeze(1), item.unsqueeze(1), self.items.gather(1, slot)))
        self.nodes = torch.where(ended | (self.nodes < 0), 0, self.nodes)


def generate(
    model: LlamaForCausalLM, prompts: dict[str, Tensor], trie: TokenTrie, num_lists: int, length: int
) -> Tensor:
    """Returns the sampled tokens of one call, `(B, num_lists, T)`."""
    width = prompts["input_ids"].shape[1]
    config = GenerationConfig(
        do_sample=True,
        top_k=0,
        num_return_sequences=num_lists,
        max_new_tokens=length * trie.max_depth + 1,
        eos_token_id=EOS,
        pad_token_id=0,
    )
    processors = LogitsProcessorList([ListProcessor(trie, width, length)])
    sequences = model.generate(**prompts, generation_config=config, logits_processor=processors)
    return sequences[:, width:].view(len(prompts["input_ids"]), num_lists, -1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--items", type=int, default=1682)
    parser.add_argument("--prompts", type=int, default=8)
    parser.add_argument("--lists", type=int, default=8)
    parser.add_argument("--length", type=int, default=10)
    parser.add_argument("--history", type=int, default=50)
    parser.add_argument("--hidden", type=int, default=64)
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--surfaces", nargs="+", default=["item_token", "semantic_id", "title"])
    parser.add_argument("--runs", type=int, default=5)
    arguments = parser.parse_args()
    counts = f"{arguments.prompts} prompts, {arguments.lists} lists of {arguments.length} items per prompt"
    print(f"{torch.get_num_threads()} threads; {counts}")
    for surface in arguments.surfaces:
        measure(surface, arguments)


def measure(surface: str, arguments: argparse.Namespace) -> None:
    """Prints the figures for one way to write items."""
    # 1. Make a catalogue, a model, and prompts of random histories.
    paths, vocab_size = make_paths(surface, arguments.items)
    trie = TokenTrie.from_sequences(paths)
    model = small(vocab_size, arguments.hidden, arguments.layers)
    histories = torch.randint(arguments.items, (arguments.prompts, arguments.history)).tolist()
    rows = [[2] + [token for item in history for token in paths[item]] for history in histories]
    batch = padded(rows)
    alone = [padded([row]) for row in rows]

    # 2. The methods take turns; the first run warms up.
    counts = (arguments.lists, arguments.length)
    methods: dict[str, Callable[[], object]] = {
        "sample_item_lists": lambda: sample_item_lists(model, batch, trie, num_lists=counts[0], list_length=counts[1]),
        "generate, one call per prompt": lambda: [generate(model, prompt, trie, *counts) for prompt in alone],
        "generate, one call": lambda: generate(model, batch, trie, *counts),
    }
    seconds: dict[str, list[float]] = {name: [] for name in methods}
    for _ in range(arguments.runs + 1):
        for name, method in methods.items():
            start = time.perf_counter()
            method()
            seconds[name].append(time.perf_counter() - start)

    print(f"{surface}: paths of up to {trie.max_depth} tokens, prompts of {batch['input_ids'].shape[1]}")
    for name, taken in seconds.items():
        ratio = median(other / ours for other, ours in zip(taken[1:], seconds["sample_item_lists"][1:], strict=True))
        rate = arguments.prompts * arguments.lists / median(taken[1:])
        print(f"  {name}: {rate:.0f} lists per second, {ratio:.1f} times the time of sample_item_lists", flush=True)


def make_paths(surface: str, num_items: int) -> tuple[list[list[int]], int]:
    """Returns the token paths of the items, and the size of the vocabulary."""
    rng = np.random.default_rng(0)
    if surface == "item_token":
        return [[FIRST + item] for item in range(num_items)], FIRST + num_items
    if surface == "semantic_id":  # 64 codes per level; the third code numbers the items that share the first two
        codes = rng.integers(0, 64, (num_items, 2)).tolist()
        seen: dict[tuple[int, ...], int] = {}
        paths = []
        for pair in codes:
            rank = seen[tuple(pair)] = seen.get(tuple(pair), -1) + 1
            paths.append([FIRST + pair[0], FIRST + 64 + pair[1], FIRST + 128 + rank])
        return paths, FIRST + 192
    words = (FIRST + 2 + (rng.zipf(1.3, (num_items, 14)) % 4000)).tolist()
    lengths = rng.integers(2, 15, num_items).tolist()
    return [[FIRST, *row[:length], FIRST + 1] for row, length in zip(words, lengths, strict=True)], FIRST + 4002


def small(vocab_size: int, hidden: int, layers: int) -> LlamaForCausalLM:
    torch.manual_seed(0)
    size = {
        "hidden_size": hidden,
        "intermediate_size": 4 * hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": 4,
    }
    return LlamaForCausalLM(LlamaConfig(vocab_size=vocab_size, initializer_range=0.1, **size)).eval()


def padded(rows: list[list[int]]) -> dict[str, Tensor]:
    width = max(map(len, rows))
    ids = torch.tensor([[0] * (width - len(row)) + row for row in rows])
    return {"input_ids": ids, "attention_mask": (ids > 0).long()}


if __name__ == "__main__":
    main()
