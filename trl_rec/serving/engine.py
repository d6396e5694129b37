"""Defines the interface of an engine, which uses a model or a file of lists to answer requests.

Only one thread at a time calls `answer` or `explain`. All threads may use `items`, `run` and `card`, because these do
not change after `warm_up`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from trl_rec.data.dataset import RecDataset
from trl_rec.decoding import Explanation, RecommendedList
from trl_rec.items import ItemCatalog
from trl_rec.serving.schema import ExplainRequest, RecommendRequest
from trl_rec.serving.titles import TitleIndex
from trl_rec.serving.user_histories import UserHistories
from trl_rec.version import __version__


EDGE = 1 << 20  # bytes at each end of a file that are hashed
MOST_GROUPS = 500  # largest number of group names in the response of `GET /v1/model`


class Engine(Protocol):
    """Computes the results of requests.

    Attributes:
        items ([`Items`]): The catalogue, with its titles and groups (such as genres).
        run (`str`): Name of the run, with a hash of its files.
    """

    items: Items
    run: str

    def answer(self, requests: Sequence[RecommendRequest]) -> list[RecommendedList | Exception]:
        """Returns a list for each request, or a `ValueError` whose message says why there is no list."""

    def explain(self, request: ExplainRequest) -> list[Explanation]:
        """Returns the history items that affect the score of the item `request.item_id` most."""

    def warm_up(self) -> None:
        """Computes the values that would otherwise be computed at first use, so that no client waits for them."""

    def card(self) -> dict[str, Any]:
        """Describes the engine for `GET /v1/model`."""


class Items:
    """A catalogue with its titles and groups.

    Args:
        catalog (`ItemCatalog`): The items.
    """

    def __init__(self, catalog: ItemCatalog) -> None:
        self.catalog = catalog
        self.titles = TitleIndex(catalog)

    def groups_of(self, item: int) -> list[str]:
        """Returns the groups of an item: the values of the catalogue's group column."""
        column = self.catalog.group_column
        value = None if column is None else self.catalog.items[column][item].as_py()
        return list(map(str, value)) if isinstance(value, list) else [] if value is None else [str(value)]

    @cached_property
    def groups(self) -> list[str]:
        """The names of the largest groups (at most `MOST_GROUPS`), in alphabetical order."""
        if self.catalog.group_column is None:
            return []
        values = self.catalog.items[self.catalog.group_column].combine_chunks()
        if pa.types.is_list(values.type) or pa.types.is_large_list(values.type):
            values = values.flatten()
        counts = pc.value_counts(values.drop_null()).to_pylist()
        largest = sorted(counts, key=lambda one: (-one["counts"], str(one["values"])))[:MOST_GROUPS]
        return sorted(str(one["values"]) for one in largest)

    def warm_up(self) -> None:
        """Computes the values that would otherwise be computed at first use."""
        self.titles.ids_of([""])
        self.titles.search("a", 1)
        self.card()

    def card(self) -> dict[str, Any]:
        """Describes the catalogue."""
        schema = self.catalog.items.schema
        return {
            "num_items": self.catalog.num_recommendable,
            "surface": self.catalog.surface,
            "columns": {field.name: str(field.type) for field in schema},
            "group_column": self.catalog.group_column,
            "groups": self.groups,
            "trl_rec": __version__,
        }


class KnownUsers:
    """Finds the users of a dataset by their id.

    Args:
        dataset ([`RecDataset`]): The dataset.
        catalog ([`ItemCatalog`], *optional*): The catalogue of the model, whose first items are those of the dataset.
            Defaults to the catalogue of the dataset.
    """

    def __init__(self, dataset: RecDataset, catalog: ItemCatalog | None = None) -> None:
        given = UserHistories.of_dataset(dataset, catalog=catalog)
        self._histories = given.histories
        self._rows = {user: row for row, user in enumerate(given.user_ids.to_pylist())}
        self._path = dataset.path

    def row_of(self, user: str) -> int:
        """Returns the row of a user in `RecDataset.users`. Raises `ValueError` if there is no such user."""
        if user not in self._rows:
            raise ValueError(f"user {user!r:.80} is not in {self._path}; give history or titles instead")
        return self._rows[user]

    def items_of(self, user: str) -> np.ndarray:
        """Returns the indices of all items that a user chose, oldest first."""
        return self._histories[self.row_of(user)]


def history_of(
    request: RecommendRequest | ExplainRequest, items: Items, users: KnownUsers | None
) -> tuple[list[str], int]:
    """Returns the item ids of a request's history, and the number of given titles that no item has."""
    if request.titles is not None:
        return items.titles.ids_of(request.titles)
    if request.history is not None:
        return request.history, 0
    if users is None:
        raise ValueError(
            "this server was started without --dataset, so it has no histories of users; give history or titles too"
        )
    assert request.user is not None
    return [items.catalog.ids[item] for item in users.items_of(request.user)], 0


def name_with_hash(path: Path, files: Iterable[Path]) -> str:
    """Returns the name of a folder or file, followed by a hash of the given files.

    If the path is a symbolic link, the name is that of its target. The hash covers the name, the size, and the first
    and last `EDGE` bytes of each file. Copies of a run therefore have the same hash on every machine. If the run is
    trained again, the hash changes, because these bytes of the weights differ.
    """
    digest = hashlib.blake2b(digest_size=4)
    for file in sorted(files):
        size = file.stat().st_size
        digest.update(f"{file.name} {size} ".encode())
        with open(file, "rb") as content:
            digest.update(content.read(EDGE))
            content.seek(max(size - EDGE, 0))
            digest.update(content.read(EDGE))
    return f"{path.resolve().name}-{digest.hexdigest()}"
