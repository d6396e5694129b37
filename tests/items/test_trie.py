"""Compares `TokenTrie` with a slow trie of dicts, and tests the input that `TokenTrie` refuses."""

import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.oracles.trie import DictTrie
from trl_rec.items import ItemCatalog, TokenTrie


EOS = 1


@st.composite
def catalogues(draw: st.DrawFn) -> tuple[list[list[int]], list[int]]:
    """Draws the sequences of a catalogue, and the item of each sequence. Either each sequence ends in EOS and has a
    length of its own, or all sequences have the same length and no EOS. Sequences may be equal."""
    tokens = st.integers(2, 6)
    if draw(st.booleans()):
        bodies = draw(st.lists(st.lists(tokens, max_size=5), min_size=1, max_size=20))
        sequences = [[*body, EOS] for body in bodies]
    else:
        length = draw(st.integers(1, 4))
        sequences = draw(st.lists(st.lists(tokens, min_size=length, max_size=length), min_size=1, max_size=20))
    items = draw(st.permutations(range(len(sequences) + 3)))[: len(sequences)]
    return sequences, list(items)


@given(catalogues())
def test_every_node_agrees_with_a_dict_trie(catalogue: tuple[list[list[int]], list[int]]) -> None:
    sequences, items = catalogue
    trie, oracle = TokenTrie.from_sequences(sequences, items), DictTrie(sequences, items)
    assert (trie.num_nodes, trie.num_items, trie.num_leaves) == (len(oracle.children), len(items), len(oracle.items))
    assert trie.max_shared == max(map(len, oracle.items.values()))
    seen = set()
    for prefix, allowed in oracle.children.items():
        node = trie.walk(torch.tensor(prefix, dtype=torch.int64))[-1]
        seen.add(int(node))
        tokens, next_nodes, legal = trie.children(node)
        assert tokens[legal].tolist() == sorted(allowed)
        for token, child in zip(tokens[legal], next_nodes[legal], strict=True):
            assert child == trie.walk(torch.tensor([*prefix, int(token)]))[-1]
            assert trie.parents[child] == node
        assert trie.items_at(node).tolist() == sorted(oracle.items.get(prefix, []))
        below = trie.items[trie.item_starts[node] : trie.item_ends[node]].tolist()
        assert sorted(below) == oracle.items_below(prefix)
        assert trie.lowest_items[node] == min(below)
        assert trie.depths(node) == len(prefix)
        end = prefix
        while len(oracle.children[end]) == 1:
            end = (*end, *oracle.children[end])
        assert trie.forced_ends[node] == trie.walk(torch.tensor(end, dtype=torch.int64))[-1]
    assert seen == set(range(trie.num_nodes))


@given(catalogues(), st.lists(st.integers(0, 7), max_size=6))
def test_a_walk_that_leaves_the_trie_stays_outside(
    catalogue: tuple[list[list[int]], list[int]], tokens: list[int]
) -> None:
    sequences, items = catalogue
    trie, oracle = TokenTrie.from_sequences(sequences, items), DictTrie(sequences, items)
    nodes = trie.walk(torch.tensor([tokens], dtype=torch.int64))[0].tolist()
    for length in range(len(tokens) + 1):
        assert (nodes[length] >= 0) == (tuple(tokens[:length]) in oracle.children)


@given(catalogues())
def test_an_array_gives_the_same_trie_as_lists(catalogue: tuple[list[list[int]], list[int]]) -> None:
    sequences, items = catalogue
    width = max(map(len, sequences)) + 1
    array = np.full((len(sequences), width), -1, np.int32)
    for row, sequence in enumerate(sequences):
        array[row, : len(sequence)] = sequence
    lists, arrays = TokenTrie.from_sequences(sequences, items), TokenTrie.from_sequences(array, items)
    assert torch.equal(lists.row_offsets, arrays.row_offsets) and torch.equal(lists.child_tokens, arrays.child_tokens)
    assert torch.equal(lists.items, arrays.items)


