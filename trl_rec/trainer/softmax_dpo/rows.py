"""Reads preferences of any kind, and tokenizes preferences among items.

A row of preferences among items has a history, a chosen item and rejected items. The model sees only the surfaces of
items. Therefore a rejected item is dropped if it has the same surface as the chosen item or an earlier rejected item
of the row. If a prompt is too long, its oldest items are dropped. Completions are never truncated. The module `texts`
tokenizes preferences given as texts.
"""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from datasets import Dataset, load_dataset
from datasets.exceptions import DatasetsError

from trl_rec.data.dataset import check_is_train, split_users
from trl_rec.data.prompts import PromptFormat
from trl_rec.items.catalog import ItemCatalog
from trl_rec.ragged import Ragged


FILES = {".jsonl": "json", ".json": "json", ".parquet": "parquet", ".csv": "csv"}
TABLE = {"history", "chosen", "rejected"}
LISTS = (pa.types.is_list, pa.types.is_large_list, pa.types.is_fixed_size_list)
logger = logging.getLogger(__name__)


def read_preferences(source: str, catalog: ItemCatalog | None = None) -> Dataset:
    """Reads preferences from a JSONL, JSON, Parquet or CSV file, or from the training split of a dataset on the Hub.

    The rows are treated as training rows. A file does not show whether its chosen items are training targets or
    held-out targets, so the caller has to check this. `trl_rec.schedule.check_preference_leaks` compares a preference
    table with the training split. That function needs the column `user`, which gives the user of each row as a row
    number of `RecDataset.users`.

    Args:
        source: Path of the file or of a folder of data files, or id of the dataset on the Hub. CSV cannot hold lists.
            A CSV file can therefore contain preferences between texts, with one rejected completion per row, but not a
            table of items.
        catalog (*optional*): The catalogue. If it is given and there is a column `history`, the rows are a table of
            items, and the item ids in `history`, `chosen` and `rejected` are converted to indices. Otherwise, the rows
            are returned as they were read.
    """
    kind = FILES.get(Path(source).suffix.lower())
    rows = _load_from_hub(source) if kind is None else _read_file(source, kind)
    if catalog is None or "history" not in rows.column_names:
        return rows
    if kind == "csv":
        raise ValueError(
            f"{source} has the column 'history', but a CSV file cannot contain lists of items; give a JSONL or "
            "Parquet file"
        )
    if not set(rows.column_names) >= TABLE:
        raise ValueError(
            f"{source} has the columns {', '.join(rows.column_names)}; a table of items needs history, chosen and "
            "rejected"
        )
    table = rows.with_format("arrow")[:]
    try:
        columns = {name: _indices(table[name], name, catalog) for name in ("history", "chosen", "rejected")}
        if "user" in table.column_names:
            columns["user"] = _users(table["user"])
    except ValueError as error:
        raise ValueError(f"{source}: {error}") from error
    return Dataset(pa.table(columns), split="train")


def _load_from_hub(source: str) -> Dataset:
    """Loads the training split of a dataset on the hub, or of a folder of data files."""
    if not source or Path(source).is_file():
        raise ValueError(f"{source!r} does not end in {', '.join(FILES)}; give such a file, or a dataset on the hub")
    try:
        return load_dataset(source, split="train")
    except (DatasetsError, OSError, ValueError) as error:  # unknown name or split, or no connection
        reason = str(error).split("\n", 1)[0]
        raise ValueError(
            f"there is no file {source}, and the training split of a dataset of that name cannot be loaded from the "
            f"hub ({reason}); correct the name"
        ) from error


def _read_file(source: str, kind: str) -> Dataset:
    if not Path(source).is_file():
        raise ValueError(f"there is no file {source}; give a file of preferences, or a dataset on the hub")
    try:
        return load_dataset(kind, data_files=source, split="train")
    # A file without rows raises StopIteration or ValueError. JSON values that are not objects raise TypeError in
    # datasets < 5.2.
    except (DatasetsError, StopIteration, TypeError, ValueError) as error:
        reason = str(error.__cause__ or error).strip() or "it is empty"
        raise ValueError(f"{source} cannot be read as {kind} preferences ({reason}); correct the file") from error


def _indices(ids: pa.ChunkedArray, name: str, catalog: ItemCatalog) -> pa.Array:
    """Converts item ids, or lists of item ids, to indices."""
    rows = _rows_of(ids, name, "item ids")
    written = pa.array(rows.values)
    if pa.types.is_nested(written.type) or pa.types.is_binary(written.type):
        raise ValueError(f"the column {name} has the type {ids.type}; give item ids as strings or whole numbers")

    written = written.cast(pa.string())
    unknown = pc.invert(pc.is_in(written, catalog.items["item_id"].combine_chunks()))
    place = pc.index(unknown, True).as_py()
    if place >= 0:
        raise ValueError(
            f"row {rows.row_ids[place]}: {name} contains the item {written[place].as_py()!r}, which is not in the "
            f"catalogue of {len(catalog)} items; correct the id, or leave the row out"
        )
    indices = catalog.index_of(written)
    return pa.array(indices, pa.int32()) if name == "chosen" else Ragged(indices, rows.offsets).to_arrow()


def _users(users: pa.ChunkedArray) -> pa.ChunkedArray:
    """Returns the column `user` as integers."""
    wanted = "give the row number of each user in RecDataset.users"
    if users.null_count:
        raise ValueError(f"row {pc.index(users.is_null(), True)}: user is null; {wanted}")
    try:
        return users.cast(pa.int64())
    except pa.ArrowException as error:
        raise ValueError(f"the column user has the type {users.type}; {wanted}") from error


