"""Tests which children of a trie node are legal while a list is written, and that the tokens of a list are the paths
of its items."""

import random

import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.decoding.test_beam import random_catalogue
from tests.oracles.lists import legal_tokens
from trl_rec.decoding import list_tokens
from trl_rec.decoding.lists.constraint import legal_children, num_legal, taken_places
from trl_rec.items import TokenTrie


@given(st.integers(0, 2**32), st.booleans())
def test_a_child_is_legal_as_long_as_an_item_below_it_remains(seed: int, has_eos: bool) -> None:
    """Checks every inner node. The list so far is random, so it may contain only some of the items that share a
    path."""
    rng = random.Random(seed)
    sequences = random_catalogue(rng, has_eos)
    trie = TokenTrie.from_sequences(sequences)
    prefixes = sorted({tuple(path[:depth]) for path in sequences for depth in range(len(path))})
    nodes = torch.stack([trie.walk(torch.tensor(prefix, dtype=torch.int64))[-1] for prefix in prefixes])
    lists = [rng.sample(range(len(sequences)), rng.randint(0, len(sequences))) for _ in prefixes]
    excluded = [rng.sample(range(len(sequences)), rng.randint(0, 2) if len(sequences) > 1 else 0) for _ in prefixes]
    excluded = [[item for item in few if item not in some] for few, some in zip(excluded, lists, strict=True)]
    items = torch.tensor([[*some, *[-1] * (len(sequences) - len(some))] for some in lists])
    ranks = torch.tensor([rng.randint(0, len(some)) for some in lists])
    places = torch.tensor([[int(trie.item_positions[item]) for item in [*few, -1, -1][:2]] for few in excluded])
    places = places.masked_fill(
        torch.tensor([[slot >= len(few) for slot in range(2)] for few in excluded]), trie.num_items
    )
    taken = taken_places(trie, items, ranks, places)
    assert bool((taken[:, 1:] >= taken[:, :-1]).all())
    tokens, children, legal = legal_children(trie, nodes, taken)
    assert num_legal(trie, nodes, taken).tolist() == legal.sum(1).tolist()
    for row, prefix in enumerate(prefixes):
        left = set(range(len(sequences))) - set(lists[row][: int(ranks[row])]) - set(excluded[row])
        assert tokens[row][legal[row]].tolist() == legal_tokens(sequences, left, list(prefix))
        for token, child in zip(tokens[row][legal[row]], children[row][legal[row]], strict=True):
            assert child == trie.walk(torch.tensor([*prefix, int(token)]))[-1]
        at_one_node = legal_children(trie, nodes[row : row + 1], taken, legal.shape[1])
        at_each = legal_children(trie, nodes[row].repeat(len(nodes)), taken, legal.shape[1])
        assert torch.equal(at_one_node[2], at_each[2])
        assert torch.equal(at_one_node[0].expand_as(at_each[0]), at_each[0])


@given(st.integers(0, 2**32), st.booleans())
def test_lists_become_the_paths_of_their_items_with_the_node_before_each_token(seed: int, has_eos: bool) -> None:
    rng = random.Random(seed)
    sequences = random_catalogue(rng, has_eos)
    trie = TokenTrie.from_sequences(sequences)
    rows = [[rng.randrange(-1, len(sequences)) for _ in range(3)] for _ in range(4)]
    lists = list_tokens(trie, torch.tensor(rows).view(2, 2, 3))
    assert lists.token_ids.shape[:2] == (2, 2)
    for row, chosen in enumerate(rows):
        mask, tokens, nodes, ranks = (
            part.flatten(0, 1)[row] for part in (lists.mask, lists.token_ids, lists.nodes, lists.ranks)
        )
        expected = [(token, rank) for rank, item in enumerate(chosen) if item >= 0 for token in sequences[item]]
        assert mask.tolist() == [place < len(expected) for place in range(len(mask))]
        assert list(zip(tokens[mask].tolist(), ranks[mask].tolist(), strict=True)) == expected
        before = [trie.walk(torch.tensor(sequences[item]))[:-1] for item in chosen if item >= 0]
        assert nodes[mask].tolist() == [int(node) for path in before for node in path]
        assert not tokens[~mask].any() and bool((nodes[~mask] == -1).all())


@given(st.integers(0, 2**32), st.booleans())
def test_the_leaf_of_an_item_and_the_nodes_above_it_form_its_path(seed: int, has_eos: bool) -> None:
    sequences = random_catalogue(random.Random(seed), has_eos)
    trie = TokenTrie.from_sequences(sequences)
    for item, path in enumerate(sequences):
        place = trie.item_positions[item].long()
        passed = trie.walk(torch.tensor(path))
        assert trie.leaves[place] == passed[-1]
        assert torch.equal(trie.above(place.expand(len(passed)), torch.arange(len(passed))), passed)
