"""k-means over rows of vectors, in chunks, so that only the vectors themselves have to fit in memory."""

from __future__ import annotations

import torch
from torch import Tensor


CHUNK = 1 << 14  # vectors whose distances to all centroids are computed at a time
SAMPLE = 64  # vectors a centroid that seeding looks at
ROUNDING = 1e-5  # of a vector's squared length


def kmeans(vectors: Tensor, codes: int, *, iterations: int = 25, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Centroids `(codes, width)` and the nearest one of each vector, `(num_vectors,)`.

    Seeded as k-means++ has it, on a sample where there are many vectors. A centroid that loses all its vectors is
    seeded again in the same way; it stays without any only where there are fewer distinct vectors than centroids. Ends
    after `iterations`, or when no vector moves any more: then every centroid is the mean of its vectors.
    """
    sample = vectors
    if len(vectors) > SAMPLE * codes:
        sample = vectors[torch.randperm(len(vectors), generator=generator)[: SAMPLE * codes]]
    centroids = _seeded(sample, vectors[:0], codes, generator)
    nearest = find_nearest(vectors, centroids)
    for _ in range(iterations):
        counts = torch.bincount(nearest, minlength=codes)
        centroids = _means(vectors, nearest, counts)
        if not bool(counts.all()):
            kept = centroids[counts > 0]
            centroids = torch.cat([kept, _seeded(sample, kept, codes - len(kept), generator)])
        before, nearest = nearest, find_nearest(vectors, centroids)
        if torch.equal(before, nearest):
            break
    return centroids, nearest


def find_nearest(vectors: Tensor, centroids: Tensor) -> Tensor:
    """Index of the centroid nearest to each vector, the first of several equally near, `(num_vectors,)`."""
    half_norms = centroids.square().sum(1) / 2
    nearest = [torch.addmm(half_norms, chunk, centroids.T, alpha=-1).argmin(1) for chunk in vectors.split(CHUNK)]
    return torch.cat(nearest)


def squared_length(vectors: Tensor) -> float:
    """The sum of the squared lengths, added up in double precision."""
    return sum(chunk.double().square().sum().item() for chunk in vectors.split(CHUNK))


def _means(vectors: Tensor, nearest: Tensor, counts: Tensor) -> Tensor:
    """Mean of each centroid's vectors, zero where it has none."""
    offsets = torch.cat([counts[:1] * 0, counts.cumsum(0)])
    order = torch.argsort(nearest, stable=True)
    return torch.nn.functional.embedding_bag(order, vectors, offsets, mode="mean", include_last_offset=True)


def _seeded(vectors: Tensor, given: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """`count` of the vectors, drawn one by one in proportion to the squared distance to the nearest of those there
    already."""
    lengths = vectors.square().sum(1)
    rows: list[int] = []
    distance = torch.full_like(lengths, torch.inf)
    for centroid in given:
        distance = torch.minimum(distance, _squared_distance(vectors, lengths, centroid))
    while len(rows) < count:
        weights = torch.ones_like(lengths) if bool(distance.isinf().all()) else distance
        total = weights.double().cumsum(0)
        draw = torch.rand(1, generator=generator, dtype=torch.float64) * total[-1]
        rows.append(int(torch.searchsorted(total, draw, right=True).clamp(max=len(vectors) - 1)))
        distance = torch.minimum(distance, _squared_distance(vectors, lengths, vectors[rows[-1]]))
    return vectors[rows]


def _squared_distance(vectors: Tensor, lengths: Tensor, centroid: Tensor) -> Tensor:
    """`(num_vectors,)`, zero where it is no more than rounding; `lengths` are the vectors' squared lengths."""
    distance = lengths + centroid.square().sum() - 2 * (vectors @ centroid)
    return torch.where(distance <= ROUNDING * lengths, 0.0, distance)
