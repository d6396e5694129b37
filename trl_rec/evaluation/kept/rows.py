"""Makes a table of the evaluated rows, without user ids, and computes a fingerprint of the rows."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from trl_rec.data.dataset import split_rows
from trl_rec.data.train_interactions import TrainInteractions
from trl_rec.evaluation.results import held_out
from trl_rec.ragged import Ragged


if TYPE_CHECKING:
    from trl_rec.data.dataset import RecDataset
    from trl_rec.items import ItemCatalog


def describe_rows(
    dataset: RecDataset, split: str, *, rows: np.ndarray | None = None, targets: Ragged | None = None
) -> tuple[pa.Table, str]:
    """Returns a table of rows of a split, and a fingerprint of these rows.

    Args:
        dataset: The dataset.
        split: `"validation"` or `"test"`.
        rows (*optional*): Numbers of the rows in ascending order. Defaults to all rows.
        targets (*optional*): The items to use as the targets of each of these rows, for example the candidates of a
            list to be ordered. Defaults to the targets of the split.

    Returns:
        The table, and a hash of the histories and targets of its rows. The columns are `row`, `target_count` (how
        often the rarest target of the row occurs in the training split), `history_length`, and `group` (the first
        group of the first target, or null if there are no groups).
    """
    held = held_out(dataset, split)
    numbers = np.arange(len(held)) if rows is None else np.asarray(rows, np.int64)
    histories = split_rows(held, "history").take(numbers)
    targets = split_rows(held, "targets").take(numbers) if targets is None else targets

    popularity = TrainInteractions.from_split(dataset.train, len(dataset.catalog)).popularity
    first = targets.values[targets.offsets[:-1]]
    table = pa.table(
        {
            "row": pa.array(numbers.astype(np.int32)),
            "target_count": np.minimum.reduceat(popularity[targets.values], targets.offsets[:-1]),
            "history_length": histories.lengths,
            "group": _first_groups(dataset.catalog).take(pa.array(first)),
        }
    )
    return table, _fingerprint(histories, targets)


def _first_groups(catalog: ItemCatalog) -> pa.Array:
    """Returns the first group of each item, or null if the item has no group."""
    if catalog.group_column is None:
        return pa.nulls(len(catalog), pa.string())
    column = catalog.items[catalog.group_column].combine_chunks()
    if pa.types.is_list(column.type):
        members = Ragged.from_arrow(column.fill_null([]))
        has_any = members.lengths > 0
        names = np.full(len(members), None, object)
        names[has_any] = members.values[members.offsets[:-1][has_any]]
        return pa.array(names, pa.string())
    return pc.cast(column, pa.string())


def _fingerprint(*parts: Ragged) -> str:
    digest = hashlib.sha256()
    for part in parts:
        for array in (part.offsets, part.values):
            digest.update(f"|{len(array)}|".encode() + np.ascontiguousarray(array, np.int64).tobytes())
    return digest.hexdigest()[:16]
