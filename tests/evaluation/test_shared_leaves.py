"""Compares the results of `expected_metrics` with plain recall and NDCG, averaged over all orders of the items that
share a leaf of the trie."""

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.oracles import metrics as oracle
from trl_rec.evaluation.evaluator import per_user_metrics
from trl_rec.evaluation.shared_leaves import expected_metrics, leaf_of_items
from trl_rec.items import TokenTrie
from trl_rec.ragged import Ragged


NUM_ITEMS = 7


@settings(max_examples=50)
@given(st.lists(st.integers(0, 3), min_size=NUM_ITEMS, max_size=NUM_ITEMS), st.data(), st.integers(1, 5))
def test_expected_metrics_equal_the_mean_over_all_orders(leaves, data, k):
    """The ranking ends after five items, so it may contain only some of the items that share its last leaf. Excluded
    items are missing from all orders."""
    excluded = data.draw(st.lists(st.integers(0, NUM_ITEMS - 1), max_size=3))
    relevant = data.draw(st.lists(st.integers(0, NUM_ITEMS - 1), min_size=1, max_size=3))
    order = data.draw(st.permutations(range(4)))
    allowed = [item for item in range(NUM_ITEMS) if item not in excluded]
    ranking = sorted(allowed, key=lambda item: (order[leaves[item]], item))[:5]
    ranking += [-1] * (5 - len(ranking))

    ours = expected_metrics(
        np.array([ranking]), [relevant], np.array(leaves), ks=[k], excluded=Ragged.from_lists([excluded])
    )
    every = [oracle.accuracy([list_], [relevant], k)[0] for list_ in oracle.orders_of_leaves(ranking, leaves, allowed)]
    expected = np.mean(every, 0)
    np.testing.assert_allclose(ours[f"expected_recall@{k}"], expected[:1])
    np.testing.assert_allclose(ours[f"expected_ndcg@{k}"], expected[2:3])


@settings(max_examples=20)
@given(st.data())
def test_without_shared_leaves_expected_metrics_equal_the_plain_metrics(data):
    item = st.integers(0, NUM_ITEMS - 1)
    ranked = np.array(
        data.draw(st.lists(st.lists(item | st.just(-1), min_size=4, max_size=4), min_size=1, max_size=4))
    )
    relevant = [data.draw(st.lists(item, min_size=1, max_size=3)) for _ in ranked]
    ours = expected_metrics(ranked, relevant, np.arange(NUM_ITEMS), ks=[2, 4])
    plain = per_user_metrics(ranked, relevant, ks=[2, 4])
    for name, values in ours.items():
        np.testing.assert_array_equal(values, plain[name.removeprefix("expected_")])


def test_excluded_items_without_a_leaf_are_ignored() -> None:
    """Retired items have no leaf. Here, these are items 3 and 5, for which `leaves` has no entry."""
    ranked, relevant, leaves = np.array([[0, 1], [2, 0]]), [[1], [2]], np.array([0, 0, 1])
    with_retired, without = Ragged.from_lists([[3, 5], []]), Ragged.from_lists([[], []])
    ours, plain = (
        expected_metrics(ranked, relevant, leaves, ks=[1, 2], excluded=one) for one in (with_retired, without)
    )
    for name in ours:
        np.testing.assert_array_equal(ours[name], plain[name])


def test_items_with_the_same_path_have_the_same_leaf() -> None:
    trie = TokenTrie.from_sequences([[4, 5], [4, 6], [4, 5], [3, 3]])
    leaves = leaf_of_items(trie)
    assert leaves[0] == leaves[2] and len(set(leaves.tolist())) == 3
    assert leaf_of_items(TokenTrie.from_sequences([[4], [4]], torch.tensor([1, 0]))).tolist() == [0, 0]
