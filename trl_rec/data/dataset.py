"""A prepared dataset, and its folder on disk: the catalogue, the users, the interactions, the three splits and the
card.

The card is written last, so that a folder with one is complete. Splits are memory-mapped when loaded.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from datasets import Dataset

from trl_rec.data.leaks import check_leaks, continued
from trl_rec.data.log import SPLITS
from trl_rec.files import write_json
from trl_rec.items import ItemCatalog
from trl_rec.ragged import Ragged


FILES = ["catalog/catalog.json", "catalog/items.parquet", "users.parquet", "interactions.parquet"]
FILES += [f"{split}/{name}" for split in SPLITS for name in ("dataset_info.json", "state.json")]
REMEDY = "run trl-rec prepare again with --overwrite"
T = TypeVar("T")


@dataclass(frozen=True, eq=False)
class RecDataset:
    """What `prepare` made and `load` loads.

    A row of a split is `user, history, history_ratings, targets, target_ratings, timestamp`. Items and users are
    numbers of rows in `catalog.items` and `users`; the ratings are empty lists where the source has none; `timestamp`
    is that of the first target, or of the last history item where there is no target.

    Args:
        path (`Path`): The dataset folder.
        catalog (`ItemCatalog`): The items.
        users (`pa.Table`): One row a user, `user_id` first.
        train (`Dataset`): Training rows.
        validation (`Dataset`): Validation rows.
        test (`Dataset`): Test rows; their history includes what validation asks for.
        card (`dict`): Counts, rules, sources and settings, as `trl_rec.data.card.make_card` lists them.
    """

    path: Path
    catalog: ItemCatalog
    users: pa.Table
    train: Dataset
    validation: Dataset
    test: Dataset
    card: dict[str, Any]

    @cached_property
    def interactions(self) -> pa.Table:
        """All interactions, `user, item, timestamp` and perhaps `rating`, by user and then time; read when first asked
        for."""
        return _read(self.path, "interactions.parquet", pq.read_table)

    def history_of(self, user_id: str) -> list[str]:
        """Ids of all items that a user chose, oldest first, validation and test included."""
        rows = self.interactions.filter(pc.equal(self.interactions["user"], self.number_of(user_id)))
        return [self.catalog.ids[item] for item in rows["item"].to_pylist()]

    def number_of(self, user_id: str) -> int:
        """The user's row in `users`."""
        number = pc.index(self.users["user_id"], user_id).as_py()
        if number < 0:
            raise ValueError(f"user {user_id!r} is not in {self.path}; look into users.parquet")
        return number

    def with_surface(self, surface: str) -> RecDataset:
        """The same data, its items written another way."""
        return replace(self, catalog=self.catalog.with_surface(surface))


def load(path: str | Path) -> RecDataset:
    """The dataset in a folder that `prepare` wrote; refuses one that is incomplete, changed or leaking."""
    path = Path(path).absolute()
    card = read_card(path)
    missing = next((name for name in FILES if not (path / name).is_file()), None)
    if missing is not None:
        raise ValueError(f"{path} is damaged ({missing} is missing); {REMEDY}")
    catalog, users = ItemCatalog.load(path / "catalog"), _read(path, "users.parquet", pq.read_table)
    if catalog.fingerprint != card["fingerprint"]:
        raise ValueError(f"{path}: the catalogue is not the one that the card tells of; {REMEDY}")
    if catalog.user_ids is not None and len(catalog.user_ids) != users.num_rows:
        raise ValueError(
            f"{path} holds semantic IDs of {len(catalog.user_ids)} users, but {users.num_rows} users; make the IDs again"
        )
    splits = {name: _read(path, name, _load_split) for name in SPLITS}
    found = (
        {name: len(rows) for name, rows in splits.items()},
        _read(path, "interactions.parquet", pq.read_metadata).num_rows,
    )
    if found != (card["rows"], card["num_interactions"]):
        raise ValueError(f"{path} is damaged (the card tells of other numbers of rows than there are); {REMEDY}")
    for rows in splits.values():
        _check_outside(rows, len(catalog), users.num_rows, path)
    check_leaks(**splits, split=card["split"])
    return RecDataset(path=path, catalog=catalog, users=users, **splits, card=card)


