"""Measures of orders of rated candidates: graded NDCG, Kendall's tau, and the effect of the order that was shown.

An order is given as `places`: the place of each candidate, from 0 for the best. `slots` are the positions of the
candidates in the prompt, from 0. Places, slots and ratings are -1 where a list has fewer than m candidates. Only numpy
is imported.

Legend: N lists, S orders in which each list was shown, m candidates of the longest list.
"""

from __future__ import annotations

import numpy as np

from trl_rec.evaluation.metrics import graded_ndcg


def order_ndcg(places: np.ndarray, ratings: np.ndarray, k: int) -> np.ndarray:
    """NDCG@k of one order per list, `(N,)`, with the gain 2^rating - 1; `places` and `ratings` are `(N, m)`."""
    row, candidate = np.nonzero(places >= 0)
    in_order = np.zeros(places.shape)  # (N, m): the rating at each place
    in_order[row, places[row, candidate]] = ratings[row, candidate]
    return graded_ndcg(in_order, np.where(places >= 0, ratings, 0), k)


def rank_correlation(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Kendall's tau between two rankings `(N, m)` of each list, `(N,)`.

    It is the mean over the pairs of candidates that neither ranking ties: 1 for the same order, -1 for the reverse, 0
    if there is no such pair. Candidates are those where `first` is not negative.
    """
    present = first >= 0
    both_present = present[:, :, None] & present[:, None, :]  # (N, m, m)

    # 1 where the two rankings agree about a pair, -1 where they disagree, 0 where either ties it.
    first_signs = np.sign(first[:, :, None] - first[:, None, :])
    second_signs = np.sign(second[:, :, None] - second[:, None, :])
    agreement = np.where(both_present, first_signs * second_signs, 0)
    taus: np.ndarray = agreement.sum((1, 2)) / np.maximum(np.abs(agreement).sum((1, 2)), 1)
    return taus


def order_consistency(places: np.ndarray) -> np.ndarray:
    """How much the S orders `(N, S, m)` of the same list agree, `(N,)`: the mean of Kendall's tau over all pairs of
    orders, 1 if S is 1."""
    # Every pair of different orders once.
    pairs = [(a, b) for b in range(places.shape[1]) for a in range(b)]
    if not pairs:
        return np.ones(len(places))
    taus: np.ndarray = np.mean([rank_correlation(places[:, a], places[:, b]) for a, b in pairs], 0)
    return taus


def slot_correlation(places: np.ndarray, slots: np.ndarray) -> np.ndarray:
    """Kendall's tau between slot and place, `(N,)`: the mean over the S orders `(N, S, m)` of each list.

    Its mean over many lists is 0 for a model without position bias, and above 0 for a model that prefers the first
    slots.
    """
    orders = range(places.shape[1])
    taus: np.ndarray = np.mean([rank_correlation(places[:, order], slots[:, order]) for order in orders], 0)
    return taus


def slot_profile(places: np.ndarray, slots: np.ndarray) -> np.ndarray:
    """How often the candidate in each slot is ranked first, `(m,)`, relative to chance.

    It is 1 in every slot for a model without position bias, and NaN for a slot that no list has. `places` and `slots`
    are `(N, S, m)`.
    """
    present = places >= 0
    num_candidates = present.sum(-1, keepdims=True)  # (N, S, 1)
    wins = np.where(places == 0, num_candidates, 0).astype(float)  # chance is 1 / num_candidates

    # Wins per slot, divided by how often a candidate was shown there; 0 / 0 gives the NaN.
    slot = slots[present]
    num_shown = np.bincount(slot, minlength=places.shape[-1])
    with np.errstate(invalid="ignore"):
        return np.bincount(slot, wins[present], places.shape[-1]) / num_shown


def borda(places: np.ndarray) -> np.ndarray:
    """Combines the S orders `(N, S, m)` of each list into one, `(N, m)`, by the sum of places (Borda count).

    Ties go to the better place in the first order. The literature calls this bootstrapping; it costs S times as much
    as one order.
    """
    present = places[:, 0] >= 0
    total = np.where(present, places.sum(1), np.inf)  # inf sorts missing candidates last
    order = np.lexsort((places[:, 0], total))
    return np.where(present, np.argsort(order, 1), -1)


def places_by_score(scores: np.ndarray, present: np.ndarray) -> np.ndarray:
    """The place of each candidate by descending score, `(N, m)`; ties go to the candidate earlier in the list."""
    # `argsort` twice: the first gives the candidate at each place, the second the place of each candidate.
    order = np.argsort(np.where(present, -scores, np.inf), 1, kind="stable")
    return np.where(present, np.argsort(order, 1), -1)
