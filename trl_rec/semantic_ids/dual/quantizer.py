"""Defines a trainable residual quantiser with one codebook per level.

A latent vector is the output of an encoder. Each level quantises the residual of the previous level: the latent
vector minus the centroids chosen so far.

This module does not use `vector-quantize-pytorch`, for three reasons. The codebooks are initialised by this package's
k-means over all vectors, not over the first batch. They are trained by gradients, as in Align3GR, not by moving
averages. This module also returns the residual that the last level quantises, which is needed to resolve
collisions (vectors with the same codes).

Legend: N vectors, L levels, C codes per level, D width of a latent vector.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from trl_rec.semantic_ids.kmeans import find_nearest, kmeans
from trl_rec.semantic_ids.residual import ResidualCodes


COMMITMENT = 0.25  # weight of the term that pulls latent vectors towards their centroids


class Quantized(NamedTuple):
    """Latent vectors after quantisation.

    Args:
        vectors (`torch.Tensor` of shape `(N, D)`): The sum of each latent vector's centroids. The straight-through
            estimator passes the gradient of this sum unchanged to the latent vector.
        loss (`torch.Tensor` of shape `(N,)`): |sg[r] - e|^2 + `COMMITMENT` |r - sg[e]|^2, averaged over the levels.
            Here r is the residual, e is its centroid, and sg stops the gradient.
    """

    vectors: Tensor
    loss: Tensor


class ResidualQuantizer(nn.Module):
    """A residual quantiser with L codebooks of C centroids.

    The codebooks are zero until [`ResidualQuantizer.start`] is called or weights are loaded.

    Args:
        levels (`int`): L, the number of levels.
        codes (`int`): C, the number of codes per level.
        width (`int`): D, the width of a latent vector.
    """

    def __init__(self, levels: int, codes: int, width: int) -> None:
        super().__init__()
        self.codebooks = nn.Parameter(torch.zeros(levels, codes, width))

    def forward(self, latents: Tensor) -> Quantized:
        """Quantises `latents` `(N, D)`. Returns the quantised vectors, and the loss for codebooks and encoder."""
        residual = latents
        loss = latents.new_zeros(len(latents))
        for codebook in self.codebooks:
            centroid = codebook[find_nearest(residual.detach(), codebook.detach())]  # (N, D)
            # The first term trains the centroids, and the second term trains the encoder.
            loss = loss + (residual.detach() - centroid).square().sum(1)
            loss = loss + COMMITMENT * (residual - centroid.detach()).square().sum(1)
            residual = residual - centroid.detach()

        total = latents.detach() - residual.detach()
        straight_through = latents + (total - latents).detach()
        return Quantized(straight_through, loss / len(self.codebooks))

    @torch.no_grad()
    def start(self, latents: Tensor, *, iterations: int = 25, generator: torch.Generator) -> None:
        """Initialises the codebooks by residual k-means on `latents` `(N, D)`."""
        residual = latents
        for codebook in self.codebooks:
            centroids, nearest = kmeans(residual, len(codebook), iterations=iterations, generator=generator)
            codebook.copy_(centroids)
            residual = residual - centroids[nearest]

    @torch.no_grad()
    def revive(self, latents: Tensor, *, generator: torch.Generator) -> int:
        """Moves unused centroids to the residuals of randomly drawn vectors. Returns the number of unused centroids.

        Vectors are drawn without replacement. If a level has more unused centroids than there are vectors, the
        remaining unused centroids do not move.
        """
        residual = latents
        revived = 0
        for codebook in self.codebooks:
            nearest = find_nearest(residual, codebook)
            unused = (torch.bincount(nearest, minlength=len(codebook)) == 0).nonzero().squeeze(1)
            drawn = torch.randperm(len(residual), generator=generator)[: len(unused)]
            codebook[unused[: len(drawn)]] = residual[drawn]
            revived += len(unused)
            # Find the nearest centroids again, because the moved centroids may now be nearer.
            residual = residual - codebook[find_nearest(residual, codebook)]
        return revived

    @torch.no_grad()
    def assign(self, latents: Tensor) -> ResidualCodes:
        """Returns the codes of `latents` `(N, D)`, with the residuals that are needed to resolve collisions."""
        total = float(latents.double().square().sum()) or 1.0
        codes: list[Tensor] = []
        errors: list[float] = []

        residual = latents
        last_residuals = latents
        for codebook in self.codebooks:
            last_residuals = residual
            nearest = find_nearest(residual, codebook)
            residual = residual - codebook[nearest]
            codes.append(nearest)
            errors.append(float(residual.double().square().sum()) / total)
        return ResidualCodes(torch.stack(codes, 1), self.codebooks.detach().clone(), last_residuals, errors)