def test_a_trie_of_three_paths_by_hand() -> None:
    """The nodes are 0 (the root), 1 [5], 2 [7], 3 [5 6], 4 [5 8] and 5 [7 6]."""
    trie = TokenTrie.from_sequences([[7, 6], [5, 8], [5, 6]])
    tokens, next_nodes, legal = trie.children(torch.tensor([0, 1, 2, 5, -1]))
    assert tokens.tolist() == [[5, 7], [6, 8], [6, 0], [0, 0], [0, 0]]
    assert next_nodes.tolist() == [[1, 2], [3, 4], [5, 0], [0, 0], [0, 0]]
    assert legal.tolist() == [[True, True], [True, True], [True, False], [False, False], [False, False]]
    assert trie.items.tolist() == [2, 1, 0]
    assert trie.depth_widths == [2, 2, 0]


def test_large_token_ids_do_not_overflow_the_sort_key() -> None:
    """The seven token ids of a path have 20 bits each, and are packed into three sort keys. The order of the paths
    must not depend on the packing."""
    generator = torch.Generator().manual_seed(0)
    paths = torch.randint(0, 2**20, (50, 7), generator=generator)
    trie = TokenTrie.from_sequences(paths)
    order = sorted(range(50), key=lambda row: paths[row].tolist())
    assert trie.items.tolist() == order


@pytest.mark.parametrize("kind", [np.uint16, np.uint32, np.int8])
def test_any_integer_dtype_is_accepted(kind: type) -> None:
    assert TokenTrie.from_sequences(np.array([[7, 6], [5, 8]], kind)).items.tolist() == [1, 0]


def test_saving_and_loading_gives_the_same_trie(tmp_path) -> None:
    trie = TokenTrie.from_sequences([[2, 3, EOS], [2, EOS], [4, 4, 4, EOS]], [5, 0, 9])
    trie.save(tmp_path / "trie.safetensors")
    loaded = TokenTrie.load(tmp_path / "trie.safetensors")
    assert all(torch.equal(tensor, loaded._tensors()[name]) for name, tensor in trie._tensors().items())


@pytest.mark.parametrize(
    ("sequences", "items", "message"),
    [
        ([], None, "sequences is empty; give at least one"),
        ([[2, 3], []], None, "sequence 1 is empty"),
        ([[2, 3, 4], [2, 3]], None, "sequence 1 is a prefix of another"),
        ([[2], [3]], [4, 4], "item 4 occurs more than once"),
        ([[2], [3]], [4], "for each of the 2 sequences"),
        ([[2], [3]], [2**31, 4], "one integer from 0 to 2147483647"),
        ([[2], [3]], [0.5, 1.0], "one integer from 0 to 2147483647"),
        ([[2**32 + 3], [4]], None, "token id 4294967299 is too large"),
        ([[3, -1, 4], [5, 6, 7]], None, "sequence 0 has a negative id before its end"),
        ([[3, 4, 5], [-1, 6, 7]], None, "sequence 1 has a negative id before its end"),
        ([[3, 4, 5], [5, -1, -7]], None, "sequence 1 contains the id -7; token ids must be at least 0, and the padd"),
        ([[3, 4, 5], [-7, 4]], None, "sequence 1 contains the id -7"),
        (np.zeros(3, np.int64), None, "must be a 2-D array"),
        (np.zeros((3, 2)), None, "must be a 2-D array"),
    ],
)
def test_bad_input_is_refused(sequences, items, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TokenTrie.from_sequences(sequences, items)


def test_equal_titles_share_a_leaf_or_are_refused(titles, tokenizer) -> None:
    import pyarrow as pa

    catalog = ItemCatalog(pa.table({"item_id": [f"i{row}" for row in range(len(titles))], "title": titles}))
    with pytest.warns(UserWarning, match="1 of 8 items have the same text as an earlier"):
        trie = TokenTrie.from_catalog(catalog, tokenizer)
    paths = catalog.paths(tokenizer)
    leaf = trie.walk(torch.from_numpy(paths[4]))[-1]
    assert trie.items_at(leaf).tolist() == [4, 5]
    assert tokenizer.decode(paths[0][:-1]) == '"Blue Pen, 12 Pack"' and paths[0][-1] == tokenizer.eos_token_id
    with pytest.raises(ValueError, match="1 items have the same text as an earlier"):
        TokenTrie.from_catalog(catalog, tokenizer, duplicates="refuse")


def test_the_trie_imports_no_heavy_library_except_torch() -> None:
    names = ("transformers", "trl", "pyarrow")
    code = f"import sys, trl_rec.items.trie; print([name for name in {names} if name in sys.modules])"
    assert (
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"
    )
