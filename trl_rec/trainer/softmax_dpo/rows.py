"""Preferences among items: a history, one chosen and any number of rejected items a row, read and written as token
ids.

The model sees how items are written and nothing else, so of the rejected items of a row that are written alike one is
kept, and none that is written like the chosen one. A prompt that is too long loses its oldest items; a completion is
never cut. Preferences given as texts are tokenised in `preference_texts`.
"""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import pyarrow as pa
from datasets import Dataset, load_dataset
from datasets.exceptions import DatasetsError

from trl_rec.data.dataset import check_is_train, split_rows, split_users
from trl_rec.data.prompts import PromptFormat
from trl_rec.items.catalog import ItemCatalog
from trl_rec.ragged import Ragged


FILES = {".jsonl": "json", ".json": "json", ".parquet": "parquet", ".csv": "csv"}
TABLE = {"history", "chosen", "rejected"}
logger = logging.getLogger(__name__)


def read_preferences(source: str, catalog: ItemCatalog | None = None) -> Dataset:
    """Preferences from a JSONL, JSON, Parquet or CSV file, or the training split of a dataset on the hub.

    The rows count as training rows, as nothing in a file tells whether they hold items of the validation or test
    split: that check is the caller's. A table of items may have a column `user` (places in `RecDataset.users`), which
    is kept; `trl_rec.schedule.check_preference_leaks` then holds the table against the training split.

    Args:
        source: The file, or the hub id. A CSV file has no lists, so it can hold texts with one rejected, but no
            histories.
        catalog (*optional*): With it, and with a column `history`, the rows are a preference table whose items are
            given by their ids.
    """
    kind = FILES.get(Path(source).suffix)
    rows = load_dataset(source, split="train") if kind is None else _read_file(source, kind)
    if catalog is None or "history" not in rows.column_names:
        return rows
    if kind == "csv":
        raise ValueError(f"{source} has a column history, but CSV holds no lists of items; give JSONL or Parquet")
    if not set(rows.column_names) >= TABLE:
        raise ValueError(
            f"{source} has the columns {', '.join(rows.column_names)}; a table of items needs history, chosen and "
            "rejected"
        )
    table = rows.with_format("arrow")[:]
    columns = {name: _indices(table[name].combine_chunks(), catalog) for name in ("history", "chosen", "rejected")}
    if "user" in table.column_names:
        columns["user"] = table["user"]
    return Dataset(pa.table(columns), split="train")


def _read_file(source: str, kind: str) -> Dataset:
    if not Path(source).is_file():
        raise ValueError(f"there is no file {source}; name a file of preferences, or a dataset on the hub")
    try:
        return load_dataset(kind, data_files=source, split="train")
    except (DatasetsError, StopIteration, ValueError) as error:  # the last two of a file without a row
        reason = str(error.__cause__ or error).strip() or "it is empty"
        raise ValueError(
            f"{source} holds no preferences that can be read as {kind} ({reason}); correct the file"
        ) from error


def _indices(ids: pa.Array, catalog: ItemCatalog) -> pa.Array:
    """Indices in place of ids, in lists of them too."""
    if not pa.types.is_list(ids.type):
        return pa.array(catalog.index_of(ids.cast(pa.string())), pa.int32())
    rows = Ragged.from_arrow(ids)
    return Ragged(catalog.index_of(pa.array(rows.values).cast(pa.string())), rows.offsets).to_arrow()


def preference_rows(
    table: Dataset, prompt_format: PromptFormat, *, max_length: int | None = None, training: bool = True
) -> Dataset:
    """Token rows of a preference table. Rejected items that are written like the chosen one, or like an earlier one of
    the row, are left out, and their number is logged; the chosen item itself among the rejected is refused.

    Args:
        table: `history` and `rejected` are lists of item indices, `chosen` is one. Where prompts name users, it has a
            column `user`, places in `RecDataset.users`.
        prompt_format: How histories and items are written.
        max_length (*optional*): Most tokens of a prompt and its longest completion; the oldest history goes first.
        training (*optional*, defaults to `True`): Whether something learns from the rows; a table of a validation or
            test split is then refused.

    Returns:
        `datasets.Dataset` with `prompt_ids`, `chosen_ids` and `rejected_ids` (a list of lists).
    """
    if training and table.split is not None:
        check_is_train(table, "a preference")
    num_items = len(prompt_format.paths)
    history, chosen = _items(table, "history", num_items), _items(table, "chosen", num_items).values
    rejected = _items(table, "rejected", num_items)
    clash = rejected.row_ids[rejected.values == chosen[rejected.row_ids]]
    if len(clash):
        raise ValueError(
            f"row {clash[0]}: item {chosen[clash[0]]} is both chosen and rejected; take it out of one of the two"
        )
    rejected = _told_apart(chosen, rejected, prompt_format.paths)
    users = split_users(table) if "user" in table.column_names else None
    columns = {
        "prompt_ids": prompt_format.encode(history, users, max_length=max_length).to_arrow(),
        "chosen_ids": prompt_format.paths.take(chosen).to_arrow(),
        "rejected_ids": pa.ListArray.from_arrays(
            pa.array(rejected.offsets, pa.int32()), prompt_format.paths.take(rejected.values).to_arrow()
        ),
    }
    return Dataset(pa.table(columns), split=table.split)


def _items(table: Dataset, name: str, num_items: int) -> Ragged:
    """The column's rows, of one item each for `chosen`; what is no index of the catalogue is refused. A null is NaN
    here, and where all rows are empty, Arrow does not know that they would hold numbers."""
    if name == "chosen":
        values = table.select_columns([name]).with_format("arrow")[:][name].to_numpy()
        rows = Ragged.from_lengths(values, np.ones(len(values), np.int64))
    else:
        rows = split_rows(table, name)
    found = rows.values.astype(np.float64)
    outside = np.flatnonzero(~((found >= 0) & (found < num_items) & (found == np.floor(found))))
    if len(outside):
        item = "null" if np.isnan(found[outside[0]]) else rows.values[outside[0]]
        raise ValueError(
            f"row {rows.row_ids[outside[0]]}: {name} has the item {item}, but the catalogue's are 0 to "
            f"{num_items - 1}; give "
            "the indices of its items"
        )
    return Ragged(rows.values.astype(np.int64), rows.offsets)


def _told_apart(chosen: np.ndarray, rejected: Ragged, paths: Ragged) -> Ragged:
    """The rejected items without those whose path is the chosen's, or that of an earlier one of the row."""
    codes, rows = _path_codes(paths), rejected.row_ids
    written = codes[rejected.values]
    first = np.zeros(len(rows), bool)
    first[np.unique(rows * len(paths) + written, return_index=True)[1]] = True
    kept = first & (written != codes[chosen][rows])
    if kept.all():
        return rejected
    logger.warning(
        "left out %d of %d rejected items: they are written like the chosen one, or an earlier one of their row",
        (~kept).sum(),
        len(kept),
    )
    return Ragged.from_lengths(rejected.values[kept], np.bincount(rows[kept], minlength=len(rejected)))


def _path_codes(paths: Ragged) -> np.ndarray:
    """`(num_items,)`: the same number below `num_items` for items that are written the same."""
    codes, tokens = np.zeros(len(paths), np.int64), paths.padded() + 1
    for level in tokens.T:
        codes = np.unique(codes * (tokens.max() + 1) + level, return_inverse=True)[1]
    return codes
