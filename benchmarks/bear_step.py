"""A training step of BEAR against one of TRL's `SFTTrainer`: the same rows, model and optimiser, taking turns.

    python benchmarks/bear_step.py DATASET_FOLDER --model FOLDER_OR_GGUF [--tiny] [--lora] [--batch 4] [--runs 5]

Titles of a dataset folder with a language model's tokenizer; `--tiny` takes 2 layers of random weights at the same
vocabulary. Prints seconds a step (forward, backward, update; medians) and the most bytes of tensors alive beyond model
and optimiser.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
import weakref
from statistics import median
from typing import Any


os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")

import torch
from peft import LoraConfig
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel
from trl import SFTConfig, SFTTrainer

from trl_rec import BearConfig, BearTrainer, load
from trl_rec.data import PromptFormat, build_rows
from trl_rec.models import load_model, load_tokenizer


class PeakBytes(TorchDispatchMode):
    """The most bytes of tensor storage alive at once among those made inside."""

    def __init__(self) -> None:
        super().__init__()
        self.alive, self.peak, self.known = 0, 0, weakref.WeakSet()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        outputs = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(outputs):
            if isinstance(tensor, torch.Tensor) and tensor.device.type != "meta":
                self._count(tensor.untyped_storage())
        return outputs

    def _count(self, storage: torch.UntypedStorage) -> None:
        if storage in self.known:
            return
        self.known.add(storage)
        size = storage.nbytes()
        self.alive += size
        self.peak = max(self.peak, self.alive)
        weakref.finalize(storage, self._free, size)

    def _free(self, size: int) -> None:
        self.alive -= size


def tiny(vocab_size: int) -> PreTrainedModel:
    torch.manual_seed(0)
    size = {"hidden_size": 64, "intermediate_size": 256, "num_hidden_layers": 2, "num_attention_heads": 4}
    return LlamaForCausalLM(LlamaConfig(vocab_size=vocab_size, tie_word_embeddings=True, **size))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dataset")
    parser.add_argument("--model", required=True)
    parser.add_argument("--tiny", action="store_true")
    parser.add_argument("--lora", action="store_true")
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--runs", type=int, default=5)
    arguments = parser.parse_args()

    dataset, tokenizer = load(arguments.dataset), load_tokenizer(arguments.model)
    rows = build_rows(
        dataset.train.select(range(200)), PromptFormat.for_catalog(dataset.catalog, tokenizer), max_length=512
    )
    common: dict[str, Any] = {
        "per_device_train_batch_size": arguments.batch,
        "max_length": 512,
        "use_cpu": True,
        "bf16": False,
    }
    common |= {"report_to": "none", "activation_checkpointing": False, "shuffle_dataset": False, "max_steps": 100}
    peft_config = LoraConfig(task_type="CAUSAL_LM", r=8, target_modules="all-linear") if arguments.lora else None
    trainers: dict[str, SFTTrainer] = {}
    with tempfile.TemporaryDirectory() as folder:
        for name in ("SFTTrainer", "BearTrainer"):
            model = tiny(len(tokenizer)) if arguments.tiny else load_model(arguments.model).train()
            shared = {"train_dataset": rows, "processing_class": tokenizer, "peft_config": peft_config}
            if name == "SFTTrainer":
                trainers[name] = SFTTrainer(model, SFTConfig(folder, **common), **shared)
            else:
                trainers[name] = BearTrainer(model, BearConfig(folder, **common), catalog=dataset.catalog, **shared)
        measure(trainers, arguments.runs)


def measure(trainers: dict[str, SFTTrainer], runs: int) -> None:
    """Prints the figures of steps on the same rows, one trainer after the other."""
    seconds: dict[str, list[float]] = {name: [] for name in trainers}
    peaks, batches = {}, {}
    for name, trainer in trainers.items():
        trainer.model.train()
        trainer.create_optimizer()
        torch.manual_seed(0)  # the sampler's order
        batches[name] = [batch for _, batch in zip(range(runs + 1), trainer.get_train_dataloader(), strict=False)]
    for run in range(runs + 1):
        for name, trainer in trainers.items():
            batch = batches[name][run]
            count = (batch["labels"] != -100).sum()
            start = time.perf_counter()
            trainer.training_step(trainer.model, dict(batch), num_items_in_batch=count)
            trainer.optimizer.step()
            trainer.optimizer.zero_grad()
            seconds[name].append(time.perf_counter() - start)
    for name, trainer in trainers.items():
        with PeakBytes() as bytes_:
            trainer.training_step(trainer.model, dict(batches[name][0]), num_items_in_batch=torch.tensor(10))
        trainer.optimizer.zero_grad()
        peaks[name] = bytes_.peak
        print(
            f"{name}: {median(seconds[name][1:]):.3f} s a step, {peaks[name] / 2**20:.0f} MiB of tensors at the peak"
        )
    ours, theirs = "BearTrainer", "SFTTrainer"
    ratio = median(b / a for a, b in zip(seconds[theirs][1:], seconds[ours][1:], strict=True))
    print(
        f"BEAR takes {ratio:.2f} of SFT's time (median of {runs} pairs) and {peaks[ours] / peaks[theirs]:.2f} of its bytes"
    )


if __name__ == "__main__":
    main()
