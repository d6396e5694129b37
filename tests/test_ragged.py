"""Compares `Ragged` and the functions of its module with lists of lists and with NumPy."""

import numpy as np
import pyarrow as pa
from hypothesis import given
from hypothesis import strategies as st

from trl_rec.ragged import Ragged, is_in, join, row_blocks, stable_order, within


rows_of_numbers = st.lists(st.lists(st.integers(0, 9), max_size=6), max_size=8)


def listed(ragged: Ragged) -> list[list[int]]:
    return [ragged[row].tolist() for row in range(len(ragged))]


@given(rows_of_numbers)
def test_lists_and_arrow_arrays_are_read_back(rows: list[list[int]]) -> None:
    ragged = Ragged.from_lists(rows)
    assert listed(ragged) == rows
    assert listed(Ragged.from_arrow(ragged.to_arrow())) == rows
    assert ragged.row_ids.tolist() == [row for row, values in enumerate(rows) for _ in values]
    assert within(ragged.lengths).tolist() == [place for values in rows for place in range(len(values))]


def test_a_slice_of_a_chunked_column_is_read_back() -> None:
    column = pa.chunked_array(
        [pa.array([[1], [2, 3]], pa.list_(pa.int32())), pa.array([[], [4]], pa.list_(pa.int32()))]
    )
    assert listed(Ragged.from_arrow(column.slice(1, 3))) == [[2, 3], [], [4]]
    assert listed(Ragged.from_arrow(column.slice(0, 0))) == []


def test_large_lists_are_read_back() -> None:
    rows = [[1], [2, 3], [], [4]]
    large = pa.array(rows, pa.large_list(pa.int32()))
    assert listed(Ragged.from_arrow(large)) == rows and listed(Ragged.from_arrow(large[1:])) == rows[1:]
    column = pa.chunked_array([large[:1], large[1:]])
    assert listed(Ragged.from_arrow(column)) == rows and listed(Ragged.from_arrow(column[2:])) == rows[2:]


def test_more_values_than_32_bit_offsets_allow_become_large_lists(monkeypatch) -> None:
    rows = [[1], [2, 3], [], [4]]
    ragged = Ragged.from_lists(rows)
    monkeypatch.setattr("trl_rec.ragged.LIST_ARRAY_LIMIT", 4)
    assert ragged.to_arrow().type == pa.list_(pa.int64())
    monkeypatch.setattr("trl_rec.ragged.LIST_ARRAY_LIMIT", 3)
    assert ragged.to_arrow().type == pa.large_list(pa.int64()) and ragged.to_arrow().to_pylist() == rows
    assert listed(Ragged.from_arrow(ragged.to_arrow())) == rows


@given(rows_of_numbers, st.data())
def test_rows_are_taken_cut_and_joined_like_lists(rows: list[list[int]], data: st.DataObject) -> None:
    ragged = Ragged.from_lists(rows)
    chosen = data.draw(st.lists(st.integers(0, len(rows) - 1), max_size=6)) if rows else []
    assert listed(ragged.take(np.array(chosen, np.int64))) == [rows[row] for row in chosen]
    stop = np.array([data.draw(st.integers(0, len(values))) for values in rows], np.int64)
    start = np.array([data.draw(st.integers(0, int(end))) for end in stop], np.int64)
    assert listed(ragged.slice(start, stop)) == [values[a:b] for values, a, b in zip(rows, start, stop, strict=True)]
    places = np.array(chosen, np.int64)
    assert listed(ragged.pieces(places, start[places], stop[places])) == [
        rows[row][start[row] : stop[row]] for row in chosen
    ]
    assert listed(ragged.head(2)) == [values[:2] for values in rows]
    assert listed(ragged.head(stop)) == [values[:b] for values, b in zip(rows, stop, strict=True)]
    assert listed(ragged.tail(2)) == [values[-2:] for values in rows]
    assert listed(join(ragged, ragged.tail(1), ragged)) == [values + values[-1:] + values for values in rows]


@given(rows_of_numbers)
def test_flatten_replaces_each_value_by_the_inner_row_of_that_number(rows: list[list[int]]) -> None:
    inner = [[value] * (value % 3) for value in range(10)]
    expected = [[piece for value in values for piece in inner[value]] for values in rows]
    assert listed(Ragged.from_lists(rows).flatten(Ragged.from_lists(inner))) == expected


def test_padding_by_hand() -> None:
    ragged = Ragged.from_lists([[1, 2], [], [3]])
    assert ragged.padded().tolist() == [[1, 2], [-1, -1], [3, -1]]
    assert ragged.padded(fill=0, width=3, left=True).tolist() == [[0, 1, 2], [0, 0, 0], [0, 0, 3]]


@given(st.lists(st.integers(-3, 9), max_size=12), st.lists(st.integers(-3, 9), max_size=12))
def test_is_in_equals_numpy(values, known):
    values, known = np.array(values, np.int64), np.array(known, np.int64)
    assert is_in(values, known).tolist() == np.isin(values, known).tolist()


@given(st.lists(st.integers(0, 2**32 - 1) | st.integers(0, 3), max_size=30))
def test_stable_order_equals_numpy(numbers):
    numbers = np.array(numbers, np.int64)
    assert stable_order(numbers).tolist() == np.argsort(numbers, kind="stable").tolist()


@given(st.lists(st.integers(0, 9), max_size=12), st.integers(1, 12))
def test_blocks_cover_all_rows(lengths, size):
    offsets = np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)])
    blocks = list(row_blocks(offsets, size))
    assert [row for block in blocks for row in range(block.start, block.stop)] == list(range(len(lengths)))
    assert all(block.stop == block.start + 1 or sum(lengths[block]) <= size for block in blocks)
