"""Tests k-means and residual k-means. The search for the nearest centroid is compared with a slow loop."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.oracles import semantic_ids as oracle
from trl_rec.semantic_ids import kmeans as module
from trl_rec.semantic_ids.kmeans import find_nearest, kmeans
from trl_rec.semantic_ids.residual import residual_kmeans


# float32 is exact for small whole numbers, so ties are exact too.
POINTS = st.lists(st.tuples(*[st.integers(-9, 9)] * 3), min_size=3, max_size=40)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def blobs(count=600, width=5):
    centres = 10 * torch.randn(6, width, generator=generator(1))
    return centres[torch.arange(count) % 6] + torch.randn(count, width, generator=generator(2))


@given(POINTS, POINTS)
def test_nearest_equals_a_loop(points, centroids):
    got = find_nearest(torch.tensor(points).float(), torch.tensor(centroids).float())
    assert got.tolist() == oracle.nearest(points, centroids)


@given(POINTS, st.integers(2, 6), st.integers(0, 5))
def test_at_convergence_centroids_are_means_and_vectors_have_the_nearest_centroid(points, codes, seed):
    points = torch.tensor(points).float()
    centroids, nearest = kmeans(points, codes, iterations=200, generator=generator(seed))
    assert centroids.shape == (codes, 3)
    distances = (points[:, None] - centroids).square().sum(2)
    torch.testing.assert_close(distances.gather(1, nearest[:, None])[:, 0], distances.min(1).values, atol=1e-3, rtol=0)
    for code in nearest.unique():
        torch.testing.assert_close(centroids[code], points[nearest == code].mean(0), atol=1e-4, rtol=1e-4)


@given(POINTS, st.integers(2, 6), st.integers(0, 5))
def test_no_code_stays_empty_if_there_are_enough_distinct_vectors(points, codes, seed):
    nearest = kmeans(torch.tensor(points).float(), codes, iterations=200, generator=generator(seed))[1]
    assert len(nearest.unique()) >= min(codes, len(set(points)))


def test_chunks_change_nothing_and_a_small_sample_still_uses_all_codes(monkeypatch):
    points = blobs()
    whole = find_nearest(points, points[:20])
    monkeypatch.setattr(module, "CHUNK", 7)
    assert torch.equal(find_nearest(points, points[:20]), whole)
    monkeypatch.setattr(module, "SAMPLE", 3)
    centroids, nearest = kmeans(points, 6, generator=generator())
    assert len(nearest.unique()) == 6
    assert (points - centroids[nearest]).square().sum(1).mean() < 60


def test_an_emptied_centroid_is_seeded_again(monkeypatch):
    """All initial centroids are the same vector. If no centroid were drawn again, most codes would stay empty."""
    real, points, calls = module._seed_centroids, blobs(), []

    def seed_centroids(vectors, centroids, count, generator):
        calls.append(count)
        return real(vectors, centroids, count, generator) if len(calls) > 1 else vectors[:1].expand(count, -1).clone()

    monkeypatch.setattr(module, "_seed_centroids", seed_centroids)
    centroids, nearest = kmeans(points, 6, generator=generator())
    assert calls[0] == 6 and calls[1] > 0
    assert len(nearest.unique()) == 6 and (points - centroids[nearest]).square().sum(1).mean() < 10


def test_residuals_shrink_with_every_level_and_the_centroids_sum_to_the_vectors():
    points = torch.randn(300, 8, generator=generator())
    found = residual_kmeans(points, levels=4, codes=8)
    assert found.codes.shape == (300, 4) and found.codebooks.shape == (4, 8, 8)
    assert 1 > found.errors[0] > found.errors[1] > found.errors[2] > found.errors[3] > 0
    rebuilt = sum(book[column] for book, column in zip(found.codebooks, found.codes.T, strict=True))
    assert float((points - rebuilt).square().sum() / points.square().sum()) == pytest.approx(
        found.errors[-1], rel=1e-4
    )
    before_last = points - sum(
        book[column] for book, column in zip(found.codebooks[:-1], found.codes.T[:-1], strict=True)
    )
    torch.testing.assert_close(found.last_residuals, before_last, atol=1e-5, rtol=0)
    assert torch.equal(find_nearest(before_last, found.codebooks[-1]), found.codes[:, -1])


def test_the_seed_determines_the_codes():
    points = torch.randn(200, 6, generator=generator())
    copy = points.clone()
    first, second, other = (residual_kmeans(points, levels=2, codes=16, seed=seed).codes for seed in (3, 3, 4))
    assert torch.equal(first, second) and not torch.equal(first, other)
    assert torch.equal(points, copy)


def test_equal_vectors_get_equal_codes():
    found = residual_kmeans(torch.zeros(20, 4), levels=2, codes=4)
    assert len(found.codes.unique(dim=0)) == 1 and found.errors == [0, 0]
