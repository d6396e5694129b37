"""What a trainer returns for a batch: its loss, and the means to log, summed over all processes in one exchange."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from accelerate import Accelerator
from torch import Tensor


class Mean(NamedTuple):
    """This process's share of a mean over all processes.

    Args:
        total (`torch.Tensor` or `float`): Sum of the values.
        num_values (`torch.Tensor` or `int`): Their number. A mean of no value at all is not logged.
    """

    total: Tensor | float
    num_values: Tensor | int

    @classmethod
    def of(cls, values: Tensor) -> Mean:
        """The mean of a tensor with one value per row, per list or per prompt: `(N,)`."""
        return cls(values.detach().sum(), len(values))


class BatchLoss(NamedTuple):
    """The loss of a batch, and everything that is logged about it.

    Args:
        loss (`torch.Tensor` of shape `()`): What is differentiated. The trainer's `loss_is_scaled_for_ga` says whether
            it is already divided by the whole accumulated batch.
        row_losses (`torch.Tensor` of shape `(B,)`): The loss of each row, detached. Training stops at one that is not
            finite, and names its row.
        means (`Mapping[str, Mean]`): By the name each is logged under. All processes give the same names in the same
            order.
        num_tokens (`torch.Tensor` of shape `()`): Tokens that the model read.
        row_ids (`torch.Tensor` of shape `(B,)`, *optional*): Numbers of the rows in the training data, for messages;
            otherwise rows are counted within the batch.
        outputs (`dict[str, torch.Tensor]`, *optional*): What `compute_loss(return_outputs=True)` returns beside the
            loss.
    """

    loss: Tensor
    row_losses: Tensor
    means: Mapping[str, Mean]
    num_tokens: Tensor
    row_ids: Tensor | None = None
    outputs: dict[str, Tensor] | None = None


class Reduced(NamedTuple):
    """The same over all processes, as numbers."""

    means: dict[str, float]
    num_tokens: int
    num_broken: int


def reduce_batch(batch: BatchLoss, accelerator: Accelerator) -> Reduced:
    """Means over all processes' batches, their number of tokens, and of rows whose loss is not finite.

    Every process contributes one vector, so that padded samples and uneven batches play no part: sums and counts are
    added up, and divided at the end.
    """
    # 1. One vector per process: the sums, their counts, then tokens and broken rows.
    sums = [mean.total for mean in batch.means.values()]
    counts = [mean.num_values for mean in batch.means.values()]
    num_broken = (~batch.row_losses.isfinite()).sum()
    values = [*sums, *counts, batch.num_tokens, num_broken]
    local = _as_vector(values, batch.row_losses.device)

    # 2. Add the processes up.
    *numbers, num_tokens, broken = accelerator.gather(local.unsqueeze(0)).sum(0).tolist()

    # 3. Divide. A step may have had nothing to average, such as no row of one task.
    pairs = zip(batch.means, numbers[: len(sums)], numbers[len(sums) :], strict=True)
    means = {name: total / count for name, total, count in pairs if count}
    return Reduced(means, int(num_tokens), int(broken))


def _as_vector(values: Sequence[Tensor | float], device: torch.device) -> Tensor:
    """The values as one float32 vector. Plain numbers reach the device in one copy rather than in one each."""
    vector = torch.tensor([0.0 if isinstance(value, Tensor) else value for value in values], device=device)
    places = [place for place, value in enumerate(values) if isinstance(value, Tensor)]
    vector[places] = torch.stack([value.to(vector) for value in values if isinstance(value, Tensor)])
    return vector


def describe_broken(batch: BatchLoss) -> str:
    """Which rows of this process have a loss that is not finite, in words."""
    broken = ~batch.row_losses.isfinite()
    if not broken.any():
        return "all of them in batches of other processes"
    if batch.row_ids is not None:
        return f"among them the training rows {batch.row_ids[broken].tolist()}"
    return f"among them rows {broken.nonzero().flatten().tolist()} of this process's batch"
