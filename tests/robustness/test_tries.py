"""Builds tries from arbitrary inputs. Each input must give a correct trie or an error. Damaged trie files must be
refused."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from hypothesis.extra import numpy as st_numpy
from safetensors.torch import load_file, save_file

from tests.oracles.trie import DictTrie
from tests.robustness.attacks import Attack, each
from trl_rec.items import TokenTrie


LARGEST = 2**31 - 1
TOKENS = st.one_of(st.integers(-1, 4), st.sampled_from([-2, LARGEST, LARGEST + 1, 2**63 - 1, -(2**63)]))
ROWS = st.lists(TOKENS, max_size=4)
ODD = st.one_of(st.none(), st.booleans(), st.floats(), st.text(max_size=2), st.complex_numbers(), st.just([[1]]))
DTYPES = st.one_of(
    st_numpy.integer_dtypes(),
    st_numpy.unsigned_integer_dtypes(),
    st_numpy.boolean_dtypes(),
    st_numpy.floating_dtypes(),
    st_numpy.complex_number_dtypes(),
    st_numpy.unicode_string_dtypes(max_len=2),
    st_numpy.datetime64_dtypes(),
    st.just(np.dtype(object)),
)


@given(st.one_of(st.lists(ROWS, max_size=6), st.lists(st.one_of(ROWS, ODD), max_size=3), ODD))
def test_lists_give_a_correct_trie_or_an_error(sequences: Any) -> None:
    check(sequences, None)


@given(st.data())
def test_integer_arrays_give_a_correct_trie_or_an_error(data: st.DataObject) -> None:
    rows, columns = data.draw(st.integers(0, 5)), data.draw(st.integers(0, 4))
    array = np.array(data.draw(st.lists(TOKENS, min_size=rows * columns, max_size=rows * columns)), np.int64)
    check(array.reshape(rows, columns), None)


@example(np.array([[0]], ">i2"))
@given(DTYPES.flatmap(lambda dtype: st_numpy.arrays(dtype, st_numpy.array_shapes(min_dims=0, max_dims=3, max_side=4))))
def test_arrays_of_any_type_give_a_correct_trie_or_an_error(array: np.ndarray) -> None:
    check(array, None)


@given(
    st.one_of(
        st.lists(st.integers(-2, 6), max_size=4),
        st.lists(st.sampled_from([0, 1, LARGEST, LARGEST + 1, 2**64]), max_size=3),
        st.lists(ODD, max_size=3),
        ODD,
        st_numpy.arrays(DTYPES, st_numpy.array_shapes(min_dims=0, max_dims=2, max_side=3)),
    )
)
def test_items_of_any_type_give_a_correct_trie_or_an_error(items: Any) -> None:
    check([[5, 1], [5, 2], [6, 1]], items)


def check(sequences: Any, items: Any) -> None:
    """Checks that the trie is correct if the input is valid, and that invalid input raises a `ValueError`."""
    paths = as_paths(sequences)
    numbers = list(range(len(paths or []))) if items is None else as_numbers(items)
    is_right = paths is not None and numbers is not None and is_prefix_free(paths)
    is_right = is_right and len(paths) == len(numbers) == len(set(numbers)) and 0 <= min(numbers)
    if not (is_right and max(numbers) <= LARGEST and max(map(max, paths)) <= LARGEST):
        with pytest.raises(ValueError) as refused:
            TokenTrie.from_sequences(sequences, items)
        assert str(refused.value)
        return

    trie = TokenTrie.from_sequences(sequences, items)
    oracle = DictTrie(paths, numbers)
    assert trie.num_nodes == len(oracle.children)
    for path in paths:
        node = trie.walk(torch.tensor(path))[-1]
        assert trie.items_at(node).tolist() == sorted(oracle.items[tuple(path)])


def as_paths(sequences: Any) -> list[list[int]] | None:
    """Returns the paths without padding, or None if the input is invalid. There must be at least one path, and each
    path must consist of at least one token, followed only by padding."""
    if not isinstance(sequences, list | np.ndarray) or isinstance(sequences, np.ndarray) and sequences.ndim != 2:
        return None
    paths = [as_numbers(row) for row in sequences]
    if not paths or None in paths:
        return None
    if isinstance(sequences, list):  # pad the lists to one length
        paths = [path + [-1] * (max(map(len, paths)) - len(path)) for path in paths]
    ends = [path.index(-1) if -1 in path else len(path) for path in paths]
    padding = [token for path, end in zip(paths, ends, strict=True) for token in path[end:]]
    tokens = [path[:end] for path, end in zip(paths, ends, strict=True)]
    is_right = set(padding) <= {-1} and all(tokens) and all(min(path) >= 0 for path in tokens)
    return tokens if is_right else None


def as_numbers(values: Any) -> list[int] | None:
    """Returns the values as a list, or None if they are not a list or a 1-D array of integers of at most 64 bits."""
    if isinstance(values, np.ndarray):
        return values.tolist() if values.ndim == 1 and values.dtype.kind in "iu" else None
    is_right = isinstance(values, list) and all(type(value) is int and -(2**63) <= value < 2**63 for value in values)
    return list(values) if is_right else None


def is_prefix_free(paths: list[list[int]]) -> bool:
    return not any(one != other and other[: len(one)] == one for one in paths for other in paths)


def change(**arrays: list[int]) -> Any:
    """Returns a function that replaces arrays of a saved trie. An empty list removes an array."""

    def damage(path: Path) -> None:
        tensors = {**load_file(path), **{name: torch.tensor(values) for name, values in arrays.items()}}
        tensors = {name: tensor.clone() for name, tensor in tensors.items() if len(tensor)}
        path.unlink()  # the loaded tensors are mapped from the old file, which must not be overwritten
        save_file(tensors, path)

    return damage


SAVED = [
    Attack("empty", "is not a complete trie", lambda path: path.write_bytes(b"")),
    Attack("cut", "is not a complete trie", lambda path: path.write_bytes(path.read_bytes()[:-20])),
    Attack("a pickle", "is not a complete trie", lambda path: path.write_bytes(pickle.dumps([1] * 99))),
    Attack("an array is missing", "item_ends", change(item_ends=[])),
    Attack("an unknown array", "unexpected keyword", change(more=[1])),
    Attack("too few tokens", "lengths of its arrays are inconsistent", change(child_tokens=[5])),
    Attack("offsets that descend", "offsets are inconsistent", change(row_offsets=[0, 2, 4, 3, 5, 5, 5])),
    Attack("an edge to the node itself", "offsets are inconsistent", change(row_offsets=[0, 0, 1, 3, 5, 5, 5])),
    Attack("item ends out of range", "offsets are inconsistent", change(item_ends=[9, 2, 3, 1, 2, 3])),
    Attack("negative items", "offsets are inconsistent", change(items=[0, -1, 2])),
    Attack("depths that end early", "offsets are inconsistent", change(depth_offsets=[0, 1, 3, 5])),
    Attack("a matrix instead of a list", "is not a list of integers", change(items=[[0, 1, 2]])),
]


@each(SAVED)
def test_a_damaged_file_is_refused(attack: Attack, tmp_path: Path) -> None:
    path = tmp_path / "trie.safetensors"
    TokenTrie.from_sequences([[5, 1], [5, 2], [6, 1]]).save(path)
    assert TokenTrie.load(path).num_items == 3
    attack.damage(path)
    with pytest.raises(ValueError, match="trie.safetensors is not a complete trie .* write it again") as refused:
        TokenTrie.load(path)
    assert attack.says in str(refused.value)
