"""What an order of rated candidates is worth, and how much it owes to the order in which they were shown. numpy only.

`places` say where each candidate came in an order, from 0; `slots` where it stood in the prompt. Both are -1 where a
list has no candidate, as are ratings.

Legend: N lists, S orders that each was shown in, m candidates of the longest list.
"""

from __future__ import annotations

import numpy as np

from trl_rec.evaluation.metrics import graded_ndcg


def graded_ndcg_of(places: np.ndarray, ratings: np.ndarray, k: int) -> np.ndarray:
    """`(N,)`: NDCG@k with gain 2^rating - 1 of one order a list, `places` and `ratings` being `(N, m)`."""
    row, candidate = np.nonzero(places >= 0)
    in_order = np.zeros(places.shape)
    in_order[row, places[row, candidate]] = ratings[row, candidate]
    return graded_ndcg(in_order, np.where(places >= 0, ratings, 0), k)


def rank_correlation(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """`(N,)`: Kendall's tau over the pairs that neither of two rankings `(N, m)` ties: 1 for the same order, -1 for
    the reverse, 0 where there is no such pair. A candidate is present where `first` is not negative."""
    present = first >= 0
    both = present[:, :, None] & present[:, None, :]
    signs = [np.sign(values[:, :, None] - values[:, None, :]) for values in (first, second)]
    product = np.where(both, signs[0] * signs[1], 0)
    return product.sum((1, 2)) / np.maximum(np.abs(product).sum((1, 2)), 1)


def order_consistency(places: np.ndarray) -> np.ndarray:
    """`(N,)`: how far the orders `(N, S, m)` agree that a list was given when shown in S orders: the mean of Kendall's
    tau over the pairs of them; 1 where S is 1."""
    pairs = [(a, b) for b in range(places.shape[1]) for a in range(b)]
    if not pairs:
        return np.ones(len(places))
    return np.mean([rank_correlation(places[:, a], places[:, b]) for a, b in pairs], 0)


def slot_correlation(places: np.ndarray, slots: np.ndarray) -> np.ndarray:
    """`(N,)`: mean over the orders `(N, S, m)` of Kendall's tau between slot and place. Its mean over lists is 0 for a
    model that does not care where a candidate stands, and above 0 for one that prefers what it reads first."""
    return np.mean([rank_correlation(places[:, order], slots[:, order]) for order in range(places.shape[1])], 0)


def slot_profile(places: np.ndarray, slots: np.ndarray) -> np.ndarray:
    """`(m,)`: how often the candidate in a slot comes first, whatever it is, in units of what chance gives: 1 in every
    slot for a model without position bias; NaN for a slot that no list has."""
    counts = (places >= 0).sum(-1, keepdims=True)
    wins = np.where(places == 0, counts, 0).astype(float)
    slot, present = slots[places >= 0], places >= 0
    shown = np.bincount(slot, minlength=places.shape[-1])
    with np.errstate(invalid="ignore"):
        return np.bincount(slot, wins[present], places.shape[-1]) / shown


def borda(places: np.ndarray) -> np.ndarray:
    """`(N, m)`: one order made of several `(N, S, m)`, by the sum of places, ties by the place in the first order:
    what is called bootstrapping, and costs S times as much as one order."""
    present = places[:, 0] >= 0
    total = np.where(present, places.sum(1), np.inf)
    order = np.lexsort((places[:, 0], total))
    return np.where(present, np.argsort(order, 1), -1)


def places_of(scores: np.ndarray, present: np.ndarray) -> np.ndarray:
    """`(N, m)`: the place of each candidate by descending score, ties by the candidate's index."""
    order = np.argsort(np.where(present, -scores, np.inf), 1, kind="stable")
    return np.where(present, np.argsort(order, 1), -1)
