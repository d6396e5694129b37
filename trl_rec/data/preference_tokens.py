"""Preferences as token ids: rows of `prompt_ids`, `chosen_ids` and `rejected_ids` (a list of lists).

Here they are held to what can be learned. A prompt that is too long loses its beginning; a completion is never cut, so a row
whose completions leave the prompt no room is left out.
"""

from __future__ import annotations

import logging

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from datasets import Dataset

from trl_rec.ragged import Ragged


TOKENS = {"prompt_ids", "chosen_ids", "rejected_ids"}
logger = logging.getLogger(__name__)


def fit_preferences(rows: Dataset, max_length: int | None) -> Dataset:
    """The token rows in which the prompt and the longest completion have at most `max_length` tokens together.

    Longer prompts lose their beginning. Rows without room for any of the prompt are left out, and their number is logged.
    """
    if max_length is None or not len(rows):
        return rows
    prompts, longest = _lengths(rows.select_columns(sorted(TOKENS)).with_format("arrow")[:])
    fits = longest < max_length
    if not fits.all():
        number = (~fits).sum()
        logger.warning("left out %d of %d preferences: a completion fills max_length=%d", number, len(rows), max_length)
        rows = rows.select(np.flatnonzero(fits))
    if (prompts + longest <= max_length)[fits].all():
        return rows
    options = {"fn_kwargs": {"max_length": max_length}, "features": rows.features, "desc": "shortening prompts"}
    return rows.with_format("arrow").map(_shortened, batched=True, **options).with_format(None)


def leave_out_empty_prompts(rows: Dataset) -> Dataset:
    """The token rows whose prompt has a token; the number of the others is logged."""
    if not len(rows):
        return rows
    full = _count(rows.select_columns(["prompt_ids"]).with_format("arrow")[:]["prompt_ids"]) > 0
    if full.all():
        return rows
    logger.warning("left out %d of %d preferences: their prompt has no token", (~full).sum(), len(rows))
    return rows.select(np.flatnonzero(full))


def refuse_empty(rows: Dataset) -> None:
    """Refuses token rows in which a prompt or a completion has no token."""
    table = rows.select_columns(sorted(TOKENS)).with_format("arrow")[:]
    columns = {name: (table[name], np.arange(len(rows))) for name in ("prompt_ids", "chosen_ids")}
    several = Ragged.from_lengths(np.arange(0), pc.list_value_length(table["rejected_ids"]).to_numpy())
    columns["rejected_ids"] = pc.list_flatten(table["rejected_ids"]), several.row_ids
    for name, (texts, numbers) in columns.items():
        if not pa.types.is_null(texts.type) and (place := pc.index(pc.list_value_length(texts), 0).as_py()) >= 0:
            raise ValueError(f"row {numbers[place]}: {name} holds a text without any token; leave it out")


def _lengths(table: pa.Table) -> tuple[np.ndarray, np.ndarray]:
    """Tokens of each row's prompt, and of its longest completion."""
    longest = _count(table["chosen_ids"])
    several = Ragged.from_lengths(_count(pc.list_flatten(table["rejected_ids"])), _count(table["rejected_ids"]))
    np.maximum.at(longest, several.row_ids, several.values)
    return _count(table["prompt_ids"]), longest


def _count(lists: pa.ChunkedArray) -> np.ndarray:
    """Length of each list; where all rows reject nothing, Arrow does not know that they would hold lists."""
    if pa.types.is_null(lists.type):
        return np.zeros(len(lists), np.int64)
    return pc.list_value_length(lists).to_numpy().astype(np.int64)


def _shortened(table: pa.Table, max_length: int) -> pa.Table:
    """A batch whose prompts have lost what does not fit."""
    prompts = Ragged.from_arrow(table["prompt_ids"])
    start = np.maximum(prompts.lengths + _lengths(table)[1] - max_length, 0)
    kept = prompts.slice(start, prompts.lengths).to_arrow()
    return table.set_column(table.column_names.index("prompt_ids"), "prompt_ids", kept)
