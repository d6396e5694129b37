"""Item vectors from co-occurrence, by a truncated singular value decomposition of the items' associations.

This is the randomised method of Halko, Martinsson and Tropp. A random subspace is multiplied by the matrix several
times, and so turns towards the largest singular vectors. The matrix stays sparse throughout.
"""

from __future__ import annotations

import torch
from datasets import Dataset
from torch import Tensor

from trl_rec.semantic_ids.cooccurrence import SparseRows, associations


OVERSAMPLING = 16  # extra columns, which make the requested ones more accurate
POWER_STEPS = 6
# Singular values below this fraction of the largest are rounding errors, which differ between machines.
NEGLIGIBLE = 1e-5


def cooccurrence_vectors(train: Dataset, num_items: int, *, width: int = 64, window: int = 5, seed: int = 0) -> Tensor:
    """Makes one vector per item. Two vectors are similar if their items occur near the same items in training.

    Args:
        train (`Dataset`): The training split; any other raises.
        num_items (`int`): Size of the catalogue.
        width (`int`, *optional*, defaults to `64`): Number of singular vectors; at most the number of items.
        window (`int`, *optional*, defaults to `5`): Largest distance at which two items count as near each other.
        seed (`int`, *optional*, defaults to `0`): Seed of the random subspace. The same seed gives the same vectors,
            including their signs.

    Returns:
        `torch.Tensor` of shape `(num_items, width)`, float32: Vectors of length 1; zeros for an item without any
        association, such as one that never occurs in training.
    """
    left, values = truncated_svd(associations(train, num_items, window=window), width, seed=seed)
    return torch.nn.functional.normalize(left * values.sqrt())


def truncated_svd(matrix: SparseRows, width: int, *, seed: int = 0) -> tuple[Tensor, Tensor]:
    """The largest singular values of a symmetric matrix and their left singular vectors.

    Args:
        matrix (`SparseRows`): The matrix, `(size, size)`.
        width (`int`): Number of singular values; at most `size`.
        seed (`int`, *optional*, defaults to `0`): Seed of the random subspace.

    Returns:
        `tuple[torch.Tensor, torch.Tensor]`: Vectors `(size, width)` and values `(width,)`, largest value first. In
        each vector, the entry of largest absolute value is positive. Vectors beyond the rank of the matrix are zero.
    """
    # 1. Turn a random subspace towards the largest singular vectors.
    generator = torch.Generator().manual_seed(seed)
    basis = torch.randn(len(matrix), min(width + OVERSAMPLING, len(matrix)), generator=generator)
    for _ in range(POWER_STEPS):
        basis = matrix.times(torch.linalg.qr(basis).Q)
    basis = torch.linalg.qr(basis).Q  # (size, width + OVERSAMPLING)

    # 2. Decompose the matrix within the subspace. It is symmetric, so its singular values are the absolute values of
    # its eigenvalues.
    small = (basis.T @ matrix.times(basis)).double()
    eigenvalues, eigenvectors = torch.linalg.eigh((small + small.T) / 2)
    order = eigenvalues.abs().argsort(descending=True)[:width]
    values = eigenvalues[order].abs().float()
    left = basis @ eigenvectors[:, order].float()

    # 3. Drop what is rounding, and fix the signs, which the decomposition leaves open.
    values[values < NEGLIGIBLE * values[0]] = 0
    largest = left.gather(0, left.abs().argmax(0, keepdim=True))
    return left * torch.where(largest < 0, -1.0, 1.0) * (values > 0), values
