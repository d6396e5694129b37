"""Saves and loads a dataset folder: the catalogue, the users, the interactions, the three splits and the card.

The card, `card.json`, describes the dataset. It is written last, so a folder that contains a card is complete. Splits
are memory-mapped when loaded.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from datasets import Dataset, are_progress_bars_disabled, disable_progress_bars, enable_progress_bars

from trl_rec.data.leaks import check_leaks, find_mixed_users
from trl_rec.data.log import SPLITS
from trl_rec.data.splits import RULES
from trl_rec.files import write_json
from trl_rec.items import ItemCatalog
from trl_rec.ragged import Ragged


FILES = [
    "catalog/catalog.json",
    "catalog/items.parquet",
    "users.parquet",
    "interactions.parquet",
    *(f"{split}/{name}" for split in SPLITS for name in ("dataset_info.json", "state.json")),
]
# Interactions with items that the catalogue lacks. The file exists if the dataset was prepared with
# `unknown_items="keep"` from a source with an item table.
UNLISTED = "unlisted.parquet"
# Keys that `read_card` requires. The remaining keys of a card are informational.
CARD_KEYS = {"split", "fingerprint", "settings", "sources", "rows", "num_interactions"}
LONG = 10**6  # saving a split with more rows than this shows a progress bar
REMEDY = "run trl-rec prepare again with --overwrite"
T = TypeVar("T")


@dataclass(frozen=True, eq=False)
class RecDataset:
    """A dataset made by [`prepare`] and returned by [`load`].

    A row of a split has the columns `user, history, history_ratings, targets, target_ratings, timestamp`. Users and
    items are given as row numbers in `users` and `catalog.items`. If the source has no ratings, both rating columns
    contain empty lists. `timestamp` is the time of the first target, or of the last history item if the row has no
    targets.

    Args:
        path (`Path`): The dataset folder.
        catalog (`ItemCatalog`): The items.
        users (`pa.Table`): One row per user. The first column is `user_id`.
        train (`Dataset`): Training rows.
        validation (`Dataset`): Validation rows.
        test (`Dataset`): Test rows. Their histories include the validation targets, unless the source consists of
            windows (each a history and one target), which are used unchanged.
        card (`dict`): Counts, rules, sources and settings; see `trl_rec.data.card.make_card` for its fields.
    """

    path: Path
    catalog: ItemCatalog
    users: pa.Table
    train: Dataset
    validation: Dataset
    test: Dataset
    card: dict[str, Any]

    def __repr__(self) -> str:
        rows = ", ".join(f"{name} {len(getattr(self, name)):,}" for name in SPLITS)
        return (
            f"RecDataset({str(self.path)!r}: {self.users.num_rows:,} users, {len(self.catalog):,} items, "
            f"{self.card['num_interactions']:,} interactions; rows: {rows})"
        )

    @cached_property
    def interactions(self) -> pa.Table:
        """Table of all interactions, sorted by user and time. It is read from disk on first use.

        The columns are `user`, `item`, `timestamp`, and `rating` if the source has ratings.
        """
        return _read(self.path, "interactions.parquet", pq.read_table)

    @cached_property
    def unlisted(self) -> pa.Table | None:
        """Table of the interactions with items that the catalogue lacks, sorted by user and time.

        The columns are `user`, `item_id`, `timestamp` and `place`. `place` is the number of rows of `interactions`
        that precede the interaction. No split contains these interactions. If the dataset was prepared without
        `unknown_items="keep"`, or from a source without an item table, `unlisted` is None.
        """
        return _read(self.path, UNLISTED, _read_unlisted) if (self.path / UNLISTED).is_file() else None

    def history_of(self, user_id: str) -> list[str]:
        """Returns the ids of all items that a user chose, oldest first, including validation and test items.

        With `unknown_items="keep"`, they include ids that the catalogue lacks.
        """
        user = self.user_index(user_id)
        start, stop = np.searchsorted(self.interactions["user"].to_numpy(), [user, user + 1])
        item_ids = [self.catalog.ids[item] for item in self.interactions["item"][start:stop].to_pylist()]
        if self.unlisted is None:
            return item_ids
        more = self.unlisted.filter(pc.equal(self.unlisted["user"], user))
        places = more["place"].to_numpy() - start
        history: list[str] = np.insert(np.array(item_ids, object), places, more["item_id"].to_pylist()).tolist()
        return history

    def user_index(self, user_id: str) -> int:
        """Returns the row number of a user in `users`."""
        index = int(pc.index(self.users["user_id"], user_id).as_py())
        if index < 0:
            raise ValueError(f"user {user_id!r} is not in {self.path}; users.parquet lists the users")
        return index

    def with_surface(self, surface: str) -> RecDataset:
        """Returns the same dataset with another surface for its items."""
        return replace(self, catalog=self.catalog.with_surface(surface))


def load(path: str | Path) -> RecDataset:
    """Loads a dataset folder written by [`prepare`].

    Raises ValueError if files are missing or do not match each other, or if validation or test items leak into
    training rows.
    """
    # 1. Check that the card and all files exist.
    path = Path(path).absolute()
    card = read_card(path)
    if card["split"] not in list(RULES):
        raise ValueError(f"{path} is damaged (card.json contains an unknown split rule); {REMEDY}")
    missing = next((name for name in FILES if not (path / name).is_file()), None)
    if missing is not None:
        raise ValueError(f"{path} is damaged ({missing} is missing); {REMEDY}")

    # 2. Load the catalogue and the users, and compare them with the card.
    catalog = ItemCatalog.load(path / "catalog")
    users = _read(path, "users.parquet", pq.read_table)
    if catalog.fingerprint != card["fingerprint"]:
        raise ValueError(f"{path}: the catalogue is not the one that card.json describes; {REMEDY}")
    if catalog.user_ids is not None and len(catalog.user_ids) != users.num_rows:
        raise ValueError(
            f"{path} has {users.num_rows} users, but semantic IDs for {len(catalog.user_ids)} users; run trl-rec "
            "tokenize again"
        )

    # 3. Load the splits. Check their numbers of rows and their indices, and that no items leak between them.
    splits = {name: _read(path, name, _load_split) for name in SPLITS}
    num_rows = {name: len(rows) for name, rows in splits.items()}
    num_interactions = _read(path, "interactions.parquet", pq.read_metadata).num_rows
    if (num_rows, num_interactions) != (card["rows"], card["num_interactions"]):
        raise ValueError(f"{path} is damaged (the numbers of rows differ from those in card.json); {REMEDY}")
    for rows in splits.values():
        _check_indices(rows, len(catalog), users.num_rows, path)
    check_leaks(**splits, split=card["split"])
    return RecDataset(path=path, catalog=catalog, users=users, **splits, card=card)


def split_rows(split: Dataset, column: str) -> Ragged:
    """Returns a list column of a split. Respects the row order set by `select`, `shuffle` or `sort`."""
    # Only this column is read. Indexing in the Arrow format applies the indices mapping that `select` creates.
    return Ragged.from_arrow(split.select_columns([column]).with_format("arrow")[:][column])


def split_users(split: Dataset) -> np.ndarray:
    """Returns the user of each row of a split. Respects the row order set by `select`, `shuffle` or `sort`."""
    # Use the Arrow format, because the numpy format loops over the rows in Python.
    users: np.ndarray = split.select_columns(["user"]).with_format("arrow")[:]["user"].to_numpy().astype(np.int64)
    return users


def at_most(count: int | None, split: Dataset) -> Dataset:
    """Returns `count` evenly spaced rows of a split, or the whole split if `count` is None or exceeds its length."""
    if count is None or count >= len(split):
        return split
    return split.select(spread(count, len(split)))


def spread(count: int | None, num_rows: int) -> np.ndarray:
    """Returns the indices of the rows that [`at_most`] selects from `num_rows` rows, in ascending order."""
    if count is None or count >= num_rows:
        return np.arange(num_rows)
    return np.linspace(0, num_rows - 1, count).round().astype(int)


def check_is_train(split: Dataset, what: str) -> None:
    """Raises ValueError if the rows do not come from a training split.

    Rows joined by `concatenate_datasets` have no split name, so the rows of each user are compared with each other.
    Under leave-one-out, leave-last-m and a split by time, a row comes from a later split if its history begins with
    the history and targets of another row of the same user.

    If there is no split name, rows of another split are not detected in two cases:

    - The rows come from a single evaluation split, so that no user has a second row to compare with.
    - Every row has one target (windows, or the validation and test splits of leave-one-out). Such rows are not
      compared, because the history of a window may begin with all items of another window of the same split.

    Args:
        split: The rows.
        what: What is made from the rows, in the plural, such as `"models"`, for the error message.
    """
    if split.split is not None and split.split != "train":
        raise ValueError(f"{what} must use only the training split, not the {split.split} split; pass dataset.train")

    # Joined datasets have no split name, so only their rows show which splits they come from.
    if split.split is None:
        mixed = find_mixed_users(split_users(split), split_rows(split, "history"), split_rows(split, "targets"))
        if len(mixed):
            raise ValueError(
                f"{what} must use only the training split, but these rows come from several splits (one row of user "
                f"{mixed[0]} continues another row of this user); pass dataset.train"
            )


def read_card(path: Path) -> dict[str, Any]:
    """Returns the card of a dataset folder. Raises ValueError if the folder has no valid card."""
    if not (path / "card.json").is_file():
        raise ValueError(f"{path} is incomplete or not a dataset folder (card.json is missing); run trl-rec prepare")
    try:
        card = json.loads((path / "card.json").read_text(encoding="utf-8"))
    except (ValueError, RecursionError):
        card = None
    if not isinstance(card, dict):
        raise ValueError(
            f"{path} is damaged (card.json is not a JSON object); if the folder is a dataset, delete the folder and "
            "run trl-rec prepare again"
        )
    if not CARD_KEYS <= card.keys():
        raise ValueError(f"{path}: card.json is not the card of a dataset; run trl-rec prepare into another folder")
    return card


def save(
    path: Path,
    catalog: ItemCatalog,
    users: pa.Table,
    interactions: pa.Table,
    splits: dict[str, Dataset],
    card: dict[str, Any],
    unlisted: pa.Table | None = None,
) -> None:
    """Writes all files of a dataset folder, the card last."""
    catalog.save(path / "catalog")
    pq.write_table(users, path / "users.parquet")
    pq.write_table(interactions, path / "interactions.parquet")
    if unlisted is not None:
        pq.write_table(unlisted, path / UNLISTED)
    for name, rows in splits.items():
        with nullcontext() if rows.num_rows > LONG else _no_bars():
            rows.save_to_disk(str(path / name))
    write_json(path / "card.json", card, ensure_ascii=False)


@contextmanager
def _no_bars() -> Iterator[None]:
    """Hides the progress bars of `datasets`."""
    if are_progress_bars_disabled():
        yield
        return
    disable_progress_bars()
    try:
        yield
    finally:
        enable_progress_bars()


def _read(path: Path, name: str, read: Callable[[Path], T]) -> T:
    """Reads one file or split of the dataset folder. If this fails, the error names that file or split."""
    try:
        return read(path / name)
    except (OSError, ValueError, TypeError, KeyError, AttributeError, pa.ArrowException) as error:
        raise ValueError(f"{path} is damaged ({name} cannot be read: {error!r}); {REMEDY}") from error


def _read_unlisted(path: Path) -> pa.Table:
    return pq.read_table(path).select(["user", "item_id", "timestamp", "place"])


def _load_split(path: Path) -> Dataset:
    return Dataset.load_from_disk(str(path))


def _check_indices(rows: Dataset, num_items: int, num_users: int, path: Path) -> None:
    """Raises ValueError if a user or item index of a split is out of range."""
    for name, size in (("user", num_users), ("history", num_items), ("targets", num_items)):
        column = rows.data.column(name)
        bounds = pc.min_max(column if name == "user" else pc.list_flatten(column))
        low = bounds["min"].as_py()
        high = bounds["max"].as_py()
        if low is not None and (low < 0 or high >= size):  # low is None if the column has no values
            raise ValueError(
                f"{path}: the column {name} of the {rows.split} split contains indices from {low} to {high}, but "
                f"only 0 to {size - 1} exist; {REMEDY}"
            )
