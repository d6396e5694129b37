"""Computes metrics for orders of rated candidates: graded NDCG, Kendall's tau and measures of position bias.

An order is given as `places`, the place of each candidate, starting from 0 for the best. `slots` are the positions of
the candidates in the prompt, starting from 0. The places, slots and ratings of shorter lists are padded with -1 to the
length of the longest list. numpy is the only dependency.

Legend: N: lists, S: rankings of each list, from prompts that show its candidates in different orders, m: candidates of
the longest list.
"""

from __future__ import annotations

import numpy as np

from trl_rec.evaluation.metrics import graded_ndcg


def order_ndcg(places: np.ndarray, ratings: np.ndarray, k: int) -> np.ndarray:
    """Computes NDCG@k of one order per list, `(N,)`, with gain 2^rating - 1. `places` and `ratings` are `(N, m)`."""
    row, candidate = np.nonzero(places >= 0)
    in_order = np.zeros(places.shape)  # (N, m): the rating at each place
    in_order[row, places[row, candidate]] = ratings[row, candidate]
    return graded_ndcg(in_order, np.where(places >= 0, ratings, 0), k)


def rank_correlation(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Returns Kendall's tau between two rankings of each list, `(N,)`.

    `first` and `second`, `(N, m)`, contain one number per candidate, such as its place; lower numbers come first.
    Pairs of candidates that share a rank in one of the rankings are left out. Any other pair has the value 1 if both
    rankings order it in the same way, and -1 otherwise. Tau is the mean of these values, or 0 if all pairs are left
    out. Entries where `first` is negative are padding.
    """
    present = first >= 0
    both_present = present[:, :, None] & present[:, None, :]  # (N, m, m)

    # An entry of `agreement` is 1 if both rankings order the pair in the same way, -1 if they order it differently,
    # and 0 if both candidates share a rank in one of the rankings.
    first_signs = np.sign(first[:, :, None] - first[:, None, :])
    second_signs = np.sign(second[:, :, None] - second[:, None, :])
    agreement = np.where(both_present, first_signs * second_signs, 0)
    taus: np.ndarray = agreement.sum((1, 2)) / np.maximum(np.abs(agreement).sum((1, 2)), 1)
    return taus


def order_consistency(places: np.ndarray) -> np.ndarray:
    """Returns how much a model's S orders of each list agree, `(N,)`. `places` is `(N, S, m)`.

    This is Kendall's tau between two of the orders, averaged over all pairs of orders. It is 1 if S is 1.
    """
    pairs = [(a, b) for b in range(places.shape[1]) for a in range(b)]
    if not pairs:
        return np.ones(len(places))
    taus: np.ndarray = np.mean([rank_correlation(places[:, a], places[:, b]) for a, b in pairs], 0)
    return taus


def slot_correlation(places: np.ndarray, slots: np.ndarray) -> np.ndarray:
    """Returns Kendall's tau between slot and place, averaged over the S orders of each list, `(N,)`.

    The mean over many lists is about 0 for a model without position bias, and above 0 for a model that prefers the
    first slots. `places` and `slots` are `(N, S, m)`.
    """
    orders = range(places.shape[1])
    taus: np.ndarray = np.mean([rank_correlation(places[:, order], slots[:, order]) for order in orders], 0)
    return taus


def slot_profile(places: np.ndarray, slots: np.ndarray) -> np.ndarray:
    """Computes how often the candidate in each slot is ranked first, relative to chance, `(m,)`.

    All values are about 1 for a model without position bias. Slots that no list uses get NaN. `places` and `slots` are
    `(N, S, m)`.
    """
    present = places >= 0
    num_candidates = present.sum(-1, keepdims=True)  # (N, S, 1)
    # In a random order, a candidate is first with probability 1 / num_candidates, so each first place counts as
    # `num_candidates` wins.
    wins = np.where(places == 0, num_candidates, 0).astype(float)

    # Divide the wins of each slot by the number of candidates shown in the slot. For an unused slot, 0 / 0 gives NaN.
    slot = slots[present]
    num_shown = np.bincount(slot, minlength=places.shape[-1])
    with np.errstate(invalid="ignore"):
        return np.bincount(slot, wins[present], places.shape[-1]) / num_shown


def borda(places: np.ndarray) -> np.ndarray:
    """Combines the S orders of each list into one (Borda count). Returns the places in the combined order, `(N, m)`.

    Candidates are ordered by the sum of their places. Candidates with equal sums are ordered as in the first of the S
    orders. `places` is `(N, S, m)`. LLMRank (Hou et al., ECIR 2024) calls this method bootstrapping. The model has to
    rank each list S times.
    """
    present = places[:, 0] >= 0
    total = np.where(present, places.sum(1), np.inf)  # inf sorts missing candidates last
    order = np.lexsort((places[:, 0], total))
    return np.where(present, np.argsort(order, 1), -1)


def places_by_score(scores: np.ndarray, present: np.ndarray) -> np.ndarray:
    """Returns the place of each candidate by descending score, `(N, m)`. Equal scores keep the order of the list."""
    # `order` contains the candidates from the best to the worst. Its `argsort` is the inverse: each candidate's place.
    order = np.argsort(np.where(present, -scores, np.inf), 1, kind="stable")
    return np.where(present, np.argsort(order, 1), -1)
