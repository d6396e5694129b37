"""Stores the losses and the metrics of batches on the device, and reduces them over all processes.

The host has to wait for the device whenever it reads a value. Therefore metrics are read only when they are logged,
and the losses of rows are checked for non-finite values only once per optimizer step.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import torch
from accelerate import Accelerator
from torch import Tensor


class Mean(NamedTuple):
    """The sum and the count that one process contributes to a mean over all processes.

    Args:
        total (`torch.Tensor` or `float`): Sum of the values.
        num_values (`torch.Tensor` or `int`): Number of values. A mean over no values is not logged.
    """

    total: Tensor | float
    num_values: Tensor | int

    @classmethod
    def of(cls, values: Tensor) -> Mean:
        """Returns the sum and the number of values of a tensor `(N,)` with one value per row, list or prompt."""
        return cls(values.detach().sum(), len(values))


class BatchLoss(NamedTuple):
    """The loss of a batch, and everything that is logged about it.

    Args:
        loss (`torch.Tensor` of shape `()`): The loss to differentiate. The trainer's `loss_is_scaled_for_ga`
            specifies whether this loss is already normalised over the whole accumulated batch. If that attribute is
            None, the loss is normalised in this way whenever `batch_loss` receives `num_items_in_batch`.
        row_losses (`torch.Tensor` of shape `(B,)`): The loss of each row, detached. If at least one process has a
            loss that is not finite, training stops with an error before the optimizer's step. The error of each
            process names the rows of that process whose loss is not finite.
        means (`Mapping[str, Mean]`): The means to log, by name. All processes must give the same names in the same
            order.
        num_tokens (`torch.Tensor` of shape `()`): Number of tokens that the model read.
        row_ids (`torch.Tensor` of shape `(B,)`, *optional*): Row numbers in the training data, for messages. If not
            given, messages identify a row by its position among the rows that the process has read in the step,
            counted from 0.
        aux_loss (`torch.Tensor` of shape `()`, *optional*): The load-balancing loss of a mixture of experts in this
            batch. The trainer adds it to the loss with TRL's weight (`router_aux_loss_coef`), and logs it.
        outputs (`dict[str, torch.Tensor]`, *optional*): Outputs that `compute_loss(return_outputs=True)` returns in
            addition to the loss.
    """

    loss: Tensor
    row_losses: Tensor
    means: Mapping[str, Mean]
    num_tokens: Tensor
    row_ids: Tensor | None = None
    aux_loss: Tensor | None = None
    outputs: dict[str, Tensor] | None = None


class Reduced(NamedTuple):
    """The metrics of a batch over all processes."""

    means: dict[str, float]
    num_tokens: int


class KeptMetrics:
    """Keeps the metrics of batches on the device until they are logged.

    The host has to wait for the device whenever it reads a value. Therefore the metrics of several batches are read
    together, and summed over processes in a single gather.
    """

    def __init__(self) -> None:
        self._names: list[list[str]] = []  # the names of the means of each batch
        self._numbers: list[float] = []  # all values of all batches, with 0.0 in place of each tensor
        self._places: list[int] = []  # the indices in `_numbers` of values that are tensors
        self._tensors: list[Tensor] = []  # the tensors of each batch

    def __len__(self) -> int:
        return len(self._names)

    def add(self, batch: BatchLoss) -> None:
        """Keeps the sums, the counts and the number of tokens of a batch."""
        sums = [mean.total for mean in batch.means.values()]
        counts = [mean.num_values for mean in batch.means.values()]
        values = [*sums, *counts, batch.num_tokens]
        tensors = [value.to(batch.row_losses.device, torch.float32) for value in values if isinstance(value, Tensor)]

        start = len(self._numbers)
        self._places.extend(start + place for place, value in enumerate(values) if isinstance(value, Tensor))
        self._numbers.extend(0.0 if isinstance(value, Tensor) else value for value in values)
        self._tensors.append(torch.stack(tensors))
        self._names.append([*batch.means])

    def read(self, accelerator: Accelerator) -> list[Reduced]:
        """Returns the metrics of each batch over all processes, and discards the stored values. All processes must
        call this method.

        Sums and counts are each added over the processes. The total sum is then divided by the total count, so that
        every value has the same weight even if the processes have different numbers of values.
        """
        if not self._names:
            return []

        # 1. Sum the values over all processes.
        tensors = torch.cat(self._tensors)
        local = torch.tensor(self._numbers, device=tensors.device)
        local[torch.tensor(self._places, device=tensors.device)] = tensors
        numbers: list[float] = accelerator.gather(local.unsqueeze(0)).sum(0).tolist()

        # 2. Divide the sums by the counts. A mean over no values is left out, for example the loss of a task if
        # a batch had no rows of this task.
        reduced = []
        for names in self._names:
            end = 2 * len(names) + 1
            *values, num_tokens = numbers[:end]
            numbers = numbers[end:]
            pairs = zip(names, values[: len(names)], values[len(names) :], strict=True)
            reduced.append(Reduced({name: total / count for name, total, count in pairs if count}, int(num_tokens)))
        for kept in (self._names, self._numbers, self._places, self._tensors):
            kept.clear()
        return reduced


class RowLosses:
    """Keeps the losses of rows on the device until [`check`] tests whether they are finite."""

    def __init__(self) -> None:
        self._losses: list[Tensor] = []
        self._row_ids: list[Tensor] = []

    def add(self, batch: BatchLoss) -> None:
        """Keeps the losses of a batch."""
        self._losses.append(batch.row_losses)
        if batch.row_ids is not None:
            self._row_ids.append(batch.row_ids)

    def check(self, accelerator: Accelerator, step: int) -> None:
        """Raises `ValueError` if at least one row, on this or another process, has a loss that is not finite. Discards
        the stored losses. All processes must call this method.

        Args:
            accelerator: The accelerator of the trainer.
            step: Number of optimizer steps completed so far, for the message.
        """
        losses = torch.cat(self._losses)  # of all batches of the step
        row_ids = torch.cat(self._row_ids) if self._row_ids else None
        self._losses.clear()
        self._row_ids.clear()

        broken = ~losses.isfinite()
        num_broken = int(accelerator.gather(broken.sum().unsqueeze(0)).sum())
        if num_broken:
            rows = "1 row" if num_broken == 1 else f"{num_broken} rows"
            raise ValueError(
                f"the loss of {rows} is not finite at step {step} ({_describe(broken, row_ids)}); lower "
                "learning_rate, or check the data"
            )


def _describe(broken: Tensor, row_ids: Tensor | None) -> str:
    """Describes, for an error message, which rows of this process have a loss that is not finite."""
    if not broken.any():
        return "none on this process"
    if row_ids is not None:
        return f"on this process: training rows {row_ids[broken].tolist()}"
    return f"on this process: rows {broken.nonzero().flatten().tolist()} of the step"
