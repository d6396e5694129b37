"""Defines samplers for the order of training rows, and an epoch counter for collators that sample at random.

The order and the random samples depend only on the seed and the epoch, so a resumed run continues as if it had not
been interrupted.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.utils.data import Sampler
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from trl_rec.compat import LengthGroupedSampler


class RepeatedBatches(Sampler[int]):
    """Shuffles rows, splits them into global batches, and yields each batch several times before the next one.

    An incomplete last batch is dropped.

    Args:
        num_rows (`int`): Number of rows.
        batch_size (`int`): Rows per optimizer step over all processes, including gradient accumulation.
        num_repeats (`int`): Number of optimizer steps on each batch.
        seed (`int`): The order of each epoch is drawn with the seed `seed + epoch`.
    """

    def __init__(self, num_rows: int, batch_size: int, num_repeats: int, seed: int) -> None:
        if num_rows < batch_size:
            raise ValueError(
                f"one batch needs {batch_size} rows, but the number of rows is {num_rows}; use smaller batches or "
                "more data"
            )
        self.num_rows = num_rows
        self.batch_size = batch_size
        self.num_repeats = num_repeats
        self.seed = seed
        self.epoch = 0

    def __len__(self) -> int:
        return self.num_rows // self.batch_size * self.batch_size * self.num_repeats

    def __iter__(self) -> Iterator[int]:
        """Yields the row indices of the current epoch, in training order."""
        order = torch.randperm(self.num_rows, generator=torch.Generator().manual_seed(self.seed + self.epoch)).tolist()
        for start in range(0, self.num_rows - self.batch_size + 1, self.batch_size):
            for _ in range(self.num_repeats):
                yield from order[start : start + self.batch_size]

    def set_epoch(self, epoch: int) -> None:
        """Sets the epoch. Accelerate calls this method before each epoch."""
        self.epoch = epoch


class LengthGroups(LengthGroupedSampler):
    """Orders rows so that each batch has rows of similar length. The order depends only on the seed and the epoch.

    `Trainer`'s own sampler uses the global random state instead.

    Args:
        grouped (`LengthGroupedSampler`): The sampler to replace. Its batch size and lengths are used.
        seed (`int`): The order of each epoch is drawn with the seed `seed + epoch`.
    """

    def __init__(self, grouped: LengthGroupedSampler, seed: int) -> None:
        super().__init__(grouped.batch_size, lengths=grouped.lengths, generator=torch.Generator())
        self.seed = seed
        self.epoch = 0

    def __iter__(self) -> Iterator[int]:
        """Returns an iterator over the row indices of the current epoch, in training order."""
        self.generator.manual_seed(self.seed + self.epoch)
        order: Iterator[int] = super().__iter__()  # type: ignore[no-untyped-call]
        return order

    def set_epoch(self, epoch: int) -> None:
        """Sets the epoch. Accelerate calls this method before each epoch."""
        self.epoch = epoch


class EpochOrder(TrainerCallback):
    """Callback that calls `set_epoch` of a sampler at the start of each epoch.

    If a run with several processes resumes within an epoch, neither Accelerate 1.15 nor transformers 5.23 passes the
    epoch to the sampler. Without this callback, the resumed epoch would have the same order as the first epoch.

    Args:
        sampler (`Sampler`, *optional*): The sampler. A sampler without a `set_epoch` method is ignored.
    """

    def __init__(self, sampler: Sampler[int] | None) -> None:
        self.sampler = sampler

    def on_epoch_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **others: object
    ) -> None:
        """Sets the epoch of the sampler. Called before the first batch of an epoch is made."""
        set_epoch = getattr(self.sampler, "set_epoch", None)
        if set_epoch is not None:
            set_epoch(int(state.epoch or 0))


@dataclass
class EpochCounter(TrainerCallback):
    """Base class of collators that draw new samples in each epoch.

    Add the collator to the trainer as a callback, so that `epoch` is set at the start of each epoch.
    """

    # The tensor is in shared memory, so that persistent data loader workers see the new value.
    epoch: Tensor = field(init=False, default_factory=lambda: torch.zeros((), dtype=torch.int64).share_memory_())

    def on_epoch_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **others: object
    ) -> None:
        """Sets the epoch. Called before the first batch of an epoch is made.

        In a resumed run, `state.epoch` may be a fraction, so it is rounded down.
        """
        self.epoch.fill_(int(state.epoch or 0))
