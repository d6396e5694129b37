"""Rows for next-item training: `input_ids` and `labels`, ready for `SFTTrainer` and for the trainers of this package.

`targets="last"` makes one row per prediction: a prompt with the history, and one item as completion. `targets="all"`
makes one row per sequence, in which a single forward pass trains every target; that needs a compact format (item
tokens, semantic IDs). No row mixes users, and none is cut inside an item.

Rows are built with whole-array operations on [`Ragged`], so that there is no Python loop over interactions.
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


IGNORED = -100  # label of a token that is not trained
# The token rows; a flag per token, true if the token belongs to a target; and per row, its source row of the split.
Parts: TypeAlias = tuple[Ragged, np.ndarray, np.ndarray]


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
        split: `RecDataset.train`; the validation and test splits are refused.
        prompt_format: How histories are written.
        targets: `"last"` makes one row per target, with all earlier items as history. `"all"` makes one row per
            sequence.
        max_length (*optional*): Limit on the tokens of a row. With `"last"` the oldest items of the history are left
            out. With `"all"` a long sequence becomes several rows that overlap by half. Each target is trained once.
        max_history (*optional*): With `"last"`, the largest number of items before a target.

    Returns:
        `datasets.Dataset` with `input_ids`, `labels` (-100 where nothing is trained) and `user`.
    """
    check_is_train(split, "a model")
    if targets == "all" and max_history is not None:
        raise ValueError("max_history has no effect with targets='all'; limit the rows by max_length")
    if targets == "last":
        return _build(split, partial(_last_targets, max_history=max_history), prompt_format, max_length)
    if targets == "all":
        return _build(split, _all_targets, prompt_format, max_length)
    raise ValueError(f"targets must be 'last' or 'all', not {targets!r}")


def evaluation_rows(
    split: Dataset, prompt_format: PromptFormat, *, max_length: int | None = None, max_history: int | None = None
) -> Dataset:
    """Rows that measure the loss on a validation or test split, one per target. Never train on them."""
    return _build(split, partial(_last_targets, max_history=max_history), prompt_format, max_length)


def _build(split: Dataset, make: Callable[..., Parts], prompt_format: PromptFormat, max_length: int | None) -> Dataset:
    """The rows that `make` cuts from a split, with labels."""
    history = split_rows(split, "history")
    target = split_rows(split, "targets")
    users = split_users(split)
    tokens, is_target, source = make(history, target, users, prompt_format, max_length)
    if not len(tokens):
        raise ValueError(f"the {split.split} split has no target: every user has a single interaction; add data")
    labels = Ragged(np.where(is_target, tokens.values, IGNORED), tokens.offsets)
    columns = {"input_ids": tokens.to_arrow(), "labels": labels.to_arrow(), "user": pa.array(users[source])}
    return Dataset(pa.table(columns), split=split.split)


def _last_targets(
    history: Ragged,
    target: Ragged,
    users: np.ndarray,
    prompt_format: PromptFormat,
    max_length: int | None,
    max_history: int | None,
) -> Parts:
    """One row per target."""
    # 1. Limit the items before a target to as many as could fit, since the prefixes of a long history add up.
    room = prompt_format.room(max_length)
    if room is not None:
        most = room // int(prompt_format.pieces.lengths.min())
        max_history = most if max_history is None else min(max_history, most)

    # 2. Cut the user's sequence before each target.
    source = target.row_ids  # (num_targets,)
    stop = history.lengths[source] + within(target.lengths)  # the target's place in the user's sequence
    start = np.zeros_like(stop) if max_history is None else np.maximum(stop - max_history, 0)
    before = join(history, target).take(source).slice(start, stop)

    # 3. Write prompts and completions.
    prompts = prompt_format.encode(before, users[source], max_length=max_length)
    completions = prompt_format.paths.take(target.values)
    tokens = join(prompts, completions)
    is_target = within(tokens.lengths) >= np.repeat(prompts.lengths, tokens.lengths)
    return tokens, is_target, source


def _all_targets(
    history: Ragged, target: Ragged, users: np.ndarray, prompt_format: PromptFormat, max_length: int | None
) -> Parts:
    """One row per sequence, or per window of a sequence that is too long."""
    if not prompt_format.is_compact:
        raise ValueError(
            "targets='all' needs items written without text between them: the surface item_token or semantic_id"
        )

    # 1. Choose the width of a window in items, and how far apart windows begin: they overlap by half.
    items = join(history, target)
    room = prompt_format.room(max_length)
    if room is None:
        width = int(items.lengths.max(initial=1))
    else:
        # `room` leaves out the longest completion. Here the completion is the last item of the window, hence the + 1.
        width = room // int(prompt_format.paths.lengths.max()) + 1
    step = width - width // 2

    # 2. Cut each sequence that has a target into windows.
    source = np.flatnonzero(target.lengths > 0)
    num_windows = 1 + np.maximum(-(-(items.lengths[source] - width) // step), 0)  # rounded up
    source = np.repeat(source, num_windows)
    number = within(num_windows)  # of a window in its sequence, from 0
    start = number * step
    stop = np.minimum(start + width, items.lengths[source])
    window = items.take(source).slice(start, stop)

    # 3. In each window, find the items that are targets and were not targets of the window before.
    trained_before = np.where(number > 0, start + width - step, 0)
    first_target = np.maximum(trained_before, history.lengths[source])
    position = within(window.lengths) + np.repeat(start, window.lengths)
    item_is_target = position >= np.repeat(first_target, window.lengths)

    # 4. Write the items as tokens, behind a head.
    pieces = window.flatten(prompt_format.paths)
    heads = prompt_format.encode_heads(len(window), users[source])
    token_is_target = np.repeat(item_is_target, prompt_format.paths.lengths[window.values])
    never = Ragged(np.zeros(len(heads.values), bool), heads.offsets)
    is_target = join(never, Ragged(token_is_target, pieces.offsets)).values
    return join(heads, pieces), is_target, source
