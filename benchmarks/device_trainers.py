"""Builds and measures our four trainers, the corresponding trainers of TRL, and beam search, for `device.py`.

A pair of trainers gets the same model with the same adapter, and the same rows or prompts as far as the methods allow:

- BEAR and `SFTTrainer`: the same rows.
- ALRO and `SFTTrainer`: the same lists. ALRO shows each list in two orders, and SFT shows it in one order.
- Softmax-DPO and `DPOTrainer`: the same prompts. A prompt with three rejected answers is one row for Softmax-DPO, and
  three rows for `DPOTrainer`.
- BLADE and `GRPOTrainer`: the same prompts and number of rollouts. GRPO's rollouts are not constrained to the
  catalogue. They have at most as many tokens as ten titles of mean length.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import torch
from datasets import Dataset
from device_clock import Clock, start_afresh, synchronize
from device_world import World
from peft import LoraConfig
from trl import DPOConfig, DPOTrainer, GRPOConfig, GRPOTrainer, SFTConfig, SFTTrainer

from trl_rec import (
    AlroConfig,
    AlroTrainer,
    BearConfig,
    BearTrainer,
    BladeConfig,
    BladeTrainer,
    TokenTrie,
    load,
    rank_items,
)
from trl_rec.data import PromptFormat, build_rows
from trl_rec.data.dataset import split_rows
from trl_rec.decoding.padding import left_padded
from trl_rec.models import load_model, load_tokenizer
from trl_rec.trainer import SoftmaxDPOConfig, SoftmaxDPOTrainer, read_preferences


MODEL = "Llama-3.2-1B"
NUM_ROWS = 64
LIST_LENGTH = 10


class Bench:
    """Builds the trainers.

    Args:
        world (`World`): Models and datasets.
        folder (`Path`): Where trainers may write.
        steps (`int`): Number of steps of each trainer.
    """

    def __init__(self, world: World, folder: Path, steps: int) -> None:
        on_cpu = world.device.type == "cpu"
        self.world = world
        self.dtype = torch.float32 if on_cpu else torch.bfloat16
        self.rows = 2 if world.is_tiny else 8  # per step
        self.lists = 2 if world.is_tiny else 8  # rollouts per prompt
        self.tokenizer = load_tokenizer(world.model(MODEL))
        self.common: dict[str, Any] = {
            "output_dir": str(folder),
            "max_steps": steps,
            "use_cpu": on_cpu,
            "bf16": not on_cpu,
            "learning_rate": 1e-5,
            "activation_checkpointing": True,
            "report_to": "none",
            "disable_tqdm": True,
            "logging_steps": 1_000,
            "save_strategy": "no",
        }

    def parts(self) -> dict[str, Any]:
        """Returns the model, the tokenizer and the adapter, as arguments of a trainer."""
        model = load_model(self.world.model(MODEL), dtype=self.dtype).to(self.world.device).train()
        adapter = LoraConfig(task_type="CAUSAL_LM", r=16, lora_alpha=32, target_modules="all-linear")
        return {"model": model, "processing_class": self.tokenizer, "peft_config": adapter}

    def bear(self) -> BearTrainer:
        """Returns a trainer on prompts of titles."""
        dataset = load(self.world.dataset("office"))
        config = BearConfig(**self.common, per_device_train_batch_size=self.rows, max_length=512)
        return BearTrainer(args=config, train_dataset=self._titles(), catalog=dataset.catalog, **self.parts())

    def sft(self) -> SFTTrainer:
        """Returns TRL's trainer on the rows of `bear`."""
        config = SFTConfig(**self.common, per_device_train_batch_size=self.rows, max_length=512)
        return SFTTrainer(args=config, train_dataset=self._titles(), **self.parts())

    def _titles(self) -> Dataset:
        """Returns the `NUM_ROWS` longest rows."""
        dataset = load(self.world.dataset("office"))
        rows = build_rows(dataset.train, PromptFormat.for_catalog(dataset.catalog, self.tokenizer), max_length=512)
        longest = sorted(range(len(rows)), key=lambda row: len(rows[row]["input_ids"]))[-NUM_ROWS:]
        return rows.select(longest)

    def alro(self) -> AlroTrainer:
        """Returns a trainer on rated lists."""
        dataset = load(self.world.dataset("ml-100k-next-ten"))
        config = AlroConfig(**self.common, per_device_train_batch_size=self.rows // 2, max_length=1024)
        return AlroTrainer(args=config, train_dataset=dataset.train, catalog=dataset.catalog, **self.parts())

    def sft_on_lists(self) -> SFTTrainer:
        """Returns TRL's trainer on the lists of `alro`, in one order each."""
        ours = self.alro()
        rows = []
        for row in ours.train_dataset.select(range(min(NUM_ROWS, len(ours.train_dataset)))):
            batch = ours.data_collator([row])
            order = batch["completion_mask"][0, 0]
            prompt = batch["prompt_ids"][batch["prompt_mask"]].tolist()
            completion = batch["completion_ids"][0, 0][order].tolist()
            is_answer = batch["answer_mask"][0, 0][order].tolist()
            labels = [token if learned else -100 for token, learned in zip(completion, is_answer, strict=True)]
            rows.append({"input_ids": prompt + completion, "labels": [-100] * len(prompt) + labels})
        del ours
        config = SFTConfig(**self.common, per_device_train_batch_size=self.rows // 2, max_length=None)
        return SFTTrainer(args=config, train_dataset=Dataset.from_list(rows), **self.parts())

    def softmax_dpo(self) -> SoftmaxDPOTrainer:
        """Returns a trainer on prompts with three rejected answers."""
        config = SoftmaxDPOConfig(**self.common, per_device_train_batch_size=self.rows // 2, max_length=1024)
        preferences = read_preferences(str(self.world.preferences()), None)
        return SoftmaxDPOTrainer(args=config, train_dataset=preferences, **self.parts())

    def dpo(self) -> DPOTrainer:
        """Returns TRL's trainer on the answers of `softmax_dpo`, as pairs."""
        preferences = read_preferences(str(self.world.preferences()), None)
        pairs = [{**row, "rejected": rejected} for row in preferences for rejected in row["rejected"]]
        config = DPOConfig(**self.common, per_device_train_batch_size=3 * (self.rows // 2), max_length=1024)
        return DPOTrainer(args=config, train_dataset=Dataset.from_list(pairs), **self.parts())

    def blade(self) -> BladeTrainer:
        """Returns a trainer on lists of titles."""
        dataset = load(self.world.dataset("ml-100k-next-ten"))
        config = BladeConfig(
            **self.common,
            list_length=LIST_LENGTH,
            num_generations=self.lists,
            num_references=0,
            target="reward",
            beta=1e-3,
            max_length=512,
            max_prompts=NUM_ROWS,
            per_device_train_batch_size=1,
            eval_ks=[LIST_LENGTH],
        )
        return BladeTrainer(args=config, train_dataset=dataset.train, catalog=dataset.catalog, **self.parts())

    def grpo(self) -> GRPOTrainer:
        """Returns TRL's trainer on the prompts of `blade`."""
        ours = self.blade()
        prompts = [self.tokenizer.decode(row) for row in ours.train_dataset["prompt_ids"]]
        mean = float(ours.prompt_format.paths.lengths.mean())
        del ours
        config = GRPOConfig(
            **self.common,
            per_device_train_batch_size=self.lists,
            num_generations=self.lists,
            max_completion_length=8 if self.world.is_tiny else round(LIST_LENGTH * mean),
            temperature=1.0,
            beta=1e-3,
        )
        rows = Dataset.from_dict({"prompt": prompts})
        return GRPOTrainer(reward_funcs=_length, args=config, train_dataset=rows, **self.parts())


def _length(completion_ids: list[list[int]], **_: Any) -> list[float]:
    """Returns a reward that differs between rollouts."""
    return [float(sum(ids) % 97) for ids in completion_ids]


# For each pair: the name of our trainer, the name of TRL's trainer, and the methods that build the two.
PAIRS: list[tuple[str, str, Callable[[Bench], Any], Callable[[Bench], Any]]] = [
    ("BearTrainer", "SFTTrainer", Bench.bear, Bench.sft),
    ("AlroTrainer", "SFTTrainer", Bench.alro, Bench.sft_on_lists),
    ("SoftmaxDPOTrainer", "DPOTrainer", Bench.softmax_dpo, Bench.dpo),
    ("BladeTrainer", "GRPOTrainer", Bench.blade, Bench.grpo),
]


def measure_trainer(bench: Bench, build: Callable[[Bench], Any]) -> dict[str, Any]:
    """Trains for a few steps. Returns the time, the peak memory, and how often the host waited for the device."""
    start_afresh(bench.world.device)
    clock = Clock(bench.world.device, profiled=True)
    trainer = build(bench)
    start_afresh(bench.world.device)  # building a trainer may build another one, whose memory must not count
    trainer.add_callback(clock)
    trainer.train()
    return clock.figures()


def measure_decoder(bench: Bench, *, num_beams: int, num_prompts: int, runs: int) -> dict[str, Any]:
    """Ranks titles, and returns measurements, such as the seconds per search step outside the forward passes."""
    start_afresh(bench.world.device)
    model = load_model(bench.world.model(MODEL), dtype=bench.dtype).to(bench.world.device)
    catalog = load(bench.world.dataset("office")).catalog
    dataset = load(bench.world.dataset("office"))
    trie = TokenTrie.from_catalog(catalog, bench.tokenizer).to(bench.world.device)
    histories = split_rows(dataset.test.select(range(num_prompts)), "history").tail(10)
    encoded = PromptFormat.for_catalog(catalog, bench.tokenizer).encode(histories)
    prompts = left_padded(encoded, bench.tokenizer.pad_token_id)
    prompts = {name: tensor.to(bench.world.device) for name, tensor in prompts.items()}

    forwards: list[float] = []
    started: list[float] = []

    def begin(*_: Any) -> None:
        synchronize(bench.world.device)
        started.append(time.perf_counter())

    def end(*_: Any) -> None:
        synchronize(bench.world.device)
        forwards.append(time.perf_counter() - started.pop())

    # The first run warms up. Waiting for the device before and after every forward pass separates the time of the pass
    # from the time of the search.
    hooks = [model.register_forward_pre_hook(begin), model.register_forward_hook(end)]
    overheads = []
    totals = []
    for run in range(runs + 1):
        forwards.clear()
        synchronize(bench.world.device)
        start = time.perf_counter()
        rank_items(model, prompts, trie, num_beams=num_beams)
        synchronize(bench.world.device)
        total = time.perf_counter() - start
        if run:
            totals.append(total)
            overheads.append((total - sum(forwards)) / len(forwards))
    for hook in hooks:
        hook.remove()
    return {
        "num_beams": num_beams,
        "num_prompts": num_prompts,
        "num_items": trie.num_items,
        "prompt_tokens": prompts["input_ids"].shape[1],
        "steps": len(forwards),
        "seconds": median(totals),
        "overhead_seconds": median(overheads),
    }
