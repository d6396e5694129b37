"""Compares time and memory of a BEAR step with those of TRL's `SFTTrainer` on the same rows, model and optimizer.

    python benchmarks/bear_step.py DATASET_FOLDER --model FOLDER_OR_GGUF [--tiny] [--lora]
        [--dtype float32|bfloat16|nf4] [--batch_size 4] [--runs 5]

Items are written as titles, which a language model's tokenizer splits into tokens. `--tiny` replaces the model by
one with two layers, random weights and the same vocabulary. `--dtype nf4` quantises a model from a folder and needs
`--lora`. Both trainers run on the CPU and take turns. `--runs` is the number of timed steps per trainer. The program
prints the median number of seconds per step, which consists of a forward pass, a backward pass and an optimizer
update. It also prints the peak memory of the tensors that the forward and the backward pass allocate, including the
gradients but not the weights.
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
from transformers import BitsAndBytesConfig, LlamaConfig, LlamaForCausalLM, PreTrainedModel
from trl import SFTConfig, SFTTrainer

from trl_rec import BearConfig, BearTrainer, load
from trl_rec.data import PromptFormat, build_rows
from trl_rec.models import load_model, load_tokenizer


NF4 = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.bfloat16)
DTYPES: dict[str, dict[str, Any]] = {
    "float32": {"dtype": torch.float32},
    "bfloat16": {"dtype": torch.bfloat16},
    "nf4": {"dtype": torch.bfloat16, "quantization_config": NF4},
}


class PeakBytes(TorchDispatchMode):
    """Records the peak of the total number of bytes of all tensors that are allocated inside this context."""

    def __init__(self) -> None:
        super().__init__()
        self.alive = 0
        self.peak = 0
        self.known: weakref.WeakSet[torch.UntypedStorage] = weakref.WeakSet()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        # A tensor that is an input before it is an output, such as a weight, was not allocated in this context.
        for tensor in tree_leaves((args, kwargs or {})):
            if isinstance(tensor, torch.Tensor) and tensor.device.type != "meta":
                self.known.add(tensor.untyped_storage())

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
    parser.add_argument("--dtype", choices=DTYPES, default="float32")
    parser.add_argument("--batch_size", type=int, default=4)
    parser.add_argument("--runs", type=int, default=5)
    arguments = parser.parse_args()

    # 1. Make the rows and options for both trainers.
    dataset = load(arguments.dataset)
    tokenizer = load_tokenizer(arguments.model)
    prompt_format = PromptFormat.for_catalog(dataset.catalog, tokenizer)
    rows = build_rows(dataset.train.select(range(200)), prompt_format, max_length=512)
    common: dict[str, Any] = {
        "per_device_train_batch_size": arguments.batch_size,
        "max_length": 512,
        "use_cpu": True,
        "bf16": False,
        "report_to": "none",
        "activation_checkpointing": False,
        "shuffle_dataset": False,
        "max_steps": 100,
    }
    peft_config = LoraConfig(task_type="CAUSAL_LM", r=8, target_modules="all-linear") if arguments.lora else None

    # 2. Make the trainers, each with its own copy of the model.
    trainers: dict[str, SFTTrainer] = {}
    with tempfile.TemporaryDirectory() as folder:
        for name in ("SFTTrainer", "BearTrainer"):
            options = DTYPES[arguments.dtype]
            model = (
                tiny(len(tokenizer)).to(options["dtype"])
                if arguments.tiny
                else load_model(arguments.model, **options).train()
            )
            shared = {"train_dataset": rows, "processing_class": tokenizer, "peft_config": peft_config}
            if name == "SFTTrainer":
                trainers[name] = SFTTrainer(model, SFTConfig(folder, **common), **shared)
            else:
                trainers[name] = BearTrainer(model, BearConfig(folder, **common), catalog=dataset.catalog, **shared)
        measure(trainers, arguments.runs)


def measure(trainers: dict[str, SFTTrainer], runs: int) -> None:
    """Prints the time and the memory of both trainers' steps on the same rows."""
    # 1. Make the same batches for both trainers, and an optimizer for each.
    seconds: dict[str, list[float]] = {name: [] for name in trainers}
    peaks = {}
    batches = {}
    for name, trainer in trainers.items():
        trainer.model.train()
        trainer.create_optimizer()
        torch.manual_seed(0)  # gives both trainers the same order of the rows
        batches[name] = [batch for _, batch in zip(range(runs + 1), trainer.get_train_dataloader(), strict=False)]

    # 2. Time the steps. The trainers take turns.
    for run in range(runs + 1):
        for name, trainer in trainers.items():
            batch = batches[name][run]
            count = (batch["labels"] != -100).sum()
            start = time.perf_counter()
            trainer.training_step(trainer.model, dict(batch), num_items_in_batch=count)
            trainer.optimizer.step()
            trainer.optimizer.zero_grad()
            seconds[name].append(time.perf_counter() - start)

    # 3. Measure memory in a separate step, because counting the bytes slows a step down.
    for name, trainer in trainers.items():
        with PeakBytes() as bytes_:
            trainer.training_step(trainer.model, dict(batches[name][0]), num_items_in_batch=torch.tensor(10))
        trainer.optimizer.zero_grad()
        peaks[name] = bytes_.peak
        mebibytes = peaks[name] / 2**20
        print(f"{name}: {median(seconds[name][1:]):.3f} s per step, {mebibytes:.0f} MiB of tensors at the peak")

    pairs = zip(seconds["SFTTrainer"][1:], seconds["BearTrainer"][1:], strict=True)
    time_ratio = median(bear / sft for sft, bear in pairs)
    byte_ratio = peaks["BearTrainer"] / peaks["SFTTrainer"]
    print(
        f"BEAR takes {time_ratio:.2f} times SFT's time (median of {runs} pairs of steps) and {byte_ratio:.2f} times "
        "SFT's peak memory"
    )


if __name__ == "__main__":
    main()
