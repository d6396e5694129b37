"""Stores the results of long computations in parts. After an interruption, only the missing parts are computed.

Each part is a Parquet file that is written atomically. The file also contains a fingerprint of everything that its
rows depend on. A part counts as missing, and is computed again, if it is damaged or has a different fingerprint
(because it was computed from other input rows, settings or model weights).

The parts of a [`PartStore`] are ranges of rows that are fixed beforehand. Its callers divide the work among processes.
In `trainer/blade/reference_lists.py` and `serving/user_lists.py`, each process computes different parts. In
`schedule/self_play.py`, all processes work together, on one part at a time. The parts of a [`RowStore`] are not fixed
beforehand: each contains the rows that one process has finished since it last wrote a part. So the batch size and the
number of processes may change after an interruption.
"""

from __future__ import annotations

import logging
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from trl_rec.files import atomic_file


OTHER = "%s was computed from other rows, settings or weights; it is computed again"
logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class PartStore:
    """Reads and writes the parts of one result, which is an array of integers with one row per input row.

    Args:
        folder (`Path` or `None`): Folder of the files. If it is `None`, nothing is stored, so every part is missing.
        num_rows (`int`): Total number of rows.
        part_size (`int`): Number of rows per part. The last part may have fewer.
        fingerprint (`Callable[[range], str]`): Returns a hash of everything that the rows of a part depend on.
    """

    folder: Path | None
    num_rows: int
    part_size: int
    fingerprint: Callable[[range], str]

    @property
    def parts(self) -> list[range]:
        """The range of row numbers of each part."""
        rows = range(self.num_rows)
        return [rows[start : start + self.part_size] for start in range(0, self.num_rows, self.part_size)]

    def missing(self) -> list[range]:
        """Returns the parts that still have to be computed."""
        return [part for part in self.parts if self.read(part) is None]

    def read(self, part: range) -> np.ndarray | None:
        """Returns the rows of a part, `(len(part), ...)`, or None if the part is missing.

        Warns if the file of the part is unusable.
        """
        path = self._path(part)
        if path is None or not path.is_file():
            return None
        columns = _read_part(path, self._stamp(part), ["rows"])
        if columns is not None and len(columns["rows"]) != len(part):
            logger.warning(OTHER, path)
            return None
        return None if columns is None else columns["rows"]

    def write(self, part: range, rows: np.ndarray) -> None:
        """Stores the rows of a part, `(len(part), ...)`, as 32-bit integers."""
        path = self._path(part)
        if path is not None:
            _write_part(path, self._stamp(part), {"rows": rows})

    def read_all(self) -> np.ndarray:
        """Returns the rows of all parts, `(num_rows, ...)`. Raises `ValueError` if a part is missing."""
        arrays: list[np.ndarray] = []
        for part in self.parts:
            rows = self.read(part)
            if rows is None:
                raise ValueError(f"{self._path(part)} is missing; all processes must share the same folder")
            arrays.append(rows)
        return np.concatenate(arrays)

    def _path(self, part: range) -> Path | None:
        if self.folder is None:
            return None
        return self.folder / f"part-{part.start // self.part_size:05d}.parquet"

    def _stamp(self, part: range) -> bytes:
        """Returns the fingerprint and the row numbers.

        The row numbers are needed because the same file name refers to different rows after `part_size` has changed.
        """
        return f"{self.fingerprint(part)} {part.start}:{part.stop}".encode()


@dataclass(frozen=True)
class RowStore:
    """Reads and writes the files of one computation, whose rows are finished in any order by any process.

    Args:
        folder (`Path`): Folder of the files.
        fingerprint (`str`): A hash of everything that the rows depend on.
    """

    folder: Path
    fingerprint: str

    def read(self) -> tuple[np.ndarray, np.ndarray] | None:
        """Returns the row numbers of the N finished rows, `(N,)`, and the rows, `(N, W)`, or None if there are none.

        Warns if a file is unusable.
        """
        paths = sorted(self.folder.glob("*.parquet"))
        parts = [_read_part(path, self._stamp, ["numbers", "rows"]) for path in paths]
        found = [part for part in parts if part is not None]
        if not found:
            return None
        numbers = np.concatenate([part["numbers"] for part in found])
        return numbers, np.concatenate([part["rows"] for part in found])

    def write(self, numbers: np.ndarray, rows: np.ndarray) -> None:
        """Stores finished rows, `(N, W)`, as 32-bit integers, with their row numbers, `(N,)`."""
        path = self.folder / f"{uuid.uuid4().hex}.parquet"  # no other process uses this name
        _write_part(path, self._stamp, {"numbers": numbers, "rows": rows})

    @property
    def _stamp(self) -> bytes:
        return self.fingerprint.encode()


def _read_part(path: Path, stamp: bytes, columns: Sequence[str]) -> dict[str, np.ndarray] | None:
    """Returns columns of a file. If the file cannot be read or has another stamp, warns and returns None."""
    # Parquet's page checksums detect a file that can still be read but was changed after it was written.
    try:
        table = pq.read_table(path, page_checksum_verification=True)
        arrays = {name: _to_array(table[name].combine_chunks()) for name in columns}
    except (OSError, KeyError, pa.ArrowException) as error:
        logger.warning("%s cannot be read (%s); it is computed again", path, error)
        return None
    if (table.schema.metadata or {}).get(b"fingerprint") != stamp:
        logger.warning(OTHER, path)
        return None
    return arrays


def _write_part(path: Path, stamp: bytes, columns: Mapping[str, np.ndarray]) -> None:
    """Writes columns to a file, atomically."""
    # The stamp is in the file's metadata, so that one rename publishes rows and stamp together.
    table = pa.table({name: to_column(rows) for name, rows in columns.items()})
    with atomic_file(path) as temporary:
        pq.write_table(table.replace_schema_metadata({b"fingerprint": stamp}), temporary, write_page_checksum=True)


def to_column(rows: np.ndarray) -> pa.Array:
    """Converts an array `(N, ...)` to a column of N nested fixed-size lists of 32-bit integers."""
    column = pa.array(rows.ravel(), pa.int32())
    for size in reversed(rows.shape[1:]):
        column = pa.FixedSizeListArray.from_arrays(column, size)
    return column


def _to_array(column: pa.Array) -> np.ndarray:
    """Converts a column back into an array. This is the inverse of [`to_column`]."""
    shape = [len(column)]
    while pa.types.is_fixed_size_list(column.type):
        shape.append(column.type.list_size)
        column = column.flatten()
    array: np.ndarray = column.to_numpy().reshape(shape)
    return array
