"""Checks preferences given as token ids (`prompt_ids`, `chosen_ids`, `rejected_ids`), and cuts them to length.

A prompt that is too long loses its beginning. A completion is never cut, so a row whose completions leave no room for
the prompt is left out.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from datasets import Dataset

from trl_rec.ragged import Ragged


TOKENS = {"prompt_ids", "chosen_ids", "rejected_ids"}
logger = logging.getLogger(__name__)


def fit_preferences(rows: Dataset, max_length: int | None) -> Dataset:
    """Token rows in which the prompt and the longest completion have at most `max_length` tokens together.

    Longer prompts lose their beginning. Rows without room for any of the prompt are left out, and their number is
    logged.
    """
    if max_length is None or not len(rows):
        return rows

    # Rows whose completions fill the whole length.
    prompts, longest = _lengths(rows.select_columns(sorted(TOKENS)).with_format("arrow")[:])
    fits = longest < max_length
    if not fits.all():
        logger.warning(
            "left out %d of %d preferences: a completion fills max_length=%d", (~fits).sum(), len(rows), max_length
        )
        rows = rows.select(np.flatnonzero(fits))

    # Prompts that are too long.
    if (prompts + longest <= max_length)[fits].all():
        return rows
    options = {"fn_kwargs": {"max_length": max_length}, "features": rows.features, "desc": "shortening prompts"}
    return rows.with_format("arrow").map(_shortened, batched=True, **options).with_format(None)


def leave_out_empty_prompts(rows: Dataset) -> Dataset:
    """The token rows whose prompt has a token. The number of the others is logged."""
    if not len(rows):
        return rows
    full = _count(rows.select_columns(["prompt_ids"]).with_format("arrow")[:]["prompt_ids"]) > 0
    if full.all():
        return rows
    logger.warning("left out %d of %d preferences: their prompt has no token", (~full).sum(), len(rows))
    return rows.select(np.flatnonzero(full))


def check_well_formed(rows: Dataset) -> None:
    """Refuses columns that are not lists of token ids (for `rejected_ids`, lists of such lists), and nulls in them."""
    table = rows.select_columns(sorted(TOKENS)).with_format("arrow")[:]
    for name, depth in {"prompt_ids": 1, "chosen_ids": 1, "rejected_ids": 2}.items():
        if not _holds_ids(table[name].type, depth):
            one = "a list of token ids"
            several = "a list of lists of token ids, one for each rejected completion"
            wanted = one if depth == 1 else several
            raise ValueError(f"the column {name} is of the type {table[name].type}; give each row {wanted}")
        if (row := _null_row(table[name])) is not None:
            raise ValueError(f"row {row}: {name} holds a null; give token ids, or leave the row out")


def check_not_empty(rows: Dataset) -> None:
    """Refuses token rows in which a prompt or a completion has no token."""
    for name, texts, numbers in _texts(rows):
        if (place := pc.index(pc.list_value_length(texts), 0).as_py()) >= 0:
            raise ValueError(f"row {numbers[place]}: {name} holds a text without any token; leave it out")


def check_known_tokens(rows: Dataset, vocab_size: int) -> None:
    """Refuses token rows with an id outside a model's vocabulary."""
    for name, texts, numbers in _texts(rows):
        tokens = pc.list_flatten(texts).to_numpy()
        outside = np.flatnonzero((tokens < 0) | (tokens >= vocab_size))
        if len(outside):
            raise ValueError(
                f"row {numbers[_list_of(outside[0], texts)]}: {name} has the token {tokens[outside[0]]}, but the "
                f"model's are 0 to {vocab_size - 1}; use the model's own tokenizer, and resize the model's embeddings "
                "where tokens were added"
            )


def _texts(rows: Dataset) -> Iterator[tuple[str, pa.ChunkedArray, np.ndarray]]:
    """Yields the name of each column that has any texts, its texts as lists of ids, and the row of each text."""
    table = rows.select_columns(sorted(TOKENS)).with_format("arrow")[:]
    numbers = np.arange(len(rows))
    rejected = table["rejected_ids"]
    columns = {name: (table[name], numbers) for name in ("prompt_ids", "chosen_ids")}
    columns["rejected_ids"] = (pc.list_flatten(rejected), np.repeat(numbers, _count(rejected)))
    for name, (texts, places) in columns.items():
        if len(texts):
            yield name, texts, places


def _holds_ids(kind: pa.DataType, depth: int) -> bool:
    """Whether a type is of token ids in lists nested to this depth. Arrow has no type for what is empty or null."""
    if pa.types.is_null(kind):
        return True
    if depth == 0:
        return bool(pa.types.is_integer(kind))
    lists = (pa.types.is_list, pa.types.is_large_list, pa.types.is_fixed_size_list)
    return any(is_one(kind) for is_one in lists) and _holds_ids(kind.value_type, depth - 1)


def _null_row(values: pa.ChunkedArray) -> int | None:
    """The first row that is null, or holds a null at any depth."""
    if values.null_count:
        return int(pc.index(values.is_null(), True).as_py())
    if not pa.types.is_nested(values.type):
        return None
    place = _null_row(pc.list_flatten(values))
    return None if place is None else _list_of(place, values)


def _list_of(place: int, lists: pa.ChunkedArray) -> int:
    """The list that contains the value at this place of the flattened lists."""
    return int(np.searchsorted(np.cumsum(_count(lists)), place, side="right"))


def _lengths(table: pa.Table) -> tuple[np.ndarray, np.ndarray]:
    """Number of tokens of each row's prompt, and of its longest completion."""
    longest = _count(table["chosen_ids"])
    rejected = table["rejected_ids"]
    lengths = Ragged.from_lengths(_count(pc.list_flatten(rejected)), _count(rejected))
    np.maximum.at(longest, lengths.row_ids, lengths.values)
    return _count(table["prompt_ids"]), longest


def _count(lists: pa.ChunkedArray) -> np.ndarray:
    """Length of each list. If no row rejects anything, Arrow has no type for the lists, which are all empty."""
    if pa.types.is_null(lists.type):
        return np.zeros(len(lists), np.int64)
    lengths: np.ndarray = pc.list_value_length(lists).to_numpy().astype(np.int64)
    return lengths


def _shortened(table: pa.Table, max_length: int) -> pa.Table:
    """A batch whose prompts have lost the beginning that does not fit."""
    prompts = Ragged.from_arrow(table["prompt_ids"])
    start = np.maximum(prompts.lengths + _lengths(table)[1] - max_length, 0)
    kept = prompts.slice(start, prompts.lengths).to_arrow()
    return table.set_column(table.column_names.index("prompt_ids"), "prompt_ids", kept)
