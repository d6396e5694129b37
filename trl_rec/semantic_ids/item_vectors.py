"""Computes item vectors by a truncated singular value decomposition of a matrix of pointwise mutual information.

An entry of the matrix is the pointwise mutual information of two items if this is positive, and zero otherwise (see
[`associations`]).

The decomposition uses the randomised method of Halko, Martinsson and Tropp. This method repeatedly multiplies a random
basis by the matrix, so that the basis approaches the span of the leading singular vectors. The matrix stays sparse
throughout.
"""

from __future__ import annotations

import torch
from datasets import Dataset
from torch import Tensor

from trl_rec.semantic_ids.cooccurrence import SparseRows, associations


OVERSAMPLING = 16  # number of additional columns of the basis, which make the requested singular vectors more accurate
POWER_STEPS = 6  # number of power iterations
# Singular values below this fraction of the largest value are set to 0. Values this small are dominated by rounding
# errors, which differ between machines.
NEGLIGIBLE = 1e-5


def cooccurrence_vectors(train: Dataset, num_items: int, *, width: int = 64, window: int = 5, seed: int = 0) -> Tensor:
    """Computes one vector per item. Items that occur near the same items in the training split get similar vectors.

    Args:
        train (`Dataset`): The training split. Any other split raises a ValueError.
        num_items (`int`): Number of items in the catalogue.
        width (`int`, *optional*, defaults to `64`): Number of singular vectors, limited to the number of items.
        window (`int`, *optional*, defaults to `5`): Two items are near each other if they are at most this many
            positions apart in a training sequence.
        seed (`int`, *optional*, defaults to `0`): Seed for the random basis. The same seed gives the same vectors,
            including their signs.

    Returns:
        `torch.Tensor` of shape `(num_items, width)`, float32: Vectors of norm 1. The vector of an item is zero if the
        item has no positive pointwise mutual information with any other item, as for items that do not occur in the
        training split.
    """
    left, values = truncated_svd(associations(train, num_items, window=window), width, seed=seed)
    return torch.nn.functional.normalize(left * values.sqrt())


def truncated_svd(matrix: SparseRows, width: int, *, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Computes the largest singular values of a symmetric matrix and their left singular vectors.

    Args:
        matrix (`SparseRows`): The matrix, `(size, size)`.
        width (`int`): Number of singular values, limited to `size`.
        seed (`int`, *optional*, defaults to `0`): Seed for the random basis.

    Returns:
        `tuple[torch.Tensor, torch.Tensor]`: The vectors `(size, width)` and the values `(width,)`, in descending order
        of the values. In each vector, the entry with the largest absolute value is positive. Vectors beyond the rank
        of the matrix are zero.
    """
    # 1. Compute a basis that approximates the span of the leading singular vectors.
    generator = torch.Generator().manual_seed(seed)
    basis = torch.randn(len(matrix), min(width + OVERSAMPLING, len(matrix)), generator=generator)
    for _ in range(POWER_STEPS):
        basis = matrix.times(torch.linalg.qr(basis).Q)
    basis = torch.linalg.qr(basis).Q  # (size, width + OVERSAMPLING)

    # 2. Decompose the matrix in this basis. The singular values of a symmetric matrix are the absolute values of its
    # eigenvalues.
    small = (basis.T @ matrix.times(basis)).double()
    eigenvalues, eigenvectors = torch.linalg.eigh((small + small.T) / 2)
    order = eigenvalues.abs().argsort(descending=True)[:width]
    values = eigenvalues[order].abs().float()
    left = basis @ eigenvectors[:, order].float()

    # 3. Set rounding errors to zero: negligible singular values, and the rows of `left` for which the matrix has no
    # entries. Fix the signs, which the decomposition leaves undetermined.
    values[values < NEGLIGIBLE * values[0]] = 0
    left = left * (matrix.offsets.diff() > 0)[:, None]
    largest = left.gather(0, left.abs().argmax(0, keepdim=True))
    return left * torch.where(largest < 0, -1.0, 1.0) * (values > 0), values
