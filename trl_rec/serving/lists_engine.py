"""Serves recommendations from a file of lists, one list per user, without a model.

The lists are computed beforehand with `trl-rec recommend --output`, for example with a model that is too large for the
machine on which the server runs. The filter of a request only removes items from the user's list, so a response may
have fewer items than requested. A user without a list gets the items that occur in the largest number of lists.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from trl_rec.data import load
from trl_rec.decoding import Explanation, ItemFilter, Recommendation, RecommendedList
from trl_rec.decoding.caps import CappedList, ColumnGroups
from trl_rec.decoding.item_filter import FilterMasks
from trl_rec.decoding.run_folder import CATALOG, local_folder
from trl_rec.items import ItemCatalog
from trl_rec.ragged import Ragged
from trl_rec.serving.config import ServingConfig
from trl_rec.serving.engine import Items, KnownUsers, history_of, name_with_hash
from trl_rec.serving.model_engine import check_excluded
from trl_rec.serving.schema import ExplainRequest, RecommendRequest


COLUMNS = ("user_id", "rank", "item_id", "score")
MOST_POPULAR = 2000  # maximum number of items in the ranking for users without a list


class ListsEngine:
    """Returns the stored list of each request's user, after applying the filters of the request.

    Args:
        catalog (`ItemCatalog`): The items.
        lists (`pa.Table`): The columns `user_id`, `rank` (from 1), `item_id` and `score`.
        run (`str`): Name of the file of lists, followed by a hash of the file.
        users ([`KnownUsers`], *optional*): The histories of users, for requests that give no history. Items of the
            history, whether given or looked up, are left out of the list.
    """

    def __init__(self, catalog: ItemCatalog, lists: pa.Table, run: str, users: KnownUsers | None = None) -> None:
        self.items = Items(catalog)
        self.run = run
        self._users = users
        self._masks = FilterMasks(catalog)
        self._groups = ColumnGroups(catalog)

        # 1. Leave out items that were retired after the lists were written.
        items = catalog.index_of(lists["item_id"].combine_chunks())
        lists = lists.filter(pa.array(items < catalog.num_recommendable))

        # 2. Sort by user and rank, and number the users.
        lists = lists.sort_by([("user_id", "ascending"), ("rank", "ascending")])
        codes = lists["user_id"].combine_chunks().dictionary_encode()
        self._rows: dict[str, int] = {user: row for row, user in enumerate(codes.dictionary.to_pylist())}
        lengths = np.bincount(codes.indices.to_numpy(), minlength=len(self._rows))
        items = catalog.index_of(lists["item_id"].combine_chunks())
        self._items = Ragged.from_lengths(items, lengths)
        self._scores = Ragged.from_lengths(lists["score"].to_numpy().astype(np.float32), lengths)

        # 3. Order the items by how many lists contain them, for users without a list.
        counts = np.bincount(items, minlength=len(catalog))
        order = np.argsort(-counts, kind="stable")[:MOST_POPULAR]
        self._popular = order[counts[order] > 0]
        self._popular_scores = np.log(counts[self._popular] / max(len(self._rows), 1)).astype(np.float32)

    def answer(self, requests: Sequence[RecommendRequest]) -> list[RecommendedList | Exception]:
        """Returns a list for each request, or a `ValueError` whose message says why there is no list."""
        return [self._one(request) for request in requests]

    def explain(self, request: ExplainRequest) -> list[Explanation]:
        """Raises `ValueError`, because only a model can explain."""
        raise ValueError(
            "this server has only a file of lists, and only a model can explain a score; serve the model instead"
        )

    def warm_up(self) -> None:
        """Computes the values that would otherwise be computed at first use."""
        self.items.warm_up()

    def card(self) -> dict[str, Any]:
        """Describes the engine for `GET /v1/model`."""
        longest = int(self._items.lengths.max(initial=0))
        return {
            "kind": "lists",
            "run": self.run,
            **self.items.card(),
            "list_length": longest,
            "num_users": len(self._rows),
            "needs_user": True,
            "knows_users": True,
            "explains": False,
        }

    def _one(self, request: RecommendRequest) -> RecommendedList | Exception:
        try:
            return self._filtered(request)
        except ValueError as error:
            return error

    def _filtered(self, request: RecommendRequest) -> RecommendedList:
        """Returns the first items of the user's list that the request allows."""
        # 1. Find the items that must be left out.
        mask = self._masks.mask(ItemFilter(where=request.where))
        limits = self._groups.limits(request.max_per)
        check_excluded(request, self.items)
        known, unknown = self._history(request)
        positions = self.items.catalog.positions
        left_out = {*known, *(positions[item_id] for item_id in request.exclude)}

        # 2. Take the first `k` items that are left.
        row = self._rows.get(request.user or "")
        items, scores = (self._popular, self._popular_scores) if row is None else (self._items[row], self._scores[row])
        kept = [
            place
            for place, item in enumerate(items.tolist())
            if item not in left_out and (mask is None or mask.items[item])
        ]
        chosen = CappedList(limits, request.k, len(self.items.catalog))
        chosen.add(items[kept].tolist(), scores[kept].tolist())

        # 3. Look up the titles.
        number = len(chosen.items)
        short = f"the list has {number} of {request.k} items, because the file has no more items for this request"
        return RecommendedList(
            self._ranks(chosen), unknown=unknown, fallback=row is None, short=None if number == request.k else short
        )

    def _history(self, request: RecommendRequest) -> tuple[list[int], int]:
        """Returns the indices of the history's items, and the number of history items that the catalogue lacks."""
        if request.history is None and request.titles is None and self._users is None:
            return [], 0
        try:
            history, missing = history_of(request, self.items, self._users)
        except ValueError:  # a user who is not in the dataset
            return [], 0
        positions = self.items.catalog.positions
        known = [positions[item_id] for item_id in history if item_id in positions]
        return known, missing + len(history) - len(known)

    def _ranks(self, chosen: CappedList) -> Iterator[Recommendation]:
        catalog = self.items.catalog
        for item, score in zip(chosen.items, chosen.scores, strict=True):
            yield Recommendation(catalog.ids[item], catalog.titles[item], score)


