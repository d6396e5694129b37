"""Checks preferences given as token ids (`prompt_ids`, `chosen_ids`, `rejected_ids`), and truncates prompts.

A prompt that is too long is truncated at the beginning. Completions are never truncated, so a row is dropped if one of
its completions leaves no room for the prompt.
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
    """Limits the prompt and the longest completion of each row to `max_length` tokens together.

    Longer prompts are truncated at the beginning. A row is dropped if a completion leaves no room for the prompt. The
    number of dropped rows is logged.
    """
    if max_length is None or not len(rows):
        return rows

    # Drop rows in which a completion leaves no room for the prompt.
    prompts, longest = _lengths(rows.select_columns(sorted(TOKENS)).with_format("arrow")[:])
    fits = longest < max_length
    if not fits.all():
        logger.warning(
            "dropped %d of %d preferences, because a completion leaves no room for the prompt in max_length=%d",
            (~fits).sum(),
            len(rows),
            max_length,
        )
        rows = rows.select(np.flatnonzero(fits))

    # Truncate prompts that are too long.
    if (prompts + longest <= max_length)[fits].all():
        return rows
    options = {"fn_kwargs": {"max_length": max_length}, "features": rows.features, "desc": "truncating prompts"}
    return rows.with_format("arrow").map(_shortened, batched=True, **options).with_format(None)


def leave_out_empty_prompts(rows: Dataset) -> Dataset:
    """Drops rows with an empty prompt, and logs the number of dropped rows."""
    if not len(rows):
        return rows
    full = _count(rows.select_columns(["prompt_ids"]).with_format("arrow")[:]["prompt_ids"]) > 0
    if full.all():
        return rows
    logger.warning("dropped %d of %d preferences, because their prompt has no tokens", (~full).sum(), len(rows))
    return rows.select(np.flatnonzero(full))


def check_well_formed(rows: Dataset) -> None:
    """Raises ValueError if a column contains nulls or has a wrong type.

    Each value must be a list of token ids, and for `rejected_ids` a list of such lists.
    """
    table = rows.select_columns(sorted(TOKENS)).with_format("arrow")[:]
    for name, depth in {"prompt_ids": 1, "chosen_ids": 1, "rejected_ids": 2}.items():
        if not _holds_ids(table[name].type, depth):
            one = "a list of token ids"
            several = "a list of lists of token ids, one for each rejected completion"
            wanted = one if depth == 1 else several
            raise ValueError(f"the column {name} has the type {table[name].type}; give each row {wanted}")
        if (row := _null_row(table[name])) is not None:
            raise ValueError(f"row {row}: {name} contains null; give token ids, or leave the row out")


def check_not_empty(rows: Dataset) -> None:
    """Raises ValueError if a prompt or a completion has no tokens."""
    for name, texts, numbers in _texts(rows):
        if (place := pc.index(pc.list_value_length(texts), 0).as_py()) >= 0:
            remedy = "leave the completion or the row out" if name == "rejected_ids" else "leave the row out"
            raise ValueError(f"row {numbers[place]}: {name} contains an empty list of tokens; {remedy}")


def check_known_tokens(rows: Dataset, vocab_size: int) -> None:
    """Raises ValueError if a token id is outside the vocabulary of the model."""
    for name, texts, numbers in _texts(rows):
        tokens = pc.list_flatten(texts).to_numpy()
        outside = np.flatnonzero((tokens < 0) | (tokens >= vocab_size))
        if len(outside):
            raise ValueError(
                f"row {numbers[_list_of(outside[0], texts)]}: {name} contains the token {tokens[outside[0]]}, but "
                f"the model's tokens are 0 to {vocab_size - 1}; use the model's own tokenizer, and resize the "
                "model's embeddings after adding tokens"
            )


def _texts(rows: Dataset) -> Iterator[tuple[str, pa.ChunkedArray, np.ndarray]]:
    """For each column, yields the name, the texts (prompts or completions, as token ids), and each text's row index.

    A column without any text is skipped.
    """
    table = rows.select_columns(sorted(TOKENS)).with_format("arrow")[:]
    numbers = np.arange(len(rows))
    rejected = table["rejected_ids"]
    columns = {name: (table[name], numbers) for name in ("prompt_ids", "chosen_ids")}
    columns["rejected_ids"] = (pc.list_flatten(rejected), np.repeat(numbers, _count(rejected)))
    for name, (texts, places) in columns.items():
        if len(texts):
            yield name, texts, places


def _holds_ids(kind: pa.DataType, depth: int) -> bool:
    """Returns whether an Arrow type holds token ids in lists that are nested `depth` deep.

    The type null is accepted at any depth, because Arrow gives it to values that are all missing, such as those of
    empty lists.
    """
    if pa.types.is_null(kind):
        return True
    if depth == 0:
        return bool(pa.types.is_integer(kind))
    lists = (pa.types.is_list, pa.types.is_large_list, pa.types.is_fixed_size_list)
    return any(is_one(kind) for is_one in lists) and _holds_ids(kind.value_type, depth - 1)


def _null_row(values: pa.ChunkedArray) -> int | None:
    """Returns the index of a row that is null or contains a null at any depth, or None if there is no such row."""
    if values.null_count:
        return int(pc.index(values.is_null(), True).as_py())
    if not pa.types.is_nested(values.type):
        return None
    place = _null_row(pc.list_flatten(values))
    return None if place is None else _list_of(place, values)


def _list_of(place: int, lists: pa.ChunkedArray) -> int:
    """Returns the index of the list that contains the value at position `place` of the flattened lists."""
    return int(np.searchsorted(np.cumsum(_count(lists)), place, side="right"))


def _lengths(table: pa.Table) -> tuple[np.ndarray, np.ndarray]:
    """Returns the number of tokens of each row's prompt, and of each row's longest completion."""
    longest = _count(table["chosen_ids"])
    rejected = table["rejected_ids"]
    lengths = Ragged.from_lengths(_count(pc.list_flatten(rejected)), _count(rejected))
    np.maximum.at(longest, lengths.row_ids, lengths.values)
    return _count(table["prompt_ids"]), longest


def _count(lists: pa.ChunkedArray) -> np.ndarray:
    """Returns the length of each list. An array without any list may have the Arrow type null."""
    if pa.types.is_null(lists.type):
        return np.zeros(len(lists), np.int64)
    lengths: np.ndarray = pc.list_value_length(lists).to_numpy().astype(np.int64)
    return lengths


def _shortened(table: pa.Table, max_length: int) -> pa.Table:
    """Truncates the prompts of a batch at the beginning."""
    prompts = Ragged.from_arrow(table["prompt_ids"])
    start = np.maximum(prompts.lengths + _lengths(table)[1] - max_length, 0)
    kept = prompts.slice(start, prompts.lengths).to_arrow()
    return table.set_column(table.column_names.index("prompt_ids"), "prompt_ids", kept)
