"""Compares the subtrees that `Excluded` marks as empty with those whose items are all excluded."""

import random

import torch
from hypothesis import given
from hypothesis import strategies as st

from trl_rec.decoding.excluded import Excluded
from trl_rec.items import TokenTrie


@given(st.integers(0, 2**32))
def test_a_subtree_is_emptied_when_all_its_items_are_excluded(seed: int) -> None:
    """The excluded items may contain duplicates, padding and unknown items."""
    rng = random.Random(seed)
    sequences = [[rng.randint(2, 4) for _ in range(3)] for _ in range(rng.randint(1, 12))]
    items = rng.sample(range(20), len(sequences))
    trie = TokenTrie.from_sequences(sequences, items)
    rows = [[rng.choice([*items, -1, 19, 50]) for _ in range(rng.randint(0, 15))] for _ in range(3)]
    nodes = torch.arange(trie.num_nodes).expand(3, -1)
    emptied = Excluded(trie, rows, 3).emptied(nodes)
    for row, excluded in enumerate(rows):
        for node in range(trie.num_nodes):
            below = trie.items[trie.item_starts[node] : trie.item_ends[node]].tolist()
            assert bool(emptied[row, node]) == (set(below) <= set(excluded))


def test_without_exclusion_no_subtree_is_empty() -> None:
    trie = TokenTrie.from_sequences([[4], [5]])
    assert not Excluded(trie, None, 2).emptied(torch.zeros(2, 1, dtype=torch.int64)).any()