def _rows_of(column: pa.ChunkedArray, name: str, values: str) -> Ragged:
    """Returns the lists of a column. For `chosen`, each list contains the single value of a row.

    `values` describes the values in error messages, for example "item ids".
    """
    is_list = any(is_one(column.type) for is_one in LISTS)
    if name == "chosen":
        if is_list or pa.types.is_struct(column.type):
            raise ValueError(f"the column chosen has the type {column.type}; give one item per row")
        return Ragged.from_lengths(column.to_numpy(), np.ones(len(column), np.int64))

    if column.null_count:
        row = pc.index(column.is_null(), True)
        raise ValueError(f"row {row}: {name} is null; give a list of {values}, which may be empty")
    if not is_list:
        raise ValueError(f"the column {name} has the type {column.type}; give a list of {values} per row")
    if pa.types.is_fixed_size_list(column.type):
        column = column.cast(pa.list_(column.type.value_type))
    return Ragged.from_arrow(column)


def preference_rows(
    table: Dataset, prompt_format: PromptFormat, *, max_length: int | None = None, training: bool = True
) -> Dataset:
    """Converts a preference table to token rows.

    A rejected item is dropped if it has the same surface as the chosen item or an earlier rejected item of the row.
    The number of dropped items is logged. Raises ValueError if a row rejects its chosen item.

    Args:
        table: The preference table. Its columns `history` and `rejected` contain lists of item indices, and `chosen`
            contains one index per row. If prompts name users, the column `user` gives the user of each row as a row
            number of `RecDataset.users`.
        prompt_format: How histories and items are written.
        max_length (*optional*): Maximum number of tokens of a prompt and the longest item of the catalogue together.
            If there are more tokens, the oldest items of the history are dropped.
        training (*optional*, defaults to `True`): Whether the rows are for training. If so, a table whose `split` is
            not `"train"` raises a ValueError. A table whose `split` is None is accepted.

    Returns:
        `datasets.Dataset` with `prompt_ids`, `chosen_ids` and `rejected_ids` (a list of lists).
    """
    if training and table.split is not None:
        check_is_train(table, "preferences")

    # 1. Read and check the item indices.
    num_items = len(prompt_format.paths)
    history = _items(table, "history", num_items)
    chosen = _items(table, "chosen", num_items).values  # (num_rows,)
    rejected = _items(table, "rejected", num_items)
    clash = rejected.row_ids[rejected.values == chosen[rejected.row_ids]]
    if len(clash):
        raise ValueError(
            f"row {clash[0]}: item {chosen[clash[0]]} is both chosen and rejected; remove it from one of the two"
        )

    # 2. Tokenize the prompts and completions.
    rejected = _distinct(chosen, rejected, prompt_format.paths)
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
    """Returns a column of item indices. Rows of `chosen` have one item each.

    Raises ValueError if a value is not an index of the catalogue.
    """
    if name not in table.column_names:
        raise ValueError(f"the preferences have no column {name}; a table of items needs history, chosen and rejected")
    rows = _rows_of(table.select_columns([name]).with_format("arrow")[:][name], name, "item indices")

    # Compare as floats: nulls become NaN, and a column whose rows are all empty may have a type that is not numeric.
    try:
        found = rows.values.astype(np.float64)
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"the column {name} contains items that are not numbers; give the indices of items"
        ) from error
    outside = np.flatnonzero(~((found >= 0) & (found < num_items) & (found == np.trunc(found))))
    if len(outside):
        item = "null" if np.isnan(found[outside[0]]) else rows.values[outside[0]]
        raise ValueError(
            f"row {rows.row_ids[outside[0]]}: {name} contains the item {item}, but item indices are 0 to "
            f"{num_items - 1}; correct the index"
        )
    return Ragged(rows.values.astype(np.int64), rows.offsets)


def _distinct(chosen: np.ndarray, rejected: Ragged, paths: Ragged) -> Ragged:
    """Drops rejected items with the same path as the chosen item or an earlier rejected item of the row."""
    codes = _path_codes(paths)  # (num_items,)
    row_ids = rejected.row_ids
    written = codes[rejected.values]

    # If several rejected items of a row have the same path, keep only the first. Drop all rejected items with the path
    # of the chosen item.
    is_first = np.zeros(len(row_ids), bool)
    is_first[np.unique(row_ids * len(paths) + written, return_index=True)[1]] = True
    kept = is_first & (written != codes[chosen][row_ids])
    if kept.all():
        return rejected
    logger.warning(
        "dropped %d of %d rejected items, because they have the same text as the chosen item or an earlier rejected "
        "item of their row",
        (~kept).sum(),
        len(kept),
    )
    return Ragged.from_lengths(rejected.values[kept], np.bincount(row_ids[kept], minlength=len(rejected)))


def _path_codes(paths: Ragged) -> np.ndarray:
    """Returns an integer code for the path of each item, `(num_items,)`.

    Two codes are equal if and only if the paths are equal. The codes are 0 to the number of distinct paths minus 1.
    """
    codes = np.zeros(len(paths), np.int64)
    tokens = paths.padded() + 1  # padding becomes 0
    for level in tokens.T:  # renumber at each level, so that the products do not overflow
        codes = np.unique(codes * (tokens.max() + 1) + level, return_inverse=True)[1]
    return codes
