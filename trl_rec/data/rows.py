"""Builds rows for next-item training: `input_ids` and `labels` for `SFTTrainer` and the trainers of this package.

- `targets="last"` makes one row per target: a prompt with the history, and the target as completion.
- `targets="all"` makes one row per sequence, so that one forward pass trains all of its targets. It requires a compact
  format (item tokens or semantic IDs).

A row contains items of one user only, and is never cut inside an item. Rows are built with array operations on
[`Ragged`], without a Python loop over interactions.
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


IGNORED = -100  # label of a token that is excluded from the loss
# The rows of token ids; a boolean per token (whether it belongs to a target); and per output row, the index of its
# source row in the split.
Parts: TypeAlias = tuple[Ragged, np.ndarray, np.ndarray]


def build_rows(
    split: Dataset,
    prompt_format: PromptFormat,
    *,
    targets: str = "last",
    max_length: int | None = None,
    max_history: int | None = None,
) -> Dataset:
    """Returns the training rows of a training split.

    Args:
        split: `RecDataset.train`; the validation and test splits are refused.
        prompt_format: How histories are written.
        targets: `"last"` makes one row per target, with all earlier items as history. `"all"` makes one row per
            sequence.
        max_length (*optional*): Maximum number of tokens per row. With `"last"`, the oldest items of the history are
            dropped. With `"all"`, a long sequence is cut into rows that overlap by half; each target is trained once.
        max_history (*optional*): With `"last"`, the maximum number of items before a target.

    Returns:
        `datasets.Dataset` with `input_ids`, `labels` (-100 for tokens that are excluded from the loss) and `user`.
    """
    check_is_train(split, "models")
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
    """Returns one row per target, for measuring the loss on a validation or test split. Never train on these rows."""
    return _build(split, partial(_last_targets, max_history=max_history), prompt_format, max_length)


def _build(split: Dataset, make: Callable[..., Parts], prompt_format: PromptFormat, max_length: int | None) -> Dataset:
    """Returns the rows that `make` builds from a split, with labels."""
    history = split_rows(split, "history")
    target = split_rows(split, "targets")
    users = split_users(split)
    tokens, is_target, source = make(history, target, users, prompt_format, max_length)
    if not len(tokens):
        raise ValueError(
            f"the {split.split} split has no targets, because no user has more than one interaction; use more data"
        )
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
    """Returns one row per target."""
    # 1. Limit the number of items before a target, because the prefixes of a long history take memory quadratic in its
    # length. The limit assumes that all items are as short as the shortest, so no item that could fit is dropped.
    room = prompt_format.room(max_length)
    if room is not None:
        most = room // int(prompt_format.pieces.lengths.min())
        max_history = most if max_history is None else min(max_history, most)

    # 2. Take the items before each target from the user's sequence.
    source = target.row_ids  # (num_targets,)
    stop = history.lengths[source] + within(target.lengths)  # position of the target in the user's sequence
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
    """Returns one row per sequence, or several windows of a sequence that is too long."""
    if not prompt_format.is_compact:
        raise ValueError(
            "targets='all' needs items written without text between them: the surface item_token or semantic_id"
        )

    # 1. Choose the width of a window in items, and the step between windows, so that they overlap by half.
    items = join(history, target)
    room = prompt_format.room(max_length)
    if room is None:
        width = int(items.lengths.max(initial=1))
    else:
        # The longest completion is already subtracted from `room`. Here the completion is the last item of the window,
        # so one more item fits.
        width = room // int(prompt_format.paths.lengths.max()) + 1
    step = width - width // 2

    # 2. Cut each sequence that has a target into windows.
    source = np.flatnonzero(target.lengths > 0)
    num_windows = 1 + np.maximum(-(-(items.lengths[source] - width) // step), 0)  # rounded up
    source = np.repeat(source, num_windows)
    number = within(num_windows)  # index of a window in its sequence, from 0
    start = number * step
    stop = np.minimum(start + width, items.lengths[source])
    window = items.take(source).slice(start, stop)

    # 3. In each window, find the items that are targets and were not trained in the previous window.
    trained_before = np.where(number > 0, start + width - step, 0)
    first_target = np.maximum(trained_before, history.lengths[source])
    position = within(window.lengths) + np.repeat(start, window.lengths)
    item_is_target = position >= np.repeat(first_target, window.lengths)

    # 4. Write the head and the items as tokens.
    pieces = window.flatten(prompt_format.paths)
    heads = prompt_format.encode_heads(len(window), users[source])
    token_is_target = np.repeat(item_is_target, prompt_format.paths.lengths[window.values])
    never = Ragged(np.zeros(len(heads.values), bool), heads.offsets)
    is_target = join(never, Ragged(token_is_target, pieces.offsets)).values
    return join(heads, pieces), is_target, source
