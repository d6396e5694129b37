"""Reads recommendations made by other programs, to evaluate them in the same way as the models of this package.

A file has one line per recommended item, in any order. The columns of the file are `user_id` (or `row`, see
[`read_lists`]), `rank` (from 1), `item_id` and optionally `score`. A file is refused in each of these cases, because
the comparison would be unfair:

- The file contains items or users that are not in the dataset.
- An evaluated user has no list.
- All lists are shorter than the largest cutoff k of the metrics.
- A list contains an item of the user's history, although `exclude_history` is set.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from trl_rec.data.columns import RowError, check_none, ids, numbers, plain, shown
from trl_rec.data.dataset import split_rows, split_users
from trl_rec.data.readers.files import read_columns
from trl_rec.evaluation.rankings import Rankings
from trl_rec.evaluation.results import held_out
from trl_rec.ragged import Ragged


if TYPE_CHECKING:
    from trl_rec.data.dataset import RecDataset

logger = logging.getLogger(__name__)

COLUMNS = ("user_id", "row", "rank", "item_id", "score")


def read_lists(
    path: str | Path,
    dataset: RecDataset,
    *,
    split: str = "test",
    rows: np.ndarray | None = None,
    top_k: int = 10,
    at_most: int | None = None,
    exclude_history: bool = True,
) -> Rankings:
    """Reads the lists of a file for rows of a split. Raises `ValueError` if they cannot be compared fairly.

    Args:
        path (`str` or `Path`): A CSV or TSV file, possibly gzipped, or a Parquet file or folder, with the columns
            `user_id`, `rank`, `item_id` and optionally `score`. If users have several rows in the split, the file
            must have a column `row` instead of `user_id`: the number of the row in the split, counted from 0.
        dataset (`RecDataset`): The dataset.
        split (`str`, *optional*, defaults to `"test"`): `"validation"` or `"test"`.
        rows (`np.ndarray`, *optional*): Numbers of the rows to read lists for. Defaults to all rows of the split.
        top_k (`int`, *optional*, defaults to `10`): Number of ranks that the metrics need. At least one list must have
            this many items.
        at_most (`int`, *optional*): Maximum number of ranks to read. Defaults to `top_k`. Values below `top_k` have no
            effect.
        exclude_history (`bool`, *optional*, defaults to `True`): Whether to refuse lists with items of the history.

    Returns:
        `Rankings`: the items `(len(rows), K)`, with scores if the file has them. K is the length of the longest list,
        but at most the larger of `top_k` and `at_most`.
    """
    # 1. Read all lines and check their values. `place` is the position of each line's row in `row_numbers`, or -1 if
    #    the row is not in `row_numbers`. Lines with the place -1 are ignored in the following steps.
    held = held_out(dataset, split)
    row_numbers = np.arange(len(held)) if rows is None else rows
    table, where = _read(Path(path))
    place = _places(table, dataset, split, row_numbers, where)
    lines = _Lines(table, where, place, _items(table, dataset, where), _ranks(table, where))

    # 2. Check the lists.
    lengths = np.bincount(place[place >= 0], minlength=len(row_numbers))
    _check_distinct(lines, lines.ranks, "rank", "the rank {} occurs twice in one list; correct the ranks")
    _check_distinct(lines, lines.items, "item_id", "the item {} occurs twice in one list; keep only one of the lines")
    _check_every_row_has_one(lengths, dataset, split, row_numbers, where)
    _check_lengths(lines, lengths, top_k)
    if exclude_history:
        _check_history(lines, split_rows(held, "history").take(row_numbers), len(dataset.catalog))

    # 3. Arrange the lists.
    width = min(int(lengths.max()), max(at_most or 0, top_k))
    kept = (place >= 0) & (lines.ranks <= width)
    ranked = np.full((len(row_numbers), width), -1, np.int64)
    ranked[place[kept], lines.ranks[kept] - 1] = lines.items[kept]
    if "score" not in table.column_names:
        return Rankings(ranked)
    scores = np.full(ranked.shape, -np.inf, np.float32)
    scores[place[kept], lines.ranks[kept] - 1] = numbers(table["score"], "score", where).to_numpy()[kept]
    return Rankings(ranked, scores)


class _Lines(NamedTuple):
    """The lines of a file.

    Args:
        table (`pa.Table`): The columns of the file.
        where (`str`): Name of the file.
        place (`np.ndarray` of shape `(num_lines,)`): Position of each line's row among the rows to read lists for, or
            -1 if no list is read for that row.
        items (`np.ndarray` of shape `(num_lines,)`): Index of each line's item in the catalogue.
        ranks (`np.ndarray` of shape `(num_lines,)`): Rank of each line's item, from 1.
    """

    table: pa.Table
    where: str
    place: np.ndarray
    items: np.ndarray
    ranks: np.ndarray


def _read(path: Path) -> tuple[pa.Table, str]:
    """Returns the file's columns that are in `COLUMNS`, and the name of the file for error messages."""
    table = read_columns(path, " with lists")

    user = "row" if "row" in table.column_names else "user_id"
    for column in (user, "rank", "item_id"):
        if column not in table.column_names:
            raise ValueError(
                f"{path.name} has no column {column}, only {', '.join(table.column_names)}; lists need the columns "
                "user_id, rank and item_id"
            )
    if not table.num_rows:
        raise ValueError(f"{path.name} contains no lists; write one line per user and rank")
    return plain(table.select([column for column in COLUMNS if column in table.column_names]), path.name), path.name


