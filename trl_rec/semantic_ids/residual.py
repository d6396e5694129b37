"""Quantises vectors by residual k-means: each level clusters the residuals of the previous level.

The first level clusters the vectors themselves. The residual of a vector is the vector minus its centroids at all
levels so far. The codes of a vector are the indices of its centroids, one per level. Vectors that share their first
codes are usually close to each other. The more codes they share, the closer they usually are.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass

import torch
from torch import Tensor

from trl_rec.semantic_ids.kmeans import CHUNK, kmeans, squared_length


logger = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class ResidualCodes:
    """The result of residual quantisation.

    Args:
        codes (`torch.Tensor` of shape `(num_vectors, levels)`): The code of each vector at each level.
        codebooks (`torch.Tensor` of shape `(levels, num_codes, width)`): The centroids. The sum of a vector's
            centroids approximates the vector.
        last_residuals (`torch.Tensor` of shape `(num_vectors, width)`): The input of the last level: the vectors minus
            their centroids of all previous levels.
        errors (`list[float]`): Quantisation error after each level: the sum of the squared norms of the residuals,
            divided by the sum of the squared norms of the vectors.
    """

    codes: Tensor
    codebooks: Tensor
    last_residuals: Tensor
    errors: list[float]


def residual_kmeans(
    vectors: Tensor, *, levels: int = 3, codes: int = 256, iterations: int = 25, seed: int = 0
) -> ResidualCodes:
    """Quantises vectors level by level with k-means.

    For many vectors, the peak memory (including the vectors themselves) is about three times the size of the vectors,
    plus the distances of `CHUNK` vectors to all centroids of a level.

    Args:
        vectors (`torch.Tensor` of shape `(num_vectors, width)`): The vectors, float32.
        levels (`int`, *optional*, defaults to `3`): Number of codes per vector.
        codes (`int`, *optional*, defaults to `256`): Number of centroids per level.
        iterations (`int`, *optional*, defaults to `25`): Maximum number of k-means iterations per level.
        seed (`int`, *optional*, defaults to `0`): Random seed. The same seed gives the same codes.

    Returns:
        [`ResidualCodes`]: The codes, the codebooks, the residuals and the errors.
    """
    generator = torch.Generator().manual_seed(seed)
    total = squared_length(vectors) or 1.0
    assigned: list[Tensor] = []
    codebooks: list[Tensor] = []
    errors: list[float] = []

    residuals = vectors
    rest = vectors
    for level in range(levels):
        # 1. Cluster the residuals.
        residuals = rest
        centroids, nearest = kmeans(residuals, codes, iterations=iterations, generator=generator)
        assigned.append(nearest)
        codebooks.append(centroids)

        # 2. Subtract each vector's centroid. This is done in chunks, because gathering the centroids of all vectors at
        # once would need as much memory as another copy of the vectors.
        rest = residuals.clone()
        for chunk, chunk_codes in zip(rest.split(CHUNK), nearest.split(CHUNK), strict=True):
            chunk -= centroids[chunk_codes]

        errors.append(squared_length(rest) / total)
        logger.info(
            "level %d of %d: the quantisation error is %.1f %% of the vectors' squared length",
            level + 1,
            levels,
            100 * errors[-1],
        )
    return ResidualCodes(torch.stack(assigned, 1), torch.stack(codebooks), residuals, errors)
