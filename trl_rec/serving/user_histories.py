"""Reads the histories of the users who receive recommendations, from a dataset folder or from a log file.

Each item of a history takes 4 bytes of memory. The histories of a million users with 50 items each take 200 MB.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from trl_rec.data.columns import ids, numbers, plain
from trl_rec.data.readers.files import read_columns
from trl_rec.items import ItemCatalog
from trl_rec.ragged import Ragged


if TYPE_CHECKING:
    from trl_rec.data.dataset import RecDataset


@dataclass(frozen=True, eq=False)
class UserHistories:
    """Users and their histories.

    Args:
        user_ids (`pa.Array`): The id of each user, as text.
        histories (`Ragged`): Row `u` contains the item indices of user `u`, oldest first.
        num_unknown (`int`): Number of interactions that were dropped because the catalogue lacks their items.
        users (`np.ndarray` of shape `(num_users,)`, *optional*): The row of each user in `RecDataset.users`, if known.
    """

    user_ids: pa.Array
    histories: Ragged
    num_unknown: int = 0
    users: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.histories)

    @classmethod
    def of_dataset(
        cls, dataset: RecDataset, user_ids: Sequence[str] | None = None, catalog: ItemCatalog | None = None
    ) -> UserHistories:
        """Reads the complete histories of users, including their validation and test items.

        Args:
            dataset (`RecDataset`): The dataset.
            user_ids (list of `str`, *optional*): The users. Defaults to all users.
            catalog ([`ItemCatalog`], *optional*): The catalogue of the model. It must begin with the items of the
                dataset, in the same order. Defaults to the catalogue of the dataset. The log of the dataset may have
                interactions with items that the dataset's catalogue lacks ([`RecDataset.unlisted`]). If `catalog`
                contains such an item, the interaction is inserted into the history. Otherwise, it is dropped and
                counted.
        """
        # 1. Find the users.
        every = dataset.users["user_id"].combine_chunks()
        users = np.arange(len(every))
        if user_ids is not None:
            found = pc.index_in(pa.array(user_ids, pa.string()), every)
            if found.null_count:
                row = int(np.flatnonzero(found.is_null().to_numpy(zero_copy_only=False))[0])
                raise ValueError(f"user {user_ids[row]!r:.80} is not in {dataset.path}; users.parquet lists the users")
            users = found.to_numpy().astype(np.int64)

        # 2. Read the interactions in batches. The file is sorted by user and time.
        file = pq.ParquetFile(dataset.path / "interactions.parquet")
        items = np.empty(file.metadata.num_rows, np.int32)
        lengths = np.zeros(len(every), np.int64)
        start = 0
        for batch in file.iter_batches(columns=["user", "item"]):
            items[start : start + len(batch)] = batch["item"].to_numpy(zero_copy_only=False)
            lengths += np.bincount(batch["user"].to_numpy(zero_copy_only=False), minlength=len(every))
            start += len(batch)
        histories = Ragged.from_lengths(items, lengths)

        # 3. Insert the interactions with items that the model knows, but the dataset's catalogue lacks.
        unknown = np.zeros(len(every), np.int64)
        if dataset.unlisted is not None:
            histories, unknown = _with_unlisted(dataset, histories, catalog or dataset.catalog)
        if user_ids is None:
            return cls(every, histories, int(unknown.sum()), users=users)
        return cls(every.take(pa.array(users)), histories.take(users), int(unknown[users].sum()), users=users)

    @classmethod
    def from_file(cls, path: str | Path, catalog: ItemCatalog) -> UserHistories:
        """Reads the histories of a log: a CSV, TSV or Parquet file with the columns `user_id` and `item_id`.

        The interactions of a user must be sorted by time, unless there is a column `timestamp` of numbers or dates.
        Users keep the order in which they first occur.
        """
        # 1. Read the columns.
        path = Path(path)
        table = _read(path, ("user_id", "item_id"), ("timestamp",))
        users = ids(table["user_id"], "user_id", path.name)
        positions = pc.index_in(ids(table["item_id"], "item_id", path.name), pa.array(catalog.ids, pa.string()))

        # 2. Sort by user, and within a user by time.
        encoded = users.combine_chunks().dictionary_encode()
        user = encoded.indices.to_numpy()
        order = np.argsort(user, kind="stable")
        if "timestamp" in table.column_names:
            order = np.lexsort((_times(table["timestamp"], path.name), user))

        # 3. Drop items that the catalogue lacks.
        items = pc.fill_null(positions.combine_chunks(), -1).to_numpy().astype(np.int32)[order]
        known = items >= 0
        lengths = np.bincount(user[order][known], minlength=len(encoded.dictionary))
        return cls(encoded.dictionary, Ragged.from_lengths(items[known], lengths), int((~known).sum()))


def _with_unlisted(dataset: RecDataset, histories: Ragged, catalog: ItemCatalog) -> tuple[Ragged, np.ndarray]:
    """Inserts interactions of [`RecDataset.unlisted`] into the histories, by time, if `catalog` contains their items.

    Also returns the number of interactions per user that were not inserted, `(len(histories),)`.
    """
    assert dataset.unlisted is not None
    more = dataset.unlisted
    found = pc.index_in(more["item_id"].combine_chunks(), pa.array(catalog.ids, more["item_id"].type))
    item = pc.fill_null(found, -1).to_numpy(zero_copy_only=False).astype(np.int32)
    known = item >= 0

    user = more["user"].to_numpy()
    items = np.insert(histories.values, more["place"].to_numpy()[known], item[known])
    lengths = histories.lengths + np.bincount(user[known], minlength=len(histories))
    unknown = np.bincount(user[~known], minlength=len(histories))
    return Ragged.from_lengths(items, lengths), unknown


def read_user_ids(path: str | Path) -> list[str]:
    """Reads the column `user_id` of a CSV, TSV or Parquet file. Raises `ValueError` if an id is repeated."""
    path = Path(path)
    column = ids(_read(path, ("user_id",), ())["user_id"], "user_id", path.name)
    user_ids: list[str] = column.to_pylist()
    counts = Counter(user_ids)
    repeated = next((user_id for user_id, count in counts.items() if count > 1), None)
    if repeated is not None:
        raise ValueError(f"{path.name} contains the user {repeated!r:.80} more than once; remove the repeated rows")
    return user_ids


def _read(path: Path, needed: tuple[str, ...], optional: tuple[str, ...]) -> pa.Table:
    """Reads the needed columns of a file, and the optional ones that it has. CSV and TSV columns are read as text."""
    table = read_columns(path)
    for column in needed:
        if column not in table.column_names:
            raise ValueError(
                f"{path.name} has no column {column}, only {', '.join(table.column_names)}; add or rename the column"
            )
    return plain(table.select([column for column in (*needed, *optional) if column in table.column_names]), path.name)


def _times(column: pa.ChunkedArray, where: str) -> np.ndarray:
    """Returns times as numbers that can be compared."""
    values: np.ndarray
    if pa.types.is_temporal(column.type):
        values = column.cast(pa.int64()).to_numpy()
        return values
    if pa.types.is_string(column.type) or pa.types.is_large_string(column.type):
        try:
            values = column.cast(pa.timestamp("us")).cast(pa.int64()).to_numpy()
            return values
        except pa.ArrowInvalid:
            pass  # not dates, so the text must contain numbers
    values = numbers(column, "timestamp", where).to_numpy()
    return values
