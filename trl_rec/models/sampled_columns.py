"""Computes the logits of a few tokens per row, at a cost that does not grow with the size of the vocabulary.

All positions of a row share their negatives. So per row, one small matrix of the output embedding is gathered, and one
matrix product gives the logits of all of its positions. Separate negatives for each position would need one
gathered row of the output embedding per logit.

The gradient of the embeddings is collected as a list of rows, and becomes a dense tensor only once per backward pass,
when all uses of the parameter have been added up. Autograd alone would make one dense tensor for the input embedding,
one for the output embedding, and their sum. The gradient that hooks, engines and optimizers see is dense as always.

Legend: B rows, N positions, T positions of the longest row, L negatives per row, H hidden size, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PreTrainedModel

from trl_rec.losses.output import at_least_float32


class SampledColumns(NamedTuple):
    """The tokens to compute logits for: at each position, its target and the negatives of its row.

    Args:
        owners (`torch.Tensor` of shape `(N,)`): Row of each position, in ascending order.
        targets (`torch.Tensor` of shape `(N,)`): Target of each position.
        negatives (`torch.Tensor` of shape `(B, L)`): Negatives of each row.
    """

    owners: Tensor
    targets: Tensor
    negatives: Tensor

    def linear(self, hidden_states: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """Returns the columns of `F.linear`, `(1, N, 1 + L)` in at least float32: the target, then the negatives.

        Args:
            hidden_states: `(1, N, H)`.
            weight: `(V, H)`.
            bias: `(V,)`, or None.
        """
        # 1. Gather the rows of the output embedding. Under autocast, operands are rounded to the autocast dtype first.
        tokens = torch.cat([self.targets, self.negatives.flatten()])
        rows = take_rows(weight, tokens)  # (N + B * L, H)
        states = hidden_states[0]
        device = states.device.type
        if torch.is_autocast_enabled(device):
            dtype = torch.get_autocast_dtype(device)
            rows = rows.to(dtype)
            states = states.to(dtype)
        rows = at_least_float32(rows)
        states = at_least_float32(states)

        # 2. Multiply. The positions of a row become a padded matrix.
        num_rows, num_negatives = self.negatives.shape
        num_positions = len(self.targets)
        counts = torch.bincount(self.owners, minlength=num_rows)
        places = torch.arange(num_positions, device=counts.device) - (counts.cumsum(0) - counts)[self.owners]
        with torch.autocast(device, enabled=False):
            positive = (states * rows[:num_positions]).sum(-1, keepdim=True)  # (N, 1)
            padded = states.new_zeros(num_rows, int(counts.max()), states.shape[1])
            padded = padded.index_put((self.owners, places), states)  # (B, T, H)
            products = padded @ rows[num_positions:].view(num_rows, num_negatives, -1).transpose(1, 2)  # (B, T, L)
            logits = torch.cat([positive, products[self.owners, places]], 1)

        if bias is not None:
            logits = logits + torch.cat([bias[self.targets].unsqueeze(1), bias[self.negatives][self.owners]], 1)
        return logits.unsqueeze(0)

    def pick(self, logits: Tensor) -> Tensor:
        """Returns the columns, `(1, N, 1 + L)`, of logits `(1, N, V)`."""
        columns = torch.cat([self.targets.unsqueeze(1), self.negatives[self.owners]], 1)
        return logits.gather(-1, columns.unsqueeze(0))


def take_rows(weight: Tensor, tokens: Tensor) -> Tensor:
    """Returns `weight[tokens]`. The gradient is sparse if [`collect_rows`] has been called for `weight`."""
    return F.embedding(tokens, weight, sparse=_collects(weight))


MARK = "_collects_rows"  # attribute of the parameters whose sparse gradients become dense


def collect_rows(model: PreTrainedModel) -> None:
    """Lets the gradients of the model's input and output embeddings be collected as rows.

    Do not call this function if an engine divides the parameters among processes, as ZeRO-3 and FSDP do.
    """
    for layer in (model.get_input_embeddings(), model.get_output_embeddings()):
        weight = getattr(layer, "weight", None)
        if isinstance(weight, nn.Parameter) and weight.requires_grad and not _collects(weight):
            setattr(weight, MARK, id(weight))
            weight.register_post_accumulate_grad_hook(DenseGradient())


def _collects(weight: Tensor) -> bool:
    """Returns whether a parameter has the hook. A copy of the parameter may have its mark, but has no hook."""
    return getattr(weight, MARK, None) == id(weight)


class DenseGradient:
    """Hook that makes the gradient of a parameter dense after autograd has added up all uses of the parameter.

    The dense gradient is always in the same memory. A new tensor of hundreds of megabytes per step would cost more
    than all other work of the backward pass on a CPU, because the system provides its memory page by page.
    """

    def __init__(self) -> None:
        self.memory: Tensor | None = None

    def __call__(self, weight: Tensor) -> None:
        gradient = weight.grad
        if gradient is None or not gradient.is_sparse:
            return
        fits = self.memory is not None and self.memory.dtype == gradient.dtype
        if self.memory is None or not fits or self.memory.device != gradient.device:
            self.memory = torch.empty_like(weight, dtype=gradient.dtype, requires_grad=False)
        weight.grad = self.memory.zero_().add_(gradient)


@contextmanager
def collecting_rows(model: PreTrainedModel) -> Iterator[None]:
    """Inside the block, the input embedding has a sparse gradient if [`collect_rows`] has been called for it."""
    layer: Any = model.get_input_embeddings()
    with ExitStack() as changed:
        if isinstance(layer, nn.Embedding) and _collects(layer.weight):
            changed.callback(setattr, layer, "sparse", layer.sparse)
            layer.sparse = True
        yield
