"""A residual quantiser that is trained: a codebook over latent vectors, a second over what the first leaves of them,
and so on.

Written here rather than taken from `vector-quantize-pytorch`: the codebooks start from this package's k-means over all
vectors and not over a first batch, they are trained by gradients as the paper's are and not by moving averages, and
the repair of collisions needs the last level's residuals.

Legend: N vectors, L levels, C codes of a level, D width of a latent vector.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from trl_rec.semantic_ids.kmeans import find_nearest, kmeans
from trl_rec.semantic_ids.residual import ResidualCodes


COMMITMENT = 0.25


class Quantized(NamedTuple):
    """What becomes of latent vectors.

    Args:
        vectors (`torch.Tensor` of shape `(N, D)`): Sums of centroids; their gradient is handed on to the latent
            vectors.
        loss (`torch.Tensor` of shape `(N,)`): The mean over the levels of |sg[r] - e|^2 + `COMMITMENT` |r - sg[e]|^2.
    """

    vectors: Tensor
    loss: Tensor


class ResidualQuantizer(nn.Module):
    """L codebooks.

    Args:
        levels (`int`): L.
        codes (`int`): C.
        width (`int`): D.
    """

    def __init__(self, levels: int, codes: int, width: int) -> None:
        super().__init__()
        self.codebooks = nn.Parameter(torch.zeros(levels, codes, width))

    def forward(self, latents: Tensor) -> Quantized:
        """Of `latents (N, D)`."""
        residual, loss = latents, latents.new_zeros(len(latents))
        for codebook in self.codebooks:
            centroid = codebook[find_nearest(residual.detach(), codebook.detach())]
            loss = loss + (residual.detach() - centroid).square().sum(1)
            loss = loss + COMMITMENT * (residual - centroid.detach()).square().sum(1)
            residual = residual - centroid.detach()
        total = latents.detach() - residual.detach()
        return Quantized(latents + (total - latents).detach(), loss / len(self.codebooks))

    @torch.no_grad()
    def start(self, latents: Tensor, *, iterations: int = 25, generator: torch.Generator) -> None:
        """Codebooks by k-means, level after level."""
        residual = latents
        for codebook in self.codebooks:
            centroids, nearest = kmeans(residual, len(codebook), iterations=iterations, generator=generator)
            codebook.copy_(centroids)
            residual = residual - centroids[nearest]

    @torch.no_grad()
    def revive(self, latents: Tensor, *, generator: torch.Generator) -> int:
        """Puts codes that none of the vectors has where a vector drawn at random is, and returns their number."""
        residual, revived = latents, 0
        for codebook in self.codebooks:
            nearest = find_nearest(residual, codebook)
            unused = (torch.bincount(nearest, minlength=len(codebook)) == 0).nonzero().squeeze(1)
            drawn = torch.randperm(len(residual), generator=generator)[: len(unused)]
            codebook[unused[: len(drawn)]] = residual[drawn]
            revived += len(unused)
            residual = residual - codebook[find_nearest(residual, codebook)]
        return revived

    @torch.no_grad()
    def assign(self, latents: Tensor) -> ResidualCodes:
        """The codes of `latents (N, D)`, and what the last level had to tell apart."""
        whole = float(latents.double().square().sum()) or 1.0
        residual, codes, errors, last = latents, [], [], latents
        for codebook in self.codebooks:
            last = residual
            nearest = find_nearest(residual, codebook)
            residual = residual - codebook[nearest]
            codes.append(nearest)
            errors.append(float(residual.double().square().sum()) / whole)
        return ResidualCodes(torch.stack(codes, 1), self.codebooks.detach().clone(), last, errors)
