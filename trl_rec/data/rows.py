"""Rows for next-item training: `input_ids` and `labels`, ready for `SFTTrainer` as for the trainers of this package.

`targets="last"` gives one row a prediction: a prompt with the history, and one item as completion. `targets="all"`
gives one row a sequence with every target trained in a single forward, which needs a compact format (item tokens,
semantic IDs). No row mixes users, none is cut inside an item, and no loop runs over interactions.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TypeAlias

import numpy as np
import pyarrow as pa
from datasets import Dataset

from trl_rec.data.dataset import check_is_train, split_rows, split_users
from trl_rec.data.prompts import PromptFormat
from trl_rec.ragged import Ragged, join, within


IGNORED = -100
Parts: TypeAlias = tuple[
    Ragged, np.ndarray, np.ndarray
]  # token rows, which tokens are targets, the split's row of each


def build_rows(
    split: Dataset,
    prompt_format: PromptFormat,
    *,
    targets: str = "last",
    max_length: int | None = None,
    max_history: int | None = None,
) -> Dataset:
    """Training rows of a training split.

    Args:
        split: `RecDataset.train`. The validation and test splits are refused.
        prompt_format: How histories are written.
        targets: `"last"`: one row for every target, after all that came before it. `"all"`: one row for every
            sequence.
        max_length (*optional*): Most tokens of a row. With `"last"` the oldest history goes first; with `"all"` a long
            sequence becomes several rows that overlap by half, and each target is trained once.
        max_history (*optional*): Most items before a target, with `"last"`.

    Returns:
        `datasets.Dataset` with `input_ids`, `labels` (-100 where nothing is learned) and `user`.
    """
    check_is_train(split, "a model")
    if targets == "all" and max_history is not None:
        raise ValueError("max_history has no effect with targets='all'; bound the rows by max_length")
    if targets == "last":
        return _rows(split, partial(_last, max_history=max_history), prompt_format, max_length)
    if targets == "all":
        return _rows(split, _all, prompt_format, max_length)
    raise ValueError(f"targets must be 'last' or 'all', not {targets!r}")


def evaluation_rows(
    split: Dataset, prompt_format: PromptFormat, *, max_length: int | None = None, max_history: int | None = None
) -> Dataset:
    """Rows that measure the loss on a validation or test split, one a target; nothing may be trained on them."""
    return _rows(split, partial(_last, max_history=max_history), prompt_format, max_length)


def _rows(split: Dataset, build: Callable[..., Parts], prompt_format: PromptFormat, max_length: int | None) -> Dataset:
    history, target, users = split_rows(split, "history"), split_rows(split, "targets"), split_users(split)
    tokens, is_target, source = build(history, target, users, prompt_format, max_length)
    if not len(tokens):
        raise ValueError(f"the {split.split} split holds no target: every user has a single interaction; add data")
    labels = Ragged(np.where(is_target, tokens.values, IGNORED), tokens.offsets)
    columns = {"input_ids": tokens.to_arrow(), "labels": labels.to_arrow(), "user": pa.array(users[source])}
    return Dataset(pa.table(columns), split=split.split)


def _last(
    history: Ragged,
    target: Ragged,
    users: np.ndarray,
    prompt_format: PromptFormat,
    max_length: int | None,
    max_history: int | None,
) -> Parts:
    """One row a target."""
    source = target.row_ids
    stop = history.lengths[source] + within(target.lengths)
    room = prompt_format.room(max_length)
    if room is not None:  # no more items than could fit are gathered: prefixes of long histories add up
        most = room // int(prompt_format.pieces.lengths.min())
        max_history = most if max_history is None else min(max_history, most)
    start = np.zeros_like(stop) if max_history is None else np.maximum(stop - max_history, 0)
    before = join(history, target).take(source).slice(start, stop)
    prompts = prompt_format.encode(before, users[source], max_length=max_length)
    completions = prompt_format.paths.take(target.values)
    tokens = join(prompts, completions)
    return tokens, within(tokens.lengths) >= np.repeat(prompts.lengths, tokens.lengths), source


def _all(
    history: Ragged, target: Ragged, users: np.ndarray, prompt_format: PromptFormat, max_length: int | None
) -> Parts:
    """One row a window of a sequence."""
    if not prompt_format.is_compact:
        raise ValueError(
            "targets='all' needs items written without text between them: the surface item_token or semantic_id"
        )
    items = join(history, target)
    known = history.lengths  # items before the first target
    source = np.flatnonzero(target.lengths > 0)
    room = prompt_format.room(max_length)
    width = int(items.lengths.max(initial=1)) if room is None else room // int(prompt_format.paths.lengths.max()) + 1
    step = width - width // 2
    windows = 1 + np.maximum(-(-(items.lengths[source] - width) // step), 0)
    source, number = np.repeat(source, windows), within(windows)
    start = number * step
    stop = np.minimum(start + width, items.lengths[source])
    learned = np.where(number > 0, start + width - step, 0)  # earlier windows have learned what is before
    first = np.maximum(learned, known[source])
    window = items.take(source).slice(start, stop)
    item_is_target = within(window.lengths) + np.repeat(start, window.lengths) >= np.repeat(first, window.lengths)
    pieces = window.flatten(prompt_format.paths)
    head = prompt_format.heads(len(window), users[source])
    lengths = prompt_format.paths.lengths[window.values]
    piece_is_target = Ragged(np.repeat(item_is_target, lengths), pieces.offsets)
    none = Ragged(np.zeros(len(head.values), bool), head.offsets)
    return join(head, pieces), join(none, piece_is_target).values, source
