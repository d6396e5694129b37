"""The loss and the logged metrics of a batch, and their reduction over all processes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
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
            specifies whether this loss is already normalised over the whole accumulated batch.
        row_losses (`torch.Tensor` of shape `(B,)`): The loss of each row, detached. If at least one process has a
            loss that is not finite, training stops with an error. The error of each process names the rows of
            that process whose loss is not finite.
        means (`Mapping[str, Mean]`): The means to log, by name. All processes must give the same names in the same
            order.
        num_tokens (`torch.Tensor` of shape `()`): Number of tokens that the model read.
        row_ids (`torch.Tensor` of shape `(B,)`, *optional*): Row numbers in the training data, for messages. If not
            given, messages use row numbers within the batch.
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
    """The metrics of a batch over all processes, and the number of rows whose loss is not finite."""

    means: dict[str, float]
    num_tokens: int
    num_broken: int


def reduce_batch(batch: BatchLoss, accelerator: Accelerator) -> Reduced:
    """Combines the metrics of all processes in a single gather.

    Sums and counts are each added over the processes. The total sum is then divided by the total count, so that every
    value has the same weight even if the batches differ in size.
    """
    # 1. Make one vector per process: sums, counts, number of tokens, and number of rows with a non-finite loss.
    sums = [mean.total for mean in batch.means.values()]
    counts = [mean.num_values for mean in batch.means.values()]
    num_broken = (~batch.row_losses.isfinite()).sum()
    values = [*sums, *counts, batch.num_tokens, num_broken]
    local = _as_vector(values, batch.row_losses.device)

    # 2. Sum over processes.
    *numbers, num_tokens, broken = accelerator.gather(local.unsqueeze(0)).sum(0).tolist()

    # 3. Divide. A mean without values is left out, for example if a step had no rows of a task.
    pairs = zip(batch.means, numbers[: len(sums)], numbers[len(sums) :], strict=True)
    means = {name: total / count for name, total, count in pairs if count}
    return Reduced(means, int(num_tokens), int(broken))


def _as_vector(values: Sequence[Tensor | float], device: torch.device) -> Tensor:
    """Returns the values as one float32 vector. All Python numbers are copied to the device together."""
    vector = torch.tensor([0.0 if isinstance(value, Tensor) else value for value in values], device=device)
    places = [place for place, value in enumerate(values) if isinstance(value, Tensor)]
    vector[places] = torch.stack([value.to(vector) for value in values if isinstance(value, Tensor)])
    return vector


def describe_broken(batch: BatchLoss) -> str:
    """Describes, for an error message, which rows of this process have a loss that is not finite."""
    broken = ~batch.row_losses.isfinite()
    if not broken.any():
        return "all in the batches of other processes"
    if batch.row_ids is not None:
        return f"including the training rows {batch.row_ids[broken].tolist()}"
    return f"including rows {broken.nonzero().flatten().tolist()} of this process's batch"
