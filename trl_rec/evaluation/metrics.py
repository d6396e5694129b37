"""What a ranking is worth: accuracy per user, and what all lists together do to the catalogue. Plain functions of
numpy arrays.

Legend: N users, K ranks, G groups, D dimensions; `...` stands for any leading axes. A ranking `ranked` holds item
indices, best first; a negative index is a missing rank. Accuracy is not averaged here, so that intervals and paired
tests have their values.
"""

from __future__ import annotations

import numpy as np


GATHERED_VALUES = 1 << 22  # values that `ild` looks up at a time: 32 MB of float64


def find_hits(ranked: np.ndarray, rows: np.ndarray, items: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Which ranks hold a relevant item, and how many items are relevant.

    An item that is relevant twice counts once, and so does an item that a list repeats: at its first rank.

    Args:
        ranked (`np.ndarray` of shape `(N, K)`): The ranking.
        rows (`np.ndarray` of shape `(T,)`): The user that each relevant item belongs to.
        items (`np.ndarray` of shape `(T,)`): The relevant items, from 0.

    Returns:
        `hits` of shape `(N, K)`, boolean, and `num_relevant` of shape `(N,)`.
    """
    stride = int(items.max(initial=0)) + 1
    relevant = np.unique(rows.astype(np.int64) * stride + items)
    num_relevant = np.bincount(relevant // stride, minlength=len(ranked))
    possible = first_occurrences(ranked) & (
        ranked < stride
    )  # a larger index would be taken for an item of the next row
    keys = np.arange(len(ranked))[:, None] * stride + np.where(possible, ranked, 0)
    return possible & np.isin(keys, relevant), num_relevant


def first_occurrences(ranked: np.ndarray) -> np.ndarray:
    """True at the ranks `(..., K)` that hold an item which no earlier rank of the list holds."""
    order = np.argsort(ranked, axis=-1, kind="stable")
    ascending = np.take_along_axis(ranked, order, axis=-1)
    repeated = np.zeros(ranked.shape, bool)
    np.put_along_axis(repeated, order[..., 1:], ascending[..., 1:] == ascending[..., :-1], axis=-1)
    return ~repeated & (ranked >= 0)


def recall(hits: np.ndarray, num_relevant: np.ndarray, k: int) -> np.ndarray:
    """Recall@k, `(...,)`: the share of the relevant items, at least one, among the first `k` of `hits` `(..., K)`."""
    return hits[..., :k].sum(-1) / num_relevant


def hit(hits: np.ndarray, k: int) -> np.ndarray:
    """Hit@k, `(...,)`: 1.0 where any of the first `k` is relevant, else 0.0."""
    return np.where(hits[..., :k].any(-1), 1.0, 0.0)


def mrr(hits: np.ndarray, k: int) -> np.ndarray:
    """MRR@k before the mean, `(...,)`: 1 / rank of the first relevant item, 0 where the first `k` hold none."""
    return np.where(hits[..., :k].any(-1), 1 / (1 + hits[..., :k].argmax(-1)), 0.0)


def ndcg(hits: np.ndarray, num_relevant: np.ndarray, k: int) -> np.ndarray:
    """NDCG@k, `(...,)`, with 1 / log2(rank + 1): 1 where the first `min(k, num_relevant)` are all relevant."""
    best = np.concatenate([[0.0], np.cumsum(_discounts(k))])
    return _dcg(hits, k) / best[np.minimum(num_relevant, k)]


def graded_ndcg(grades: np.ndarray, relevant_grades: np.ndarray, k: int) -> np.ndarray:
    """NDCG@k with the gain 2^grade - 1 (Burges), 0 where no grade is above 0.

    Args:
        grades (`np.ndarray` of shape `(..., K)`): Grade of the item at each rank, not negative; 0 for a missing rank.
        relevant_grades (`np.ndarray` of shape `(..., R)`): Grades of all items the user has rated, in any order,
            padded with 0.
        k (`int`): Ranks that count.

    Returns:
        `np.ndarray` of shape `(...,)`.
    """
    ideal = _dcg(np.exp2(-np.sort(-relevant_grades, axis=-1)) - 1, k)
    return np.divide(_dcg(np.exp2(grades) - 1, k), ideal, out=np.zeros_like(ideal), where=ideal > 0)


def _discounts(k: int) -> np.ndarray:
    return 1 / np.log2(np.arange(2, k + 2))


def _dcg(gains: np.ndarray, k: int) -> np.ndarray:
    gains = gains[..., :k].astype(np.float64)
    return gains @ _discounts(gains.shape[-1])


def coverage(ranked: np.ndarray, num_items: int) -> float:
    """Share of the catalogue that is recommended to anybody."""
    return float((_counts(ranked, num_items) > 0).mean())


def gini(ranked: np.ndarray, num_items: int) -> float:
    """Gini index of how often each item of the catalogue is recommended, those that never are included: 0 when all are
    equally often, near 1 when one item takes all."""
    counts = np.sort(_counts(ranked, num_items))
    weights = 2 * np.arange(1, num_items + 1) - num_items - 1
    return float(weights @ counts / (num_items * max(counts.sum(), 1)))


def mean_popularity(ranked: np.ndarray, popularity: np.ndarray) -> float:
    """Mean of `popularity` `(num_items,)` over all recommendations, 0 when there is none."""
    counts = _counts(ranked, len(popularity))
    return float(counts @ popularity / max(counts.sum(), 1))


def div_ratio(ranked: np.ndarray) -> float:
    """DivRatio: distinct items recommended / (users x K); a missing rank counts below the line only."""
    return len(np.unique(ranked[ranked >= 0])) / ranked.size


def or_ratio(ranked: np.ndarray) -> float:
    """ORRatio: share that the three most recommended items have in all recommendations, 0 when there is none."""
    counts = np.sort(np.unique(ranked[ranked >= 0], return_counts=True)[1])
    return float(counts[-3:].sum() / max(counts.sum(), 1))


def ild(ranked: np.ndarray, vectors: np.ndarray) -> np.ndarray:
    """Intra-list diversity, `(...,)`: mean cosine distance over the pairs of a list.

    An item whose vector is all zeros is at distance 1 from every other. A list of fewer than two items gives 0.

    Args:
        ranked (`np.ndarray` of shape `(..., K)`): The ranking.
        vectors (`np.ndarray` of shape `(num_items, D)`): What an item is about: an embedding, or its shares in groups.
    """
    norms = np.linalg.norm(vectors, axis=-1, keepdims=True)
    units = np.divide(vectors, norms, out=np.zeros(vectors.shape), where=norms > 0)
    lists = ranked.reshape(-1, ranked.shape[-1])
    step = max(1, GATHERED_VALUES // max(1, lists.shape[1] * units.shape[1]))
    parts = [_mean_distance(lists[start : start + step], units) for start in range(0, len(lists), step)]
    return np.concatenate([np.empty(0), *parts]).reshape(ranked.shape[:-1])


def _mean_distance(lists: np.ndarray, units: np.ndarray) -> np.ndarray:
    # The cosines of all pairs add up to (|sum of units|^2 - sum of |unit|^2) / 2: K vectors a list, not K x K pairs.
    present = lists >= 0
    gathered = np.where(present[..., None], units[np.where(present, lists, 0)], 0.0)
    cosines = np.square(gathered.sum(1)).sum(-1) - np.square(gathered).sum((1, 2))
    size = present.sum(-1)
    return np.where(size > 1, 1 - cosines / np.maximum(size * (size - 1), 1), 0.0)


def group_share(items: np.ndarray, shares: np.ndarray) -> np.ndarray:
    """Share of each group, `(G,)`, in `items` of any shape, adding up to 1; items in no group are left out, zeros when
    all are.

    Args:
        items (`np.ndarray`): Item indices, negative = missing.
        shares (`np.ndarray` of shape `(num_items, G)`): How an item's unit of mass is spread over the groups.
    """
    mass = _counts(items, len(shares)) @ shares
    return mass / max(mass.sum(), np.finfo(np.float64).tiny)


def mgu(recommended: np.ndarray, consumed: np.ndarray) -> np.ndarray:
    """MGU, `(...,)`: mean over groups of |share in recommendations - share in histories|, both `(..., G)`; 0 is
    fair."""
    return np.abs(recommended - consumed).mean(-1)


def dgu(recommended: np.ndarray, consumed: np.ndarray) -> np.ndarray:
    """DGU, `(...,)`: the largest less the smallest share gained over the histories, both `(..., G)`; 0 is fair."""
    return np.ptp(recommended - consumed, axis=-1)


def _counts(items: np.ndarray, num_items: int) -> np.ndarray:
    counted = items[(items >= 0) & (items < num_items)]
    return np.bincount(counted, minlength=num_items).astype(np.float64)