def _places(table: pa.Table, dataset: RecDataset, split: str, row_numbers: np.ndarray, where: str) -> np.ndarray:
    """Returns for each line the position of its row in `row_numbers`, or -1 if its row is not in `row_numbers`."""
    held = held_out(dataset, split)
    if "row" in table.column_names:
        line_rows = _whole(table, "row", where)
        unknown = (line_rows < 0) | (line_rows >= len(held))
        message = f"there is no row {{}} in the {split} split of {len(held)} rows; rows are counted from 0"
        check_none(pa.chunked_array([unknown]), table["row"], where, message)
        position_of = np.full(len(held), -1)
        position_of[row_numbers] = np.arange(len(row_numbers))
        positions: np.ndarray = position_of[line_rows]
        return positions

    # Refuse lines about users who are not in the dataset. Ignore lines about users whose rows are not evaluated.
    line_ids = ids(table["user_id"], "user_id", where)
    users = pc.index_in(line_ids, value_set=dataset.users["user_id"].combine_chunks())
    check_none(users.is_null(), line_ids, where, f"the user {{}} is not in {dataset.path}; leave the line out")
    users_of_rows = split_users(held)
    if len(np.unique(users_of_rows)) < len(users_of_rows):
        raise ValueError(
            f"{where}: users have several rows in the {split} split of {dataset.path}; replace the column "
            "'user_id' by a column 'row' that contains row numbers, counted from 0"
        )
    position_of = np.full(dataset.users.num_rows, -1)
    position_of[users_of_rows[row_numbers]] = np.arange(len(row_numbers))
    positions = position_of[users.to_numpy()]
    ignored = len(np.unique(users.to_numpy()[positions < 0]))
    if ignored:
        logger.info("%s: ignored the lists of %d users who are not evaluated", where, ignored)
    return positions


def _items(table: pa.Table, dataset: RecDataset, where: str) -> np.ndarray:
    """Returns for each line the catalogue index of its item."""
    line_ids = ids(table["item_id"], "item_id", where)
    items = pc.index_in(line_ids, value_set=pa.array(dataset.catalog.ids, pa.string()))
    message = f"the item {{}} is not in the catalogue of {dataset.path}; recommend only items of this catalogue"
    check_none(items.is_null(), line_ids, where, message)
    indices: np.ndarray = items.to_numpy().astype(np.int64)
    return indices


def _ranks(table: pa.Table, where: str) -> np.ndarray:
    ranks = _whole(table, "rank", where)
    below = pa.chunked_array([ranks < 1])
    check_none(below, table["rank"], where, "the rank {} is below 1; the best item of a list has the rank 1")
    return ranks


def _whole(table: pa.Table, name: str, where: str) -> np.ndarray:
    """Returns a column of whole numbers."""
    values = numbers(table[name], name, where).to_numpy()
    is_invalid = (values != np.trunc(values)) | (np.abs(values) > 2**31)
    message = f"the {name} {{}} is not a whole number of at most 2^31; correct it"
    check_none(pa.chunked_array([is_invalid]), table[name], where, message)
    whole: np.ndarray = values.astype(np.int64)
    return whole


def _check_distinct(lines: _Lines, values: np.ndarray, column: str, message: str) -> None:
    """Raises `ValueError` at the first line that repeats the value of an earlier line of the same list."""
    order = np.lexsort((values, lines.place))  # stable, so equal values stay in the order of their lines
    place = lines.place[order]
    same = (np.diff(place) == 0) & (np.diff(values[order]) == 0) & (place[1:] >= 0)
    repeated = np.zeros(len(order), bool)
    repeated[order[1:][same]] = True
    check_none(pa.chunked_array([repeated]), lines.table[column], lines.where, message)


def _check_every_row_has_one(
    lengths: np.ndarray, dataset: RecDataset, split: str, row_numbers: np.ndarray, where: str
) -> None:
    """Raises `ValueError` if a row has no list."""
    missing = np.flatnonzero(lengths == 0)
    if len(missing):
        user = split_users(held_out(dataset, split))[row_numbers[missing[0]]]
        name = shown(dataset.users["user_id"][int(user)].as_py())
        raise ValueError(
            f"{where} has no list for {len(missing)} of {len(lengths)} rows of the {split} split, such as the row of "
            f"user {name}; give every user a list"
        )


def _check_lengths(lines: _Lines, lengths: np.ndarray, top_k: int) -> None:
    """Raises `ValueError` if a list skips a rank, or if no list has `top_k` items."""
    # The ranks of a list are distinct and at least 1, so one of them exceeds the number of items if a rank is skipped.
    skips = np.flatnonzero((lines.place >= 0) & (lines.ranks > lengths[lines.place]))
    if len(skips):
        line = int(skips[0])
        length = lengths[lines.place[line]]
        problem = (
            f"the list has {length} items, but contains the rank {lines.ranks[line]}; number the ranks from 1 without "
            "gaps"
        )
        raise RowError(lines.where, line, problem)
    if lengths.max() < top_k:
        raise ValueError(
            f"{lines.where}: the longest list has {lengths.max()} items, but ks goes up to {top_k}; give longer "
            "lists, or reduce ks"
        )


def _check_history(lines: _Lines, histories: Ragged, num_items: int) -> None:
    """Raises `ValueError` at the first line that recommends an item of the history."""
    chosen = histories.row_ids * num_items + histories.values
    known = (lines.place >= 0) & np.isin(lines.place * num_items + lines.items, chosen)
    message = (
        "the item {} is in the user's history; leave such items out, or set exclude_history to false for all "
        "recommenders"
    )
    check_none(pa.chunked_array([known]), lines.table["item_id"], lines.where, message)
