"""Residual quantisation: a first k-means over the vectors, a second over what the first leaves of them, and so on.

Vectors that share their first codes are near each other, and the nearer the more codes they share.
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
    """What `residual_kmeans` finds.

    Args:
        codes (`Tensor` of shape `(num_vectors, levels)`): The code of each vector on each level.
        codebooks (`Tensor` of shape `(levels, num_codes, width)`): The centroids; a vector is about the sum of its
            codes'.
        last_residuals (`Tensor` of shape `(num_vectors, width)`): What the last level had to tell apart.
        errors (`list[float]`): After each level, the share of the vectors' squared length that is left.
    """

    codes: Tensor
    codebooks: Tensor
    last_residuals: Tensor
    errors: list[float]


def residual_kmeans(
    vectors: Tensor, *, levels: int = 3, codes: int = 256, iterations: int = 25, seed: int = 0
) -> ResidualCodes:
    """Codes of float32 `vectors` `(num_vectors, width)`; the same seed gives the same ones.

    Memory: the vectors three times over and `CHUNK x codes` distances.
    """
    generator = torch.Generator().manual_seed(seed)
    whole = squared_length(vectors) or 1.0
    residuals, rest = vectors, vectors
    assigned, codebooks, errors = [], [], []
    for level in range(levels):
        residuals = rest
        centroids, nearest = kmeans(residuals, codes, iterations=iterations, generator=generator)
        rest = residuals.clone()
        for part, codes_of_part in zip(rest.split(CHUNK), nearest.split(CHUNK), strict=True):
            part -= centroids[codes_of_part]
        assigned.append(nearest)
        codebooks.append(centroids)
        errors.append(squared_length(rest) / whole)
        logger.info(
            "level %d of %d: %.1f %% of the vectors' squared length is left", level + 1, levels, 100 * errors[-1]
        )
    return ResidualCodes(torch.stack(assigned, 1), torch.stack(codebooks), residuals, errors)
