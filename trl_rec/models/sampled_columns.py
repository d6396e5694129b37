"""Computes the logits of targets and of a few negatives, at a cost that does not grow with the size of the vocabulary.

The negatives are sampled tokens. All positions of a batch row share the same negatives. Therefore the embeddings of
the negatives are gathered only once per batch row, and one matrix product computes the logits of the negatives at all
positions of the row. Separate negatives for each position would need one gathered embedding per logit.

The gradient of an embedding matrix is collected as a sparse tensor. It becomes dense only once per backward pass,
after autograd has added up the gradients of all uses of the matrix. If the input and the output embedding are tied,
autograd alone would make one dense tensor for each of the two uses, and a third tensor for their sum. Gradient
clipping and the optimizer receive a dense gradient, as usual, and so do post-accumulate hooks that are registered
after ours.

Legend: B batch rows, N positions of all rows, T positions of the longest row, L negatives per row, H hidden size,
V vocabulary.
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
    """The tokens to compute logits for: at each position, its target and the negatives of its batch row.

    Args:
        owners (`torch.Tensor` of shape `(N,)`): The batch row of each position, in ascending order.
        targets (`torch.Tensor` of shape `(N,)`): The target of each position.
        negatives (`torch.Tensor` of shape `(B, L)`): The negatives of each batch row.
    """

    owners: Tensor
    targets: Tensor
    negatives: Tensor

    def linear(self, hidden_states: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """Computes only some columns of `F.linear`. At each position, the target comes first, then the negatives.

        Returns `(1, N, 1 + L)` in at least float32.

        Args:
            hidden_states: `(1, N, H)`.
            weight: `(V, H)`.
            bias: `(V,)`, or None.
        """
        # 1. Gather the rows of the output embedding. Under autocast, round the operands to the autocast dtype.
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

        # 2. Number the positions of each batch row from 0, to pad them to a matrix.
        num_rows, num_negatives = self.negatives.shape
        num_positions = len(self.targets)
        counts = self.owners.new_zeros(num_rows).index_add(0, self.owners, torch.ones_like(self.owners))
        places = torch.arange(num_positions, device=counts.device) - (counts.cumsum(0) - counts)[self.owners]

        # 3. Multiply.
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
        """Selects the same columns as `linear`, `(1, N, 1 + L)`, from logits of the whole vocabulary, `(1, N, V)`."""
        columns = torch.cat([self.targets.unsqueeze(1), self.negatives[self.owners]], 1)
        return logits.gather(-1, columns.unsqueeze(0))


def take_rows(weight: Tensor, tokens: Tensor) -> Tensor:
    """Returns `weight[tokens]`. The gradient is sparse if [`collect_rows`] has prepared `weight`."""
    return F.embedding(tokens, weight, sparse=_collects(weight))


MARK = "_collects_rows"  # attribute that [`collect_rows`] sets on parameters


def collect_rows(model: PreTrainedModel) -> None:
    """Prepares the input and output embeddings for sparse gradients, and adds hooks that make the gradients dense.

    After this call, [`take_rows`] and [`collecting_rows`] produce sparse gradients. DeepSpeed, FSDP, `torch.compile`,
    and devices other than CPU and CUDA do not support sparse gradients, so do not call this function with them.
    """
    for layer in (model.get_input_embeddings(), model.get_output_embeddings()):
        weight = getattr(layer, "weight", None)
        if isinstance(weight, nn.Parameter) and weight.requires_grad and not _collects(weight):
            setattr(weight, MARK, id(weight))
            weight.register_post_accumulate_grad_hook(DenseGradient())


def _collects(weight: Tensor) -> bool:
    """Returns whether a parameter has the [`DenseGradient`] hook.

    The mark is the id of the marked parameter, because copying a parameter may copy the mark, but not the hook.
    """
    return getattr(weight, MARK, None) == id(weight)


class DenseGradient:
    """Hook that makes the gradient of a parameter dense after autograd has added up all uses of the parameter.

    Every step writes the dense gradient to the same memory. On a CPU, a new tensor of hundreds of megabytes per step
    would cost more time than the rest of the backward pass, because the system provides new memory page by page.
    """

    def __init__(self) -> None:
        self.memory: Tensor | None = None

    def __call__(self, weight: Tensor) -> None:
        """Makes the gradient of the parameter dense, if it is sparse."""
        gradient = weight.grad
        if gradient is None or not gradient.is_sparse:
            return
        fits = self.memory is not None and self.memory.dtype == gradient.dtype
        if self.memory is None or not fits or self.memory.device != gradient.device:
            self.memory = torch.empty_like(weight, dtype=gradient.dtype, requires_grad=False)
        weight.grad = self.memory.zero_().add_(gradient)


@contextmanager
def collecting_rows(model: PreTrainedModel) -> Iterator[None]:
    """Makes forward passes inside the `with` block give the input embedding a sparse gradient.

    The gradient stays dense if [`collect_rows`] has not prepared the input embedding.
    """
    layer: Any = model.get_input_embeddings()
    with ExitStack() as changed:
        if isinstance(layer, nn.Embedding) and _collects(layer.weight):
            changed.callback(setattr, layer, "sparse", layer.sparse)
            layer.sparse = True
        yield