def load_lists_engine(config: ServingConfig) -> ListsEngine:
    """Reads the file of lists, and the catalogue of the run folder or of the dataset."""
    assert config.lists is not None
    path = Path(config.lists)
    dataset = None if config.dataset is None else load(config.dataset)
    if config.model is not None:
        catalog = ItemCatalog.load(local_folder(config.model) / CATALOG, remedy="give --model RUN_FOLDER")
    else:
        assert dataset is not None
        catalog = dataset.catalog
    # The catalogue of a run folder may also contain retired items, which the dataset lacks.
    accepted = (catalog.fingerprint, catalog.without_retired().fingerprint)
    if dataset is not None and dataset.catalog.fingerprint not in accepted:
        raise ValueError(
            f"{config.model} and {config.dataset} have different items; give folders that belong together"
        )
    users = None if dataset is None else KnownUsers(dataset, catalog)
    return ListsEngine(catalog, read_lists(path), name_with_hash(path, list_files(path)), users)


def list_files(path: Path) -> list[Path]:
    """Returns the path itself if it is a file, or the Parquet files in it if it is a folder."""
    return sorted(path.glob("*.parquet")) if path.is_dir() else [path]


def read_lists(path: Path) -> pa.Table:
    """Reads a file of lists. Raises `ValueError` if it is missing or invalid."""
    if not path.exists():
        raise ValueError(f"there is no file {path}; make it with trl-rec recommend --output {path}")
    try:
        table = pq.read_table(path)
    except (OSError, pa.ArrowException) as error:
        reason = str(error).split("\n", 1)[0]
        raise ValueError(
            f"{path} is not a Parquet file of lists ({reason}); make it with trl-rec recommend"
        ) from error
    missing = next((name for name in COLUMNS if name not in table.column_names), None)
    if missing is not None:
        raise ValueError(f"{path} has no column {missing}; it must have {', '.join(COLUMNS)}")

    kinds = {"user_id": pa.string(), "rank": pa.int64(), "item_id": pa.string(), "score": pa.float64()}
    try:
        table = table.select(COLUMNS).cast(pa.schema(kinds))
    except (pa.ArrowException, ValueError) as error:
        raise ValueError(
            f"{path} has columns of unsuitable types ({error}); make it with trl-rec recommend"
        ) from error
    for name in COLUMNS:
        if table[name].null_count:
            raise ValueError(
                f"{path}: the column {name} has {table[name].null_count} missing values; make the file with trl-rec "
                "recommend"
            )
    if not pc.all(pc.is_finite(table["score"])).as_py():
        raise ValueError(
            f"{path}: the column score contains values that are not finite; make the file with trl-rec recommend"
        )
    keys = table.group_by(["user_id", "item_id"]).aggregate([])
    if keys.num_rows < table.num_rows:
        raise ValueError(f"{path} contains an item twice in the list of a user; make it with trl-rec recommend")
    return table
