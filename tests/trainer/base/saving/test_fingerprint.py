"""Tests the fingerprint of a run, which must match that of a checkpoint when the run is resumed. The fingerprint
identifies training rows by their content. The lists `DECIDING` and `may_change` determine which settings it
contains."""

from __future__ import annotations

import hashlib
from dataclasses import fields
from typing import Any

import pyarrow as pa
import pytest
from datasets import Dataset
from hypothesis import given
from hypothesis import strategies as st
from trl import DPOConfig, SFTConfig

from trl_rec import AlroConfig, BearConfig, BladeConfig, SoftmaxDPOConfig
from trl_rec.trainer.base.saving.fingerprint import DECIDING, difference, row_entries, update_by_content


NUMBERS = st.one_of(st.none(), st.lists(st.one_of(st.none(), st.integers(-5, 5)), max_size=4))
LISTS = st.lists(NUMBERS, max_size=6)


def digest(array: pa.Array) -> str:
    found = hashlib.blake2b(digest_size=16)
    update_by_content(found, array)
    return found.hexdigest()


@given(LISTS, LISTS, LISTS)
def test_arrays_are_equal_by_content_alone(before: list, values: list, after: list) -> None:
    """It does not matter whether an array is a slice of a longer one, or whether its offsets have 32 or 64 bits."""
    plain = pa.array(values, pa.list_(pa.int64()))
    whole = pa.array([*before, *values, *after], pa.list_(pa.int64()))
    assert digest(whole.slice(len(before), len(values))) == digest(plain)
    assert digest(pa.array(values, pa.large_list(pa.int64()))) == digest(plain)


@given(LISTS, LISTS)
def test_arrays_with_other_content_differ(values: list, others: list) -> None:
    kind = pa.list_(pa.int64())
    assert (digest(pa.array(values, kind)) == digest(pa.array(others, kind))) == (values == others)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (pa.array(["ab", "c"]), pa.array(["a", "bc"])),
        (pa.array(["", None]), pa.array([None, ""])),
        (pa.array([1, 2]), pa.array([1.0, 2.0])),
        (pa.array([True, False]), pa.array([False, True])),
        (pa.array([{"a": 1}]), pa.array([{"b": 1}])),
        (pa.array([b"a"]), pa.array([b"b"])),
        (pa.array([[[1], [2]]]), pa.array([[[1, 2]]])),
    ],
)
def test_other_values_differ(one: pa.Array, other: pa.Array) -> None:
    assert digest(one) != digest(other)
    assert digest(one) == digest(one.take(pa.array(range(len(one)))))


def test_texts_are_equal_in_any_encoding_of_arrow() -> None:
    plain = pa.array(["a", "b", None, "a"])
    assert digest(plain) == digest(plain.cast(pa.large_string())) == digest(plain.dictionary_encode())


def test_rows_of_several_chunks_and_selected_rows_are_equal() -> None:
    values = [[row, row + 1] for row in range(25_000)]
    rows = Dataset.from_dict({"ids": values, "other": list(range(25_000))})
    halves = Dataset(pa.concat_tables([rows.data.table.slice(0, 7), rows.data.table.slice(7)]))
    turned = Dataset.from_dict({"ids": values[::-1]}).select(range(24_999, -1, -1))
    expected = row_entries(rows, ["ids"])
    assert row_entries(halves, {"ids", "absent"}) == expected == row_entries(turned, ["ids"])
    assert row_entries(rows.select(range(10)), ["ids"]) != expected
    assert expected["number of training rows"] == 25_000


def test_rows_without_the_given_columns_contribute_only_their_number() -> None:
    assert row_entries(Dataset.from_dict({"a": [1]}), ["b"]) == {"number of training rows": 1}


def test_an_entry_that_only_one_side_has_is_not_compared() -> None:
    assert difference({"old": 1, "same": 2}, {"new": 3, "same": 2}) is None
    assert difference({"same": 2}, {"same": 3}) == "same (2 there, 3 now)"
    assert difference({"rows": "blake2b:a"}, {"rows": "blake2b:b"}) == "rows"


def test_the_lists_name_existing_fields() -> None:
    inherited = {one.name for base in (SFTConfig, DPOConfig) for one in fields(base)}
    assert set(DECIDING) <= inherited and len(set(DECIDING)) == len(DECIDING)
    kinds: list[Any] = [AlroConfig, BearConfig, BladeConfig, SoftmaxDPOConfig]
    for kind in kinds:
        assert set(kind.may_change) <= {one.name for one in fields(kind)}
