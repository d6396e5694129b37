"""Provides helpers to the tests of all losses: the dtypes to test, and functions that select rows of a batch or of a
loss output, or join outputs. A batch is a named tuple. Its fields are tensors or None."""

from typing import TypeVar

import pytest
import torch

from trl_rec.losses import LossOutput


Batch = TypeVar("Batch", bound=tuple)

# The dtype of the inputs, the dtype of the computation, and the tolerance of a gradient in the input dtype.
precisions = pytest.mark.parametrize(
    ("dtype", "computed", "tolerance"),
    [
        (torch.float64, torch.float64, 1e-9),
        (torch.float32, torch.float32, 1e-5),
        (torch.bfloat16, torch.float32, 2**-8),
        (torch.float16, torch.float32, 2**-11),
    ],
)


def rows_of(batch: Batch, rows: slice | torch.Tensor) -> Batch:
    return type(batch)(*(None if tensor is None else tensor[rows] for tensor in batch))


def chunks_of(batch: Batch) -> list[Batch]:
    """Returns three chunks: the first row, no row, and the other rows."""
    return [rows_of(batch, rows) for rows in (slice(0, 1), slice(1, 1), slice(1, None))]


def joined(outputs: list[LossOutput]) -> LossOutput:
    metrics = {name: torch.cat([output.metrics[name] for output in outputs]) for name in outputs[0].metrics}
    return LossOutput(torch.cat([output.loss for output in outputs]), metrics)


def picked(output: LossOutput, rows: slice | torch.Tensor) -> LossOutput:
    return LossOutput(output.loss[rows], {name: metric[rows] for name, metric in output.metrics.items()})
