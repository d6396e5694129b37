"""Computes ranking metrics of accuracy, diversity, popularity and fairness, as plain functions of NumPy arrays.

A ranking `ranked` contains item indices, best first. A negative index marks a missing rank. Accuracy metrics and `ild`
return one value per list and leave the mean to the caller, because intervals and paired tests need the values of
individual users. `mgu` and `dgu` compare shares of groups, which [`group_share`] computes. The other metrics are
computed over all lists together. numpy is the only dependency.

Legend: N: users, K: ranks, T: relevant items of all users together, R: rated items of a user (padded), G: groups,
D: dimensions of a vector, `...`: any leading axes.
"""

from __future__ import annotations

import numpy as np


GATHERED_VALUES = 1 << 22  # maximum number of float64 values that `ild` gathers at a time: 32 MB


def find_hits(ranked: np.ndarray, rows: np.ndarray, items: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Marks the ranks that contain a relevant item, and counts the relevant items of each user.

    A relevant item that is given twice counts once. If a list repeats an item, only its first rank can be a hit.

    Args:
        ranked (`np.ndarray` of shape `(N, K)`): The ranking.
        rows (`np.ndarray` of shape `(T,)`): Index of the user that each relevant item belongs to.
        items (`np.ndarray` of shape `(T,)`): Indices of the relevant items, at least 0.

    Returns:
        `hits` of shape `(N, K)`, boolean, and `num_relevant` of shape `(N,)`.
    """
    # Encode each (user, item) pair as one integer, so that a single look-up finds the hits of all users.
    stride = int(items.max(initial=0)) + 1
    relevant = np.unique(rows.astype(np.int64) * stride + items)
    num_relevant = np.bincount(relevant // stride, minlength=len(ranked))  # (N,)

    # An index of `stride` or more is not relevant for any user. Without this check, its key could equal the key of an
    # item of another user.
    possible = first_occurrences(ranked) & (ranked < stride)
    keys = np.arange(len(ranked))[:, None] * stride + np.where(possible, ranked, 0)  # (N, K)
    # `relevant` is sorted. A binary search is several times faster than `np.isin`, which sorts all keys.
    place = np.searchsorted(relevant, keys).clip(max=max(len(relevant) - 1, 0))
    return possible & (relevant[place] == keys if len(relevant) else False), num_relevant


def first_occurrences(ranked: np.ndarray) -> np.ndarray:
    """Returns a boolean mask `(..., K)` that is True where an item occurs for the first time in its list.

    Missing ranks are False.
    """
    # After a stable sort, an equal neighbour on the left is the same item at an earlier rank.
    order = np.argsort(ranked, axis=-1, kind="stable")  # (..., K)
    ascending = np.take_along_axis(ranked, order, axis=-1)
    repeated = np.zeros(ranked.shape, bool)
    np.put_along_axis(repeated, order[..., 1:], ascending[..., 1:] == ascending[..., :-1], axis=-1)
    return ~repeated & (ranked >= 0)


def recall(hits: np.ndarray, num_relevant: np.ndarray, k: int) -> np.ndarray:
    """Computes recall@k, `(...,)`: the number of hits in the first `k` ranks, divided by `num_relevant`.

    `num_relevant` must be at least 1.
    """
    values: np.ndarray = hits[..., :k].sum(-1) / num_relevant
    return values


def hit(hits: np.ndarray, k: int) -> np.ndarray:
    """Computes hit@k, `(...,)`: 1.0 if any of the first `k` ranks is a hit, else 0.0."""
    return np.where(hits[..., :k].any(-1), 1.0, 0.0)


def mrr(hits: np.ndarray, k: int) -> np.ndarray:
    """Computes the reciprocal rank at k, `(...,)`. Its mean over users is MRR@k.

    It is 1 / rank of the first hit, or 0.0 if there is no hit in the first `k` ranks.
    """
    return np.where(hits[..., :k].any(-1), 1 / (1 + hits[..., :k].argmax(-1)), 0.0)


def ndcg(hits: np.ndarray, num_relevant: np.ndarray, k: int) -> np.ndarray:
    """Computes NDCG@k, `(...,)`, with the discount 1 / log2(rank + 1).

    It is 1 if the first `min(k, num_relevant)` ranks are hits. `num_relevant` must be at least 1.
    """
    best = np.concatenate([[0.0], np.cumsum(_discounts(k))])  # (k + 1,): ideal DCG for 0 to k relevant items
    values: np.ndarray = _dcg(hits, k) / best[np.minimum(num_relevant, k)]
    return values


def graded_ndcg(grades: np.ndarray, relevant_grades: np.ndarray, k: int) -> np.ndarray:
    """Computes NDCG@k with the gain 2^grade - 1 (Burges). It is 0 if all `relevant_grades` of a user are 0.

    Args:
        grades (`np.ndarray` of shape `(..., K)`): Non-negative grade of the item at each rank, 0 for a missing rank.
        relevant_grades (`np.ndarray` of shape `(..., R)`): Grades of all items that the user has rated, in any order,
            padded with 0.
        k (`int`): Number of ranks to evaluate.

    Returns:
        `np.ndarray` of shape `(...,)`.
    """
    ideal = _dcg(np.exp2(-np.sort(-relevant_grades, axis=-1)) - 1, k)
    values: np.ndarray = np.divide(_dcg(np.exp2(grades) - 1, k), ideal, out=np.zeros_like(ideal), where=ideal > 0)
    return values


def _discounts(k: int) -> np.ndarray:
    return 1 / np.log2(np.arange(2, k + 2))


def _dcg(gains: np.ndarray, k: int) -> np.ndarray:
    gains = gains[..., :k].astype(np.float64)
    values: np.ndarray = gains @ _discounts(gains.shape[-1])
    return values


def coverage(ranked: np.ndarray, num_items: int) -> float:
    """Computes the share of the catalogue that is recommended to at least one user."""
    return float((_counts(ranked, num_items) > 0).mean())


def gini(ranked: np.ndarray, num_items: int) -> float:
    """Computes the Gini index of how often each item of the catalogue is recommended.

    Items that are never recommended count too. The index is 0 if all items are recommended equally often, and near 1
    if one item gets all recommendations.
    """
    # For counts in ascending order x_1 <= ... <= x_n, the index is sum((2i - n - 1) x_i) / (n sum(x_i)).
    counts = np.sort(_counts(ranked, num_items))
    weights = 2 * np.arange(1, num_items + 1) - num_items - 1
    return float(weights @ counts / (num_items * max(counts.sum(), 1)))


def mean_popularity(ranked: np.ndarray, popularity: np.ndarray) -> float:
    """Computes the mean of `popularity` `(num_items,)` over all recommendations, or 0 if there are none."""
    counts = _counts(ranked, len(popularity))
    return float(counts @ popularity / max(counts.sum(), 1))


def div_ratio(ranked: np.ndarray) -> float:
    """Computes DivRatio: distinct recommended items / (users x K). Missing ranks count only in the denominator."""
    return len(np.unique(ranked[ranked >= 0])) / ranked.size


def or_ratio(ranked: np.ndarray) -> float:
    """Computes ORRatio: the share of all recommendations that go to the three most recommended items.

    It is 0 if there are no recommendations.
    """
    counts = np.sort(np.unique(ranked[ranked >= 0], return_counts=True)[1])
    return float(counts[-3:].sum() / max(counts.sum(), 1))


def ild(ranked: np.ndarray, vectors: np.ndarray) -> np.ndarray:
    """Computes the intra-list diversity, `(...,)`: the mean cosine distance over the pairs of items in a list.

    An item with a zero vector has distance 1 from every other item. A list of fewer than two items gives 0.

    Args:
        ranked (`np.ndarray` of shape `(..., K)`): The ranking.
        vectors (`np.ndarray` of shape `(num_items, D)`): One vector per item, for example its embedding, or the
            fractions of the item that belong to each group.
    """
    units = unit_vectors(vectors)  # dot products of these are cosines

    # Process the lists in blocks, to bound the memory of the gathered vectors.
    lists = ranked.reshape(-1, ranked.shape[-1])
    step = max(1, GATHERED_VALUES // max(1, lists.shape[1] * units.shape[1]))
    parts = [_mean_distance(lists[start : start + step], units) for start in range(0, len(lists), step)]
    return np.concatenate([np.empty(0), *parts]).reshape(ranked.shape[:-1])


def unit_vectors(vectors: np.ndarray) -> np.ndarray:
    """Divides each vector by its length, `(num_items, D)` in float64. Zero vectors stay 0.

    Vectors that are given in float32 are divided in float32 before the result is converted.
    """
    norms = np.linalg.norm(vectors, axis=-1, keepdims=True)
    units: np.ndarray = np.divide(vectors, norms, out=np.zeros(vectors.shape), where=norms > 0)
    return units


def _mean_distance(lists: np.ndarray, units: np.ndarray) -> np.ndarray:
    # |sum of units|^2 - sum of |unit|^2 is twice the sum of the cosines over all pairs. This avoids computing the
    # K x K pairs of a list.
    present = lists >= 0
    gathered = np.where(present[..., None], units[np.where(present, lists, 0)], 0.0)  # (lists, K, D)
    cosines = np.square(gathered.sum(1)).sum(-1) - np.square(gathered).sum((1, 2))
    size = present.sum(-1)  # (lists,)
    return np.where(size > 1, 1 - cosines / np.maximum(size * (size - 1), 1), 0.0)


def group_share(items: np.ndarray, shares: np.ndarray) -> np.ndarray:
    """Computes the share of each group in the given items, `(G,)`. Items that belong to no group are left out.

    The shares sum to 1. If none of the items belongs to any group, all shares are 0.

    Args:
        items (`np.ndarray`): Item indices, of any shape. Indices outside the catalogue are ignored.
        shares (`np.ndarray` of shape `(num_items, G)`): The fraction of each item that belongs to each group. A row
            sums to 1, or to 0 if the item belongs to no group.
    """
    mass: np.ndarray = _counts(items, len(shares)) @ shares  # (G,)
    mass = mass / max(mass.sum(), np.finfo(np.float64).tiny)
    return mass


def mgu(recommended: np.ndarray, consumed: np.ndarray) -> np.ndarray:
    """Computes MGU, `(...,)`: |share in recommendations - share in histories|, averaged over the groups.

    Both arguments are shares of groups, `(..., G)`. MGU is 0 if both contain the same shares.
    """
    values: np.ndarray = np.abs(recommended - consumed).mean(-1)
    return values


def dgu(recommended: np.ndarray, consumed: np.ndarray) -> np.ndarray:
    """Computes DGU, `(...,)`: the maximum of (share in recommendations - share in histories) over the groups, minus
    the minimum of this difference.

    Both arguments are shares of groups, `(..., G)`. DGU is 0 if both contain the same shares.
    """
    values: np.ndarray = np.ptp(recommended - consumed, axis=-1)
    return values


def _counts(items: np.ndarray, num_items: int) -> np.ndarray:
    # Count only indices of the catalogue. Return float64, because callers multiply the counts by floats.
    counted = items[(items >= 0) & (items < num_items)]
    return np.bincount(counted, minlength=num_items).astype(np.float64)