def split_rows(split: Dataset, column: str) -> Ragged:
    """A list column of a split, rows chosen or reordered by `select` and the like respected."""
    return Ragged.from_arrow(split.select_columns([column]).with_format("arrow")[:][column])


def split_users(split: Dataset) -> np.ndarray:
    """The users of a split's rows, rows chosen or reordered by `select` and the like respected."""
    return split.select_columns(["user"]).with_format("numpy")[:]["user"]


def at_most(count: int | None, split: Dataset) -> Dataset:
    """That many rows of a split, spread evenly."""
    if count is None or count >= len(split):
        return split
    return split.select(np.linspace(0, len(split) - 1, count).round().astype(int))


def check_is_train(split: Dataset, what: str) -> None:
    """Raises unless `what` ("a model") may learn from these rows: they are a training split's.

    Rows that have lost their split's name, as those that `concatenate_datasets` joins, are held against each other:
    under leave-one-out, leave-last-m and a split by time, a user's row that goes on where another ends comes from a
    later split. Nameless rows of one evaluation split alone are not noticed, nor are nameless rows that have one
    target each (windows; validation and test of leave-one-out), as windows go on from each other within the training
    split too.
    """
    if split.split is not None and split.split != "train":
        raise ValueError(
            f"training rows cannot come from the {split.split} split: {what} learns from the training split alone, and this "
            f"one is {str(split.split)!r}; pass dataset.train"
        )
    if split.split is None:
        mixed = continued(split_users(split), split_rows(split, "history"), split_rows(split, "targets"))
        if len(mixed):
            raise ValueError(
                f"training rows cannot come from several splits: a row of user {mixed[0]} goes on where another one ends, and "
                f"{what} learns from the training split alone; pass dataset.train"
            )


def read_card(path: Path) -> dict[str, Any]:
    """The card of a dataset folder; refuses a folder without one."""
    if not (path / "card.json").is_file():
        raise ValueError(f"{path} is incomplete or not a dataset folder (card.json is missing); run trl-rec prepare")
    try:
        card = json.loads((path / "card.json").read_text(encoding="utf-8"))
    except ValueError:
        card = None
    if not isinstance(card, dict):
        raise ValueError(
            f"{path} is damaged (card.json is not a JSON object); if it is a dataset, delete it and run trl-rec prepare again"
        )
    if not {"split", "fingerprint", "settings", "sources", "rows", "num_interactions"} <= card.keys():
        raise ValueError(f"{path}: card.json is not the card of a dataset; run trl-rec prepare into another folder")
    return card


def save(
    path: Path,
    catalog: ItemCatalog,
    users: pa.Table,
    interactions: pa.Table,
    splits: dict[str, Dataset],
    card: dict[str, Any],
) -> None:
    """Writes the folder's files, the card last."""
    catalog.save(path / "catalog")
    pq.write_table(users, path / "users.parquet")
    pq.write_table(interactions, path / "interactions.parquet")
    for name, rows in splits.items():
        rows.save_to_disk(str(path / name))
    write_json(path / "card.json", card, ensure_ascii=False)


def _read(path: Path, name: str, read: Callable[[Path], T]) -> T:
    """What `read` makes of a part of the dataset folder."""
    try:
        return read(path / name)
    except (OSError, ValueError, TypeError, KeyError, AttributeError, pa.ArrowException) as error:
        raise ValueError(f"{path} is damaged ({name} cannot be read: {error!r}); {REMEDY}") from error


def _load_split(path: Path) -> Dataset:
    return Dataset.load_from_disk(str(path))


def _check_outside(rows: Dataset, num_items: int, num_users: int, path: Path) -> None:
    for name, size in (("user", num_users), ("history", num_items), ("targets", num_items)):
        column = rows.data.column(name)
        bounds = pc.min_max(column if name == "user" else pc.list_flatten(column))
        low, high = bounds["min"].as_py(), bounds["max"].as_py()
        if low is not None and (low < 0 or high >= size):
            raise ValueError(
                f"{path}: {name} of the {rows.split} split runs from {low} to {high}, but there are {size}; prepare it again"
            )
