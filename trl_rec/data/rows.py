"""Builds rows for next-item training: `input_ids` and `labels` for `SFTTrainer` and [`BearTrainer`].

- `targets="last"` makes one row per target, with this target at the end: a prompt with the history, and the target as
  completion.
- `targets="all"` makes one row per sequence (a history and all targets after it), so that one forward pass trains all
  of these targets. In a compact format (item tokens or semantic IDs, without text between or after the items), the row
  contains the items of the sequence once, and each target is predicted from the items before it. In all other formats,
  rows have a branch per target (see `branches/structure.py`). Only [`BearTrainer`] can read rows with branches.

A row contains items of one user only, and is never cut inside an item. Rows are built with array operations on
[`Ragged`], without a Python loop over interactions.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Literal, get_args

import numpy as np
import pyarrow as pa
from datasets import Dataset

from trl_rec.data.branches.joining import join_windows as join_rows
from trl_rec.data.branches.rows import (
    BranchRows,
    HistoryWindows,
    Limits,
    concatenated,
    cut,
    joined,
    whole_histories,
    without_branches,
    write_branches,
)
from trl_rec.data.branches.structure import COLUMNS, IGNORED
from trl_rec.data.dataset import check_is_train, split_rows, split_users
from trl_rec.data.prompts import PromptFormat
from trl_rec.ragged import Ragged, join, within


if TYPE_CHECKING:
    from trl_rec.items.trie import TokenTrie


logger = logging.getLogger(__name__)
LongHistories = Literal["windows", "rows"]


def build_rows(
    split: Dataset,
    prompt_format: PromptFormat,
    *,
    targets: str = "last",
    max_length: int | None = None,
    max_history: int | None = None,
    long_histories: LongHistories = "windows",
    max_row_tokens: int | None = None,
    join_windows: bool = False,
    trie: TokenTrie | None = None,
) -> Dataset:
    """Returns the training rows of a training split.

    Args:
        split: `RecDataset.train`; the validation and test splits are refused.
        prompt_format: How prompts and targets are written.
        targets (*optional*, defaults to `"last"`): `"last"` makes one row per target, with all earlier items as
            history. `"all"` makes one row per sequence. Each target is then predicted from the same tokens as with
            `"last"`, except that long histories may be cut shorter than with `"last"` (see `long_histories`).
        max_length (*optional*): Maximum number of tokens of a prompt and the longest completion together. With
            `"last"`, the oldest items of a history that is too long are dropped. With `"all"`, see `long_histories`.
        max_history (*optional*): Maximum number of items before a target. Histories with more items are shortened or
            cut in the same way as histories that exceed `max_length`.
        long_histories (*optional*, defaults to `"windows"`): With `targets="all"`, what happens to a target whose
            history exceeds `max_length` or `max_history`. With `"windows"`, the sequence is cut into rows that overlap
            by half, so the history of the target is still at least half as long as the limits allow. With `"rows"`,
            the target gets a row of its own, as with `targets="last"`. Each target is trained once in either case. In
            a compact format, `"windows"` makes rows with a fixed number of items, computed as if every item had the
            longest path. If paths have different lengths, it may therefore also cut a history that fits into
            `max_length`.
        max_row_tokens (*optional*): With `targets="all"`, maximum number of tokens of a row with branches. If the
            targets of a sequence need more tokens, they are divided among several rows. A row with a single target
            may be longer.
        join_windows (*optional*, defaults to `False`): Whether successive rows of a user in `split` are joined into
            one sequence (see `branches/joining.py`). Use it with `targets="all"` if each row of `split` is a window
            (a history and its target), as in BIGRec's files.
        trie (*optional*): Trie of the catalogue. Pass it if the loss is a softmax over legal tokens. A forced token
            (the only legal token at its position) then has the loss 0, so branches leave out the forced tokens at the
            end of a path.

    Returns:
        `datasets.Dataset` with `input_ids`, `labels` (-100 for tokens that are excluded from the loss) and `user`.
        Rows with branches also have `branch_prefixes` and `branch_lengths`, the arguments `prefixes` and `lengths` of
        [`Branches`].
    """
    check_is_train(split, "models")
    if long_histories not in get_args(LongHistories):
        raise ValueError(f"long_histories must be 'windows' or 'rows', not {long_histories!r}")
    history = split_rows(split, "history")
    target = split_rows(split, "targets")
    users = split_users(split)
    if join_windows:
        count = len(users)
        history, target, users = join_rows(history, target, users)
        logger.info("joined %d windows into %d sequences", count, len(users))

    limits = {"max_length": max_length, "max_history": max_history}
    if targets == "last":
        rows = _last_targets(history, target, users, prompt_format, **limits)
        return _to_dataset(rows, users, split)
    if targets != "all":
        raise ValueError(f"targets must be 'last' or 'all', not {targets!r}")
    if prompt_format.is_compact:
        rows = _compact_rows(history, target, users, prompt_format, long_histories, **limits)
        return _to_dataset(rows, users, split)
    rows = _rows_with_branches(history, target, users, prompt_format, long_histories, max_row_tokens, trie, **limits)
    return _to_dataset(rows, users, split, with_branches=True)


def evaluation_rows(
    split: Dataset, prompt_format: PromptFormat, *, max_length: int | None = None, max_history: int | None = None
) -> Dataset:
    """Returns one row per target, for measuring the loss on a validation or test split. Never train on these rows."""
    history = split_rows(split, "history")
    target = split_rows(split, "targets")
    users = split_users(split)
    rows = _last_targets(history, target, users, prompt_format, max_length=max_length, max_history=max_history)
    return _to_dataset(rows, users, split)


def _to_dataset(rows: BranchRows, users: np.ndarray, split: Dataset, *, with_branches: bool = False) -> Dataset:
    if not len(rows.tokens):
        raise ValueError(
            "there are no rows, because the split contains no targets; use more data (a user's first interaction in "
            "the training split is not a target)"
        )
    columns = {
        "input_ids": rows.tokens.to_arrow(),
        "labels": Ragged(rows.labels, rows.tokens.offsets).to_arrow(),
        "user": pa.array(users[rows.source]),
    }
    if with_branches:
        columns |= dict(
            zip(COLUMNS, (rows.branches.prefixes.to_arrow(), rows.branches.lengths.to_arrow()), strict=True)
        )
    return Dataset(pa.table(columns), split=split.split)


def _last_targets(
    history: Ragged,
    target: Ragged,
    users: np.ndarray,
    prompt_format: PromptFormat,
    *,
    max_length: int | None,
    max_history: int | None,
) -> BranchRows:
    """Returns one row per target."""
    source = target.row_ids  # (num_targets,)
    stop = history.lengths[source] + within(target.lengths)  # position of the target in the user's sequence
    return _one_by_one(join(history, target), source, stop, users, prompt_format, max_length, max_history)


def _one_by_one(
    items: Ragged,
    source: np.ndarray,
    stop: np.ndarray,
    users: np.ndarray,
    prompt_format: PromptFormat,
    max_length: int | None,
    max_history: int | None,
) -> BranchRows:
    """Returns one row per target, for the targets at the positions `stop` of the sequences `source`."""
    # 1. Limit the number of items before a target. Without a limit, the histories of all targets of a long sequence
    # would together take memory quadratic in its length. The limit assumes that all items are as short as the
    # shortest, so no item that could fit is dropped.
    room = prompt_format.room(max_length)
    if room is not None:
        most = room // int(prompt_format.piece_lengths.min())
        max_history = most if max_history is None else min(max_history, most)

    # 2. Take the items before each target from the user's sequence.
    start = np.zeros_like(stop) if max_history is None else np.maximum(stop - max_history, 0)
    before = items.pieces(source, start, stop)

    # 3. Write prompts and completions.
    prompts = prompt_format.encode(before, users[source], max_length=max_length)
    completions = prompt_format.paths.take(items.values[items.offsets[source] + stop])
    tokens = join(prompts, completions)
    is_target = within(tokens.lengths) >= np.repeat(prompts.lengths, tokens.lengths)
    return without_branches(tokens, np.where(is_target, tokens.values, IGNORED), source)


def _rows_with_branches(
    history: Ragged,
    target: Ragged,
    users: np.ndarray,
    prompt_format: PromptFormat,
    long_histories: str,
    max_row_tokens: int | None,
    trie: TokenTrie | None,
    *,
    max_length: int | None,
    max_history: int | None,
) -> BranchRows:
    """Returns one row per sequence, with a branch per target. A sequence that is too long gets several rows."""
    if prompt_format.list_length is not None:
        raise ValueError(
            "targets='all' with list_length requires the surface item_token or semantic_id, and a prompt without text "
            "between or after the items; choose such a surface and prompt, or set targets to 'last' (and "
            "every_position to true, if a list should begin at every new target)"
        )
    # 1. Divide the targets into those whose whole history fits into a prompt, and the rest.
    items = join(history, target)
    limits = Limits(items, prompt_format.piece_lengths, prompt_format.room(max_length), max_history)
    windows, rest = whole_histories(history.lengths, items.lengths, limits)
    _log_long_histories(rest, long_histories)

    # 2. Write the rows. Depending on `long_histories`, the targets in `rest` become further windows with branches, or
    # one row each without branches.
    learned = prompt_format.paths.lengths
    if trie is not None:
        learned = _unforced_lengths(prompt_format.paths, trie)
    if long_histories == "windows":
        windows = joined(windows, cut(rest, limits))
    rows = write_branches(items, windows, limits, users, prompt_format, learned, max_row_tokens)
    if long_histories == "windows":
        return rows
    return concatenated(rows, _separate(rest, items, users, prompt_format, max_length, max_history))


def _unforced_lengths(paths: Ragged, trie: TokenTrie) -> np.ndarray:
    """Returns the number of tokens of each path up to and including its last token that is not forced."""
    import torch  # imported here, because everything else in this module works without torch

    lengths: np.ndarray = trie.to("cpu").unforced_lengths(torch.from_numpy(paths.padded())).numpy()
    return lengths


def _separate(
    windows: HistoryWindows,
    items: Ragged,
    users: np.ndarray,
    prompt_format: PromptFormat,
    max_length: int | None,
    max_history: int | None,
) -> BranchRows:
    """Returns one row per target of the windows."""
    window, position = windows.targets()
    return _one_by_one(items, windows.source[window], position, users, prompt_format, max_length, max_history)


def _log_long_histories(rest: HistoryWindows, long_histories: str) -> None:
    count = int((rest.last - rest.first + 1).sum())
    if long_histories == "windows":
        consequence = "these targets are predicted from the newest items of their histories"
    else:
        consequence = "each of these targets gets a row of its own"
    if count:
        logger.info("the history of %d targets exceeds max_length or max_history; %s", count, consequence)


def _compact_rows(
    history: Ragged,
    target: Ragged,
    users: np.ndarray,
    prompt_format: PromptFormat,
    long_histories: str,
    *,
    max_length: int | None,
    max_history: int | None,
) -> BranchRows:
    """Returns one row per sequence, in a compact format. A sequence that is too long gets several rows."""
    items = join(history, target)
    if long_histories == "windows":
        windows = _equal_windows(history, items, target, prompt_format, max_length, max_history)
        _log_long_histories(windows.where(windows.start > 0), long_histories)
        return _write_compact(items, windows, users, prompt_format)

    limits = Limits(items, prompt_format.piece_lengths, prompt_format.room(max_length), max_history)
    windows, rest = whole_histories(history.lengths, items.lengths, limits)
    _log_long_histories(rest, long_histories)
    rows = _write_compact(items, windows, users, prompt_format)
    return concatenated(rows, _separate(rest, items, users, prompt_format, max_length, max_history))


def _equal_windows(
    history: Ragged,
    items: Ragged,
    target: Ragged,
    prompt_format: PromptFormat,
    max_length: int | None,
    max_history: int | None,
) -> HistoryWindows:
    """Cuts each sequence that has a target into windows that have the same number of items and overlap by half.

    The last window of a sequence may be shorter.
    """
    # 1. Choose the width of a window in items, and the step between windows.
    width = int(items.lengths.max(initial=1)) if max_history is None else max_history + 1
    room = prompt_format.room(max_length)
    if room is not None:
        # Assume that every item has the longest path. The longest completion is already subtracted from `room`. Here
        # the completion is the last item of the window, so one more item fits.
        most = room // int(prompt_format.paths.lengths.max()) + 1
        width = most if max_history is None else min(width, most)
    step = width - width // 2

    # 2. Cut the sequences.
    source = np.flatnonzero(target.lengths > 0)
    num_windows = 1 + np.maximum(-(-(items.lengths[source] - width) // step), 0)  # rounded up
    source = np.repeat(source, num_windows)
    number = within(num_windows)  # index of a window in its sequence, from 0
    start = number * step
    stop = np.minimum(start + width, items.lengths[source])

    # 3. In each window, find the items that are targets and were not trained in the previous window.
    trained_before = np.where(number > 0, start + width - step, 0)
    first = np.maximum(trained_before, history.lengths[source])

    # 4. Leave out windows that lie in the history, because they have no targets.
    return HistoryWindows(source, start, first, stop - 1).where(first < stop)


def _write_compact(
    items: Ragged, windows: HistoryWindows, users: np.ndarray, prompt_format: PromptFormat
) -> BranchRows:
    """Writes each window as a row: the head of the prompt (the text before the items), and then the items."""
    # 1. Take the items of each window, and mark those that are targets.
    source, start, first, last = windows
    window_items = items.pieces(source, start, last + 1)
    position = within(window_items.lengths) + np.repeat(start, window_items.lengths)  # in the sequence
    item_is_target = position >= np.repeat(first, window_items.lengths)

    # 2. Write the tokens of head and items. Only the tokens of targets are labelled.
    heads = prompt_format.encode_heads(len(window_items), users[source])
    pieces = window_items.flatten(prompt_format.paths)
    tokens = join(heads, pieces)
    in_heads = Ragged(np.zeros(len(heads.values), bool), heads.offsets)
    in_pieces = np.repeat(item_is_target, prompt_format.paths.lengths[window_items.values])
    is_target = join(in_heads, Ragged(in_pieces, pieces.offsets)).values
    return without_branches(tokens, np.where(is_target, tokens.values, IGNORED), source)
