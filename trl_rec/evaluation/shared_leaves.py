"""Computes the expected recall and NDCG over random orders of the items that share a leaf of the trie.

Items with equal titles, or with equal semantic IDs, share a leaf and have the same score. `rank_items` lists them in
catalogue order, so whether a target comes first or last among them is arbitrary. The metrics `expected_recall@k` and
`expected_ndcg@k` are recall and NDCG, averaged over all orders of the items of each leaf. If no items share a leaf,
these metrics equal `recall@k` and `ndcg@k`. Recall and NDCG are linear in the hits, so the averages can be computed by
replacing each hit by the probability of a hit.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from trl_rec.data.item_rows import Rows, item_rows
from trl_rec.evaluation import metrics
from trl_rec.items.trie import TokenTrie
from trl_rec.ragged import Ragged


def leaf_of_items(trie: TokenTrie) -> np.ndarray:
    """Returns the leaf id of each item, `(num_items,)`. Ids count from 0. Items that share a leaf have the same id."""
    leaves = np.full(len(trie.item_positions), -1, np.int64)
    leaves[trie.items.cpu().numpy()] = trie.leaves.cpu().numpy()
    numbers: np.ndarray = np.unique(leaves, return_inverse=True)[1]
    return numbers


def expected_metrics(
    ranked: np.ndarray, relevant: Rows, leaves: np.ndarray, *, ks: Sequence[int], excluded: Ragged | None = None
) -> dict[str, np.ndarray]:
    """Computes `expected_recall@k` and `expected_ndcg@k` per user, `(N,)` each.

    Args:
        ranked (`np.ndarray` of shape `(N, K)`): Item indices, best first, padded with -1.
        relevant (`Ragged`, Arrow list column or list of lists): The items that each user chose next.
        leaves (`np.ndarray` of shape `(num_items,)`): Leaf id of each item, as returned by [`leaf_of_items`].
        ks (`Sequence[int]`): The cutoffs k.
        excluded (`Ragged`, *optional*): For each user, the items that were excluded from the ranking. Indices of
            `num_items` or above belong to retired items, which have no leaf, and are ignored.
    """
    relevant = item_rows(relevant, "relevant", len(leaves))
    num_items = len(leaves)
    wanted = np.unique(relevant.row_ids * num_items + relevant.values)
    num_relevant = np.bincount(wanted // num_items, minlength=len(ranked))

    # 1. For each rank, take the leaf of the item at this rank. Count the items of the leaf that could be recommended,
    #    and the relevant items among them.
    left_out = np.empty(0, np.int64)
    if excluded is not None:
        known = excluded.values < num_items  # retired items have no leaf
        left_out = np.unique(excluded.row_ids[known] * num_items + excluded.values[known])
    num_leaves = int(leaves.max(initial=-1)) + 1
    keys = np.arange(len(ranked))[:, None] * num_leaves + leaves[np.maximum(ranked, 0)]  # (N, K)
    sizes = np.bincount(leaves, minlength=num_leaves)[leaves[np.maximum(ranked, 0)]]
    sizes = sizes - _count(keys, left_out, leaves, num_leaves)
    relevant_in = _count(keys, np.setdiff1d(wanted, left_out, assume_unique=True), leaves, num_leaves)

    # 2. The probability of a hit is the number of relevant items of the leaf, divided by the number of items of the
    #    leaf that could be recommended. Only the first occurrence of an item in a ranking can be a hit.
    possible = metrics.first_occurrences(ranked) & (sizes > 0)
    hits = np.where(possible, relevant_in / np.maximum(sizes, 1), 0.0)

    values = {}
    for k in ks:
        values[f"expected_recall@{k}"] = metrics.recall(hits, num_relevant, k)
        values[f"expected_ndcg@{k}"] = metrics.ndcg(hits, num_relevant, k)
    return values


def _count(keys: np.ndarray, pairs: np.ndarray, leaves: np.ndarray, num_leaves: int) -> np.ndarray:
    """For each key (a user and a leaf), counts how many of `pairs` contain this user and an item of this leaf.

    Args:
        keys: Keys of any shape, each encoded as `user * num_leaves + leaf`.
        pairs: Distinct pairs, each encoded as `user * num_items + item`.
        leaves: Leaf id of each item.
        num_leaves: Number of leaves.

    Returns:
        The counts, in the shape of `keys`.
    """
    rows, items = np.divmod(pairs, len(leaves))
    found = np.sort(rows * num_leaves + leaves[items])
    counts: np.ndarray = np.searchsorted(found, keys, side="right") - np.searchsorted(found, keys)
    return counts
