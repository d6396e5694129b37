"""The order of training rows and the epoch count that collators draw by.

Both follow from the seed and the epoch alone, so that a resumed run continues in the same order.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Sampler
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from trl_rec.compat import LengthGroupedSampler


class RepeatedBatches(Sampler[int]):
    """Shuffles rows, cuts them into global batches, and repeats each batch several times before the next.

    A last batch that is not full is left out.

    Args:
        num_rows (`int`): Number of rows.
        batch_size (`int`): Rows per step of all processes, accumulation included.
        num_repeats (`int`): Steps on each batch.
        seed (`int`): Seed of the order, to which the epoch is added.
    """

    def __init__(self, num_rows: int, batch_size: int, num_repeats: int, seed: int) -> None:
        if num_rows < batch_size:
            raise ValueError(
                f"{num_rows} rows do not fill a batch of {batch_size}; make the batch smaller, or add data"
            )
        self.num_rows = num_rows
        self.batch_size = batch_size
        self.num_repeats = num_repeats
        self.seed = seed
        self.epoch = 0

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
    """Batches of rows of about the same length, in an order that depends only on the seed and the epoch.

    The parent class draws the order from the global random state instead.

    Args:
        grouped (`LengthGroupedSampler`): The sampler to replace, whose lengths are used.
        seed (`int`): Seed of the order, to which the epoch is added.
    """

    def __init__(self, grouped: LengthGroupedSampler, seed: int) -> None:
        super().__init__(grouped.batch_size, lengths=grouped.lengths, generator=torch.Generator())
        self.seed = seed
        self.epoch = 0

    def __iter__(self) -> Iterator[int]:
        self.generator.manual_seed(self.seed + self.epoch)
        order: Iterator[int] = super().__iter__()  # type: ignore[no-untyped-call]
        return order

    def set_epoch(self, epoch: int) -> None:
        """Called by Accelerate before each epoch."""
        self.epoch = epoch


class EpochOrder(TrainerCallback):
    """Tells a sampler which epoch begins.

    After a resume within an epoch, with several processes, neither Accelerate 1.15 nor transformers 5.23 passes the
    epoch on to the sampler, so that every epoch would have the order of the first.

    Args:
        sampler (`Sampler`, *optional*): A sampler with `set_epoch`, or any other.
    """

    def __init__(self, sampler: Sampler[int] | None) -> None:
        self.sampler = sampler

    def on_epoch_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **others: Any
    ) -> None:
        """Called before the first batch of an epoch is made."""
        set_epoch = getattr(self.sampler, "set_epoch", None)
        if set_epoch is not None:
            set_epoch(int(state.epoch or 0))


@dataclass
class EpochCounter(TrainerCallback):
    """Base class of collators that draw anew in each epoch. As a callback of the trainer, it knows the epoch."""

    # Shared memory, as the worker processes of a data loader may outlive an epoch.
    epoch: Tensor = field(init=False, default_factory=lambda: torch.zeros((), dtype=torch.int64).share_memory_())

    def on_epoch_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **others: Any
    ) -> None:
        """Called before the first batch of an epoch is made. In a resumed run, `state.epoch` may be a fraction."""
        self.epoch.fill_(int(state.epoch or 0))
