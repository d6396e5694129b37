"""Clusters the rows of a matrix with k-means.

Distances are computed in chunks, so that the matrix of all distances never has to fit in memory.

Legend: N vectors, D width, C centroids.
"""

from __future__ import annotations

import torch
from torch import Tensor


CHUNK = 1 << 14  # number of vectors whose distances to all centroids are computed at a time
SAMPLE = 64  # maximum number of vectors per centroid in the sample that centroids are drawn from
ROUNDING = 1e-5  # squared distances of at most this fraction of a vector's squared norm are treated as 0


def kmeans(vectors: Tensor, codes: int, *, iterations: int = 25, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Clusters vectors with Lloyd's algorithm, initialised by k-means++ (on a sample if there are many vectors).

    At each iteration, a centroid to which no vector is assigned is drawn again. The result can contain such a centroid
    only if there are fewer distinct vectors (in the sample) than centroids, or if `iterations` is too small for
    convergence.

    Args:
        vectors (`torch.Tensor` of shape `(N, D)`): The vectors, float32.
        codes (`int`): C, the number of centroids.
        iterations (`int`, *optional*, defaults to `25`): Maximum number of iterations. The algorithm stops earlier
            once no assignment changes. In that case, every centroid with assigned vectors is the mean of these
            vectors.
        generator (`torch.Generator`): Generator for drawing the sample and the centroids.

    Returns:
        `tuple[torch.Tensor, torch.Tensor]`: The centroids `(C, D)`, and the index of the centroid nearest to each
        vector `(N,)`.
    """
    # 1. Draw the initial centroids.
    sample = vectors
    if len(vectors) > SAMPLE * codes:
        sample = vectors[torch.randperm(len(vectors), generator=generator)[: SAMPLE * codes]]
    centroids = _seed_centroids(sample, vectors[:0], codes, generator)
    nearest = find_nearest(vectors, centroids)

    for _ in range(iterations):
        # 2. Move every centroid to the mean of its vectors. Replace centroids without vectors by newly drawn ones.
        counts = torch.bincount(nearest, minlength=codes)
        centroids = _means(vectors, nearest, counts)
        if not bool(counts.all()):
            in_use = centroids[counts > 0]
            centroids = torch.cat([in_use, _seed_centroids(sample, in_use, codes - len(in_use), generator)])

        # 3. Assign every vector to its nearest centroid, and stop if no assignment has changed.
        before = nearest
        nearest = find_nearest(vectors, centroids)
        if torch.equal(before, nearest):
            break
    return centroids, nearest


def find_nearest(vectors: Tensor, centroids: Tensor) -> Tensor:
    """Returns the index of the centroid nearest to each vector, `(N,)`; the first of equally near centroids."""
    # The compared values are |v - c|^2 / 2 - |v|^2 / 2. The second term is the same for every centroid c.
    half_norms = centroids.square().sum(1) / 2  # (C,)
    nearest = [torch.addmm(half_norms, chunk, centroids.T, alpha=-1).argmin(1) for chunk in vectors.split(CHUNK)]
    return torch.cat(nearest)


def squared_length(vectors: Tensor) -> float:
    """Returns the sum of the squared norms of all vectors, computed in double precision."""
    return sum(float(chunk.double().square().sum()) for chunk in vectors.split(CHUNK))


def _means(vectors: Tensor, nearest: Tensor, counts: Tensor) -> Tensor:
    """Returns the mean of each centroid's vectors, `(C, D)`; zeros for centroids without vectors."""
    offsets = torch.cat([counts[:1] * 0, counts.cumsum(0)])
    order = torch.argsort(nearest, stable=True)
    return torch.nn.functional.embedding_bag(order, vectors, offsets, mode="mean", include_last_offset=True)


def _seed_centroids(vectors: Tensor, centroids: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """Draws `count` of the vectors with k-means++.

    The probability of drawing a vector is proportional to its squared distance to the nearest centroid. Both
    `centroids` and the vectors drawn so far count as centroids.
    """
    lengths = vectors.square().sum(1)

    distance = torch.full_like(lengths, torch.inf)  # (N,), to the nearest centroid so far
    for centroid in centroids:
        distance = torch.minimum(distance, _squared_distance(vectors, lengths, centroid))

    rows: list[int] = []
    while len(rows) < count:
        # As long as there is no centroid, all vectors are equally likely.
        weights = torch.ones_like(lengths) if bool(distance.isinf().all()) else distance
        total = weights.double().cumsum(0)
        draw = torch.rand(1, generator=generator, dtype=torch.float64) * total[-1]
        rows.append(int(torch.searchsorted(total, draw, right=True).clamp(max=len(vectors) - 1)))
        distance = torch.minimum(distance, _squared_distance(vectors, lengths, vectors[rows[-1]]))
    return vectors[rows]


def _squared_distance(vectors: Tensor, lengths: Tensor, centroid: Tensor) -> Tensor:
    """Returns the squared distance of each vector to one centroid, `(N,)`, given the vectors' squared norms `lengths`.

    Distances within the rounding error are set to 0. So a vector that equals a centroid is drawn as the next centroid
    only if all vectors equal centroids.
    """
    distance = lengths + centroid.square().sum() - 2 * (vectors @ centroid)
    return torch.where(distance <= ROUNDING * lengths, 0.0, distance)
