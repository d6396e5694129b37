"""`encode` numbers the distinct values of a column in the same way whether the column has one part or many."""

import numpy as np
import pyarrow as pa
import pytest

from trl_rec.data.columns import _share_dictionary, encode


VALUES = ["b", "a", "b", "c", "a", "d", "b", "e"]
PARTS = [[8], [3, 5], [1, 0, 4, 3], [1] * 8]


def parts_of(values: list[str], sizes: list[int]) -> list[list[str]]:
    ends = np.cumsum(sizes)
    return [values[end - size : end] for size, end in zip(sizes, ends, strict=True)]


@pytest.mark.parametrize("sizes", PARTS)
@pytest.mark.parametrize("is_encoded", [False, True])
def test_the_division_of_a_column_into_parts_does_not_matter(sizes: list[int], is_encoded: bool) -> None:
    arrays = [pa.array(part, pa.string()) for part in parts_of(VALUES, sizes)]
    column = pa.chunked_array([one.dictionary_encode() for one in arrays] if is_encoded else arrays)
    codes, distinct = encode(column)
    assert codes.dtype == np.int32 and codes.tolist() == [0, 1, 0, 2, 1, 3, 0, 4]
    assert distinct.to_pylist() == ["b", "a", "c", "d", "e"]


def test_text_is_encoded_with_one_dictionary_for_all_parts() -> None:
    """A log of a hundred million interactions has a thousand parts. One dictionary per part would not fit into
    memory."""
    column = pa.chunked_array(parts_of(VALUES, [3, 5]), pa.string())
    assert _share_dictionary(column.dictionary_encode().chunks)
    different = pa.chunked_array([pa.array(part).dictionary_encode() for part in parts_of(VALUES, [3, 5])])
    assert not _share_dictionary(different.chunks)
