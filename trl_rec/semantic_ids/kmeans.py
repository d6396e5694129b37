"""k-means over the rows of a matrix.

Distances are computed in chunks, so only the vectors themselves have to fit in memory.

Legend: N vectors, D width, C centroids.
"""

from __future__ import annotations

import torch
from torch import Tensor


CHUNK = 1 << 14  # vectors whose distances to all centroids are computed at a time
SAMPLE = 64  # vectors per centroid that seeding looks at
ROUNDING = 1e-5  # relative to a vector's squared length; smaller squared distances are rounding errors


def kmeans(vectors: Tensor, codes: int, *, iterations: int = 25, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Clusters vectors by Lloyd's algorithm, seeded with k-means++ (on a sample if there are many vectors).

    A centroid that loses all of its vectors is seeded again. A centroid stays empty only if there are fewer distinct
    vectors than centroids.

    Args:
        vectors (`torch.Tensor` of shape `(N, D)`): The vectors, float32.
        codes (`int`): C, the number of centroids.
        iterations (`int`, *optional*, defaults to `25`): Maximum number of rounds. The algorithm ends earlier once no
            vector moves; then every centroid is the mean of its vectors.
        generator (`torch.Generator`): For the seeds.

    Returns:
        `tuple[torch.Tensor, torch.Tensor]`: The centroids `(C, D)`, and the index of the centroid nearest to each
        vector `(N,)`.
    """
    # 1. Seed the centroids.
    sample = vectors
    if len(vectors) > SAMPLE * codes:
        sample = vectors[torch.randperm(len(vectors), generator=generator)[: SAMPLE * codes]]
    centroids = _seed_centroids(sample, vectors[:0], codes, generator)
    nearest = find_nearest(vectors, centroids)

    for _ in range(iterations):
        # 2. Move every centroid to the mean of its vectors, and seed the empty ones again.
        counts = torch.bincount(nearest, minlength=codes)
        centroids = _means(vectors, nearest, counts)
        if not bool(counts.all()):
            in_use = centroids[counts > 0]
            centroids = torch.cat([in_use, _seed_centroids(sample, in_use, codes - len(in_use), generator)])

        # 3. Assign every vector to its nearest centroid; stop once none moves.
        before = nearest
        nearest = find_nearest(vectors, centroids)
        if torch.equal(before, nearest):
            break
    return centroids, nearest


def find_nearest(vectors: Tensor, centroids: Tensor) -> Tensor:
    """Index of the centroid nearest to each vector, `(N,)`. Among equally near centroids the first is taken."""
    # |v - c|^2 / 2 without |v|^2 / 2, which is the same for every centroid
    half_norms = centroids.square().sum(1) / 2  # (C,)
    nearest = [torch.addmm(half_norms, chunk, centroids.T, alpha=-1).argmin(1) for chunk in vectors.split(CHUNK)]
    return torch.cat(nearest)


def squared_length(vectors: Tensor) -> float:
    """The sum of the squared lengths of all vectors, in double precision."""
    return sum(float(chunk.double().square().sum()) for chunk in vectors.split(CHUNK))


def _means(vectors: Tensor, nearest: Tensor, counts: Tensor) -> Tensor:
    """Mean of each centroid's vectors `(C, D)`; zeros for a centroid without vectors."""
    offsets = torch.cat([counts[:1] * 0, counts.cumsum(0)])
    order = torch.argsort(nearest, stable=True)
    return torch.nn.functional.embedding_bag(order, vectors, offsets, mode="mean", include_last_offset=True)


def _seed_centroids(vectors: Tensor, centroids: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """Draws `count` of the vectors by k-means++: one at a time, with a probability proportional to the squared
    distance to the nearest of the existing `centroids` and of the vectors drawn before."""
    lengths = vectors.square().sum(1)

    distance = torch.full_like(lengths, torch.inf)  # (N,), to the nearest centroid so far
    for centroid in centroids:
        distance = torch.minimum(distance, _squared_distance(vectors, lengths, centroid))

    rows: list[int] = []
    while len(rows) < count:
        # Before there is any centroid, all vectors are equally likely.
        weights = torch.ones_like(lengths) if bool(distance.isinf().all()) else distance
        total = weights.double().cumsum(0)
        draw = torch.rand(1, generator=generator, dtype=torch.float64) * total[-1]
        rows.append(int(torch.searchsorted(total, draw, right=True).clamp(max=len(vectors) - 1)))
        distance = torch.minimum(distance, _squared_distance(vectors, lengths, vectors[rows[-1]]))
    return vectors[rows]


def _squared_distance(vectors: Tensor, lengths: Tensor, centroid: Tensor) -> Tensor:
    """Squared distance of each vector to one centroid, `(N,)`; `lengths` are the vectors' squared lengths.

    A distance that is no more than rounding becomes 0, so that a copy of a centroid is never drawn as a seed.
    """
    distance = lengths + centroid.square().sum() - 2 * (vectors @ centroid)
    return torch.where(distance <= ROUNDING * lengths, 0.0, distance)
