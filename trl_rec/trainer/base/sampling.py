"""The order of training rows, which a seed and the epoch decide: a run that is resumed goes on in it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch.utils.data import Sampler
from transformers import TrainerCallback

from trl_rec.compat import LengthGroupedSampler


class RepeatedBatches(Sampler[int]):
    """Shuffles rows, cuts them into global batches, and gives each batch several times before the next.

    A last batch that is not full is left out.

    Args:
        num_rows (`int`): Rows.
        batch_size (`int`): Rows of one step of all processes, accumulation included.
        num_repeats (`int`): Steps on each batch.
        seed (`int`): With the epoch it decides the order.
    """

    def __init__(self, num_rows: int, batch_size: int, num_repeats: int, seed: int) -> None:
        if num_rows < batch_size:
            raise ValueError(
                f"{num_rows} rows do not fill a batch of {batch_size}; make the batch smaller, or add data"
            )
        self.num_rows, self.batch_size, self.num_repeats, self.seed, self.epoch = (
            num_rows,
            batch_size,
            num_repeats,
            seed,
            0,
        )

    def __len__(self) -> int:
        return self.num_rows // self.batch_size * self.batch_size * self.num_repeats

    def __iter__(self) -> Iterator[int]:
        order = torch.randperm(self.num_rows, generator=torch.Generator().manual_seed(self.seed + self.epoch)).tolist()
        for start in range(0, self.num_rows - self.batch_size + 1, self.batch_size):
            for _ in range(self.num_repeats):
                yield from order[start : start + self.batch_size]

    def set_epoch(self, epoch: int) -> None:
        """Called by Accelerate before each epoch."""
        self.epoch = epoch


class LengthGroups(LengthGroupedSampler):
    """Batches of rows of about the same length, otherwise at random. The parent draws from whatever state there is.

    Args:
        grouped (`LengthGroupedSampler`): What knows the lengths.
        seed (`int`): With the epoch it decides the order.
    """

    def __init__(self, grouped: LengthGroupedSampler, seed: int) -> None:
        super().__init__(grouped.batch_size, lengths=grouped.lengths, generator=torch.Generator())
        self.seed, self.epoch = seed, 0

    def __iter__(self) -> Iterator[int]:
        self.generator.manual_seed(self.seed + self.epoch)
        return super().__iter__()

    def set_epoch(self, epoch: int) -> None:
        """Called by Accelerate before each epoch."""
        self.epoch = epoch


class EpochOrder(TrainerCallback):
    """Tells a sampler which epoch begins. After a resume within an epoch neither Accelerate 1.15 nor transformers 5.23
    reaches it through the wrappers of several processes, and all epochs would have the order of the first.

    Args:
        sampler (`Sampler`): One with `set_epoch`, or any other.
    """

    def __init__(self, sampler: Any) -> None:
        self.sampler = sampler

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **others: Any) -> None:
        """Comes before the epoch's first batch is made."""
        if hasattr(self.sampler, "set_epoch"):
            self.sampler.set_epoch(int(state.epoch))
