"""A prepared dataset, and its folder on disk: the catalogue, the users, the interactions, the three splits and the card.

The card is written last, so that a folder with one is complete. Splits are memory-mapped when loaded.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from datasets import Dataset

from trl_rec.data.leaks import refuse_leaks
from trl_rec.items import ItemCatalog
from trl_rec.ragged import Ragged


@dataclass(frozen=True, eq=False)
class RecDataset:
    """What `prepare` made and `load` loads.

    A row of a split is `user, history, history_ratings, targets, target_ratings, timestamp`. Items and users are numbers of
    rows in `catalog.items` and `users`; the ratings are empty lists where the source has none; `timestamp` is that of the
    first target, or of the last history item where there is no target.

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
        """All interactions, `user, item, timestamp` and perhaps `rating`, by user and then time; read when first asked for."""
        return pq.read_table(self.path / "interactions.parquet")

    def history_of(self, user_id: str) -> list[str]:
        """Ids of all items that a user chose, oldest first, validation and test included."""
        number = pc.index(self.users["user_id"], user_id).as_py()
        if number < 0:
            raise ValueError(f"user {user_id!r} is not in {self.path}; look into users.parquet")
        rows = self.interactions.filter(pc.equal(self.interactions["user"], number))
        return [self.catalog.ids[item] for item in rows["item"].to_pylist()]

    def with_surface(self, surface: str) -> RecDataset:
        """The same data, its items written another way."""
        return replace(self, catalog=self.catalog.with_surface(surface))


def load(path: str | Path) -> RecDataset:
    """The dataset in a folder that `prepare` wrote; refuses one that is incomplete, changed or leaking."""
    path = Path(path)
    card = read_card(path)
    catalog, users = ItemCatalog.load(path / "catalog"), pq.read_table(path / "users.parquet")
    if catalog.fingerprint != card["fingerprint"]:
        raise ValueError(f"{path}: the catalogue is not the one that the card tells of; run trl-rec prepare again")
    splits = {name: Dataset.load_from_disk(str(path / name)) for name in ("train", "validation", "test")}
    for rows in splits.values():
        _refuse_outside(rows, len(catalog), users.num_rows, path)
    refuse_leaks(**splits, split=card["split"])
    return RecDataset(path=path, catalog=catalog, users=users, **splits, card=card)


def split_rows(split: Dataset, column: str) -> Ragged:
    """A list column of a split, rows chosen or reordered by `select` and the like respected."""
    return Ragged.from_arrow(split.select_columns([column]).with_format("arrow")[:][column])


def read_card(path: Path) -> dict[str, Any]:
    """The card of a dataset folder; refuses a folder without one."""
    if not (path / "card.json").is_file():
        raise ValueError(f"{path} is incomplete or not a dataset folder (card.json is missing); run trl-rec prepare")
    card = json.loads((path / "card.json").read_text(encoding="utf-8"))
    if not {"split", "fingerprint", "settings", "sources"} <= card.keys():
        raise ValueError(f"{path}: card.json is not the card of a dataset; run trl-rec prepare into another folder")
    return card


def save(
    path: Path, catalog: ItemCatalog, users: pa.Table, interactions: pa.Table, splits: dict[str, Dataset], card: dict[str, Any]
) -> None:
    """Writes the folder's files, the card last."""
    catalog.save(path / "catalog")
    pq.write_table(users, path / "users.parquet")
    pq.write_table(interactions, path / "interactions.parquet")
    for name, rows in splits.items():
        rows.save_to_disk(str(path / name))
    (path / "card.json").write_text(json.dumps(card, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _refuse_outside(rows: Dataset, num_items: int, num_users: int, path: Path) -> None:
    for name, size in (("user", num_users), ("history", num_items), ("targets", num_items)):
        column = rows.data.column(name)
        bounds = pc.min_max(column if name == "user" else pc.list_flatten(column))
        low, high = bounds["min"].as_py(), bounds["max"].as_py()
        if low is not None and (low < 0 or high >= size):
            raise ValueError(
                f"{path}: {name} of the {rows.split} split runs from {low} to {high}, but there are {size}; prepare it again"
            )
