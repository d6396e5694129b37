"""An item's vector: what it goes together with, by truncated singular value decomposition of the associations.

The randomised method of Halko, Martinsson and Tropp: a random subspace is multiplied by the matrix a few times, which
turns it towards the largest singular vectors. The matrix is only ever multiplied, never held densely.
"""

from __future__ import annotations

import torch
from datasets import Dataset
from torch import Tensor

from trl_rec.semantic_ids.cooccurrence import SparseRows, associations


OVERSAMPLING = 16  # columns beyond those asked for, which make these exact
POWER_STEPS = 6
NEGLIGIBLE = 1e-5  # of the largest singular value: what is below is rounding, and would differ from machine to machine


def cooccurrence_vectors(train: Dataset, num_items: int, *, width: int = 64, window: int = 5, seed: int = 0) -> Tensor:
    """Vectors of length 1, `(num_items, width)` float32, of items that are near when they stand near the same items.

    Args:
        train (`Dataset`):
            The training split; any other is refused.
        num_items (`int`): Size of the catalogue. An item that never occurs in training, or only with items that it is
            not associated with, has a vector of zeros.
        width (`int`, *optional*, defaults to `64`):
            Number of singular vectors; there are no more than items.
        window (`int`, *optional*, defaults to `5`):
            Largest distance of two items that count as near each other.
        seed (`int`, *optional*, defaults to `0`):
            Seed of the random subspace; the same seed gives the same vectors, signs included.
    """
    left, values = truncated_svd(associations(train, num_items, window=window), width, seed=seed)
    return torch.nn.functional.normalize(left * values.sqrt())


def truncated_svd(matrix: SparseRows, width: int, *, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Left singular vectors `(size, width)` and singular values `(width,)`, largest first, of a symmetric matrix.

    A vector's sign is chosen so that its largest entry is positive. Vectors beyond the matrix's rank are zero.
    """
    generator = torch.Generator().manual_seed(seed)
    basis = torch.randn(len(matrix), min(width + OVERSAMPLING, len(matrix)), generator=generator)
    for _ in range(POWER_STEPS):
        basis = matrix.times(torch.linalg.qr(basis).Q)
    basis = torch.linalg.qr(basis).Q
    small = (basis.T @ matrix.times(basis)).double()
    values, vectors = torch.linalg.eigh((small + small.T) / 2)
    order = values.abs().argsort(descending=True)[:width]
    values, left = values[order].abs().float(), basis @ vectors[:, order].float()
    values[values < NEGLIGIBLE * values[0]] = 0
    largest = left.gather(0, left.abs().argmax(0, keepdim=True))
    return left * torch.where(largest < 0, -1.0, 1.0) * (values > 0), values
