"""A trainable residual quantiser with one codebook per level.

Each level quantises what the levels before it leave of a latent vector.

It is written here instead of taken from `vector-quantize-pytorch` for three reasons. The codebooks start from this
package's k-means over all vectors, not over the first batch. They are trained by gradients, as in the paper, not by
moving averages. And the repair of collisions needs the residuals of the last level.

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
        vectors (`torch.Tensor` of shape `(N, D)`): The sum of each vector's centroids. The gradient passes straight
            through to the latent vectors.
        loss (`torch.Tensor` of shape `(N,)`): The mean over the levels of |sg[r] - e|^2 + `COMMITMENT` |r - sg[e]|^2,
            where r is the residual, e its centroid and sg stops the gradient.
    """

    vectors: Tensor
    loss: Tensor


class ResidualQuantizer(nn.Module):
    """L codebooks of C centroids.

    They are zero until [`ResidualQuantizer.start`] is called or weights are loaded.

    Args:
        levels (`int`): L.
        codes (`int`): C.
        width (`int`): D.
    """

    def __init__(self, levels: int, codes: int, width: int) -> None:
        super().__init__()
        self.codebooks = nn.Parameter(torch.zeros(levels, codes, width))

    def forward(self, latents: Tensor) -> Quantized:
        """Quantises `latents` `(N, D)` and returns the vectors and the loss that trains codebooks and encoder."""
        residual = latents
        loss = latents.new_zeros(len(latents))
        for codebook in self.codebooks:
            centroid = codebook[find_nearest(residual.detach(), codebook.detach())]  # (N, D)
            # The first term moves the centroids, and the second moves the encoder.
            loss = loss + (residual.detach() - centroid).square().sum(1)
            loss = loss + COMMITMENT * (residual - centroid.detach()).square().sum(1)
            residual = residual - centroid.detach()

        total = latents.detach() - residual.detach()
        straight_through = latents + (total - latents).detach()
        return Quantized(straight_through, loss / len(self.codebooks))

    @torch.no_grad()
    def start(self, latents: Tensor, *, iterations: int = 25, generator: torch.Generator) -> None:
        """Initialises the codebooks by residual k-means over `latents` `(N, D)`."""
        residual = latents
        for codebook in self.codebooks:
            centroids, nearest = kmeans(residual, len(codebook), iterations=iterations, generator=generator)
            codebook.copy_(centroids)
            residual = residual - centroids[nearest]

    @torch.no_grad()
    def revive(self, latents: Tensor, *, generator: torch.Generator) -> int:
        """Moves every unused centroid onto the residual of a vector drawn at random, and returns their number."""
        residual = latents
        revived = 0
        for codebook in self.codebooks:
            nearest = find_nearest(residual, codebook)
            unused = (torch.bincount(nearest, minlength=len(codebook)) == 0).nonzero().squeeze(1)
            drawn = torch.randperm(len(residual), generator=generator)[: len(unused)]
            codebook[unused[: len(drawn)]] = residual[drawn]
            revived += len(unused)
            # The moved centroids may have become the nearest ones.
            residual = residual - codebook[find_nearest(residual, codebook)]
        return revived

    @torch.no_grad()
    def assign(self, latents: Tensor) -> ResidualCodes:
        """The codes of `latents` `(N, D)`, with the residuals that the repair of collisions needs."""
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
