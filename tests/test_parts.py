"""Tests `PartStore`, which saves the rows of a long computation in parts. Saved parts are read back unchanged. A part
counts as missing if it is damaged, or if it was computed from other rows or settings."""

from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as st_numpy

from trl_rec import parts
from trl_rec.parts import PartStore, to_column


ROWS = np.arange(13 * 2 * 3).reshape(13, 2, 3)


def make_store(folder: Path | None, num_rows: int = 13, part_size: int = 5, fingerprint: str = "a") -> PartStore:
    return PartStore(folder, num_rows, part_size, lambda part: fingerprint)


@pytest.fixture
def store(tmp_path: Path) -> PartStore:
    """A store that contains all of its parts."""
    store = make_store(tmp_path)
    for part in store.parts:
        store.write(part, ROWS[part.start : part.stop])
    return store


def test_parts_cover_the_rows_in_order() -> None:
    assert make_store(None).parts == [range(5), range(5, 10), range(10, 13)]
    assert make_store(None, num_rows=10).parts == [range(5), range(5, 10)]
    assert make_store(None, num_rows=0).parts == []


def test_the_parts_that_were_written_are_read_back(store: PartStore, tmp_path: Path) -> None:
    assert sorted(path.name for path in tmp_path.iterdir()) == [f"part-0000{number}.parquet" for number in range(3)]
    again = make_store(tmp_path)
    assert again.missing() == []
    assert np.array_equal(again.read_all(), ROWS) and np.array_equal(again.read(range(5, 10)), ROWS[5:10])


@given(st_numpy.arrays(np.int32, st_numpy.array_shapes(min_dims=1, max_dims=4), elements=st.integers(-1, 2**31 - 1)))
def test_arrays_of_any_shape_are_restored_from_columns(rows: np.ndarray) -> None:
    column = to_column(rows)
    assert column.to_pylist() == rows.tolist() and np.array_equal(parts._to_array(column), rows)


def test_without_a_folder_every_part_is_missing() -> None:
    store = make_store(None)
    store.write(range(5), ROWS[:5])
    assert store.missing() == store.parts


def test_a_call_that_was_killed_resumes_with_the_missing_parts(tmp_path: Path) -> None:
    store = make_store(tmp_path)
    store.write(range(5, 10), ROWS[5:10])
    assert store.missing() == [range(5), range(10, 13)]
    with pytest.raises(ValueError, match="part-00000.parquet is missing; all processes must share the same folder"):
        store.read_all()


def test_a_failure_while_a_part_is_written_leaves_it_missing(tmp_path: Path, monkeypatch) -> None:
    def fail(table, path, **options) -> None:
        path.write_bytes(b"PAR1 and no more")
        raise KeyboardInterrupt

    monkeypatch.setattr(pq, "write_table", fail)
    with pytest.raises(KeyboardInterrupt):
        make_store(tmp_path).write(range(5), ROWS[:5])
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "change",
    [{"fingerprint": "b"}, {"part_size": 4}, {"part_size": 12}, {"num_rows": 3}, {"part_size": 3, "num_rows": 6}],
)
def test_parts_of_other_rows_or_settings_are_missing(store: PartStore, tmp_path: Path, change: dict, caplog) -> None:
    other = make_store(tmp_path, **change)
    assert other.missing() == other.parts
    assert "part-00000.parquet was computed from other rows, settings or weights; it is computed again" in caplog.text


def test_equal_parts_are_found_with_another_number_of_rows(store: PartStore, tmp_path: Path) -> None:
    assert make_store(tmp_path, num_rows=10).missing() == []
    assert make_store(tmp_path, num_rows=20).missing() == [range(10, 15), range(15, 20)]


@pytest.mark.parametrize("damage", ["cut", "one bit", "another part", "a text"])
def test_a_damaged_part_is_missing(store: PartStore, tmp_path: Path, damage: str, caplog) -> None:
    path = tmp_path / "part-00001.parquet"
    content = bytearray(path.read_bytes())
    if damage == "cut":
        content = content[:-20]
    elif damage == "one bit":
        content[len(content) // 4] ^= 1
    elif damage == "another part":
        content = bytearray((tmp_path / "part-00000.parquet").read_bytes())
    else:
        content = bytearray(b"not Parquet")
    path.write_bytes(content)
    assert store.missing() == [range(5, 10)]
    assert "part-00001.parquet" in caplog.text and "computed again" in caplog.text
