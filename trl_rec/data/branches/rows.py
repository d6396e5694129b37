"""Builds rows with one branch per target (see `structure.py`).

Such a row begins with a trunk: the head of the prompt, and the history. A branch contains the tail of the prompt and
tokens of one target. It continues the part of the trunk that ends with the item before this target.

First, each sequence (a user's history and the targets after it) is cut into windows that are short enough for one
prompt. Then each window becomes a row, or several rows if it needs more columns (one per token) than a row may have.
"""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

import numpy as np

from trl_rec.data.branches.structure import IGNORED, Branches
from trl_rec.data.prompts import PromptFormat
from trl_rec.ragged import Ragged, join, within


class HistoryWindows(NamedTuple):
    """Windows, each of which is a part of a sequence of items. Each array has one entry per window.

    The targets of a window are the items `first` to `last` of its sequence, both included. The history of a target
    consists of the items from `start` up to the item before the target.

    Args:
        source (`np.ndarray`): Index of the sequence.
        start (`np.ndarray`): Position in the sequence at which the histories begin.
        first (`np.ndarray`): Position, in the sequence, of the window's first target.
        last (`np.ndarray`): Position, in the sequence, of the window's last target.
    """

    source: np.ndarray
    start: np.ndarray
    first: np.ndarray
    last: np.ndarray

    def where(self, kept: np.ndarray) -> HistoryWindows:
        """Returns the windows where `kept` is True."""
        return HistoryWindows(*(values[kept] for values in self))

    def targets(self) -> tuple[np.ndarray, np.ndarray]:
        """Returns, for each target, its window and its position in the sequence, `(num_targets,)` each."""
        counts = self.last - self.first + 1
        return np.repeat(np.arange(len(counts)), counts), np.repeat(self.first, counts) + within(counts)


class Limits:
    """Computes which items of a sequence fit into a prompt.

    Args:
        items (`Ragged`): The sequences.
        piece_lengths (`np.ndarray`): Number of tokens of each item in a history, with the separator before it.
        room (`int`, *optional*): Maximum number of tokens of a history, including a separator before every item.
        max_history (`int`, *optional*): Maximum number of items of a history.
    """

    def __init__(self, items: Ragged, piece_lengths: np.ndarray, room: int | None, max_history: int | None) -> None:
        self.offsets = items.offsets
        # tokens[i] is the number of tokens before entry i of `items.values`.
        self.tokens = np.concatenate([[0], np.cumsum(piece_lengths[items.values])])
        self.room = int(self.tokens[-1]) if room is None else room
        self.max_history = len(items.values) if max_history is None else max_history

    def length(self, source: np.ndarray, start: np.ndarray, stop: np.ndarray) -> np.ndarray:
        """Returns, for each sequence in `source`, the total number of tokens of its items `start` to `stop - 1`.

        The separator before each item is counted as well.
        """
        base = self.offsets[source]
        lengths: np.ndarray = self.tokens[base + stop] - self.tokens[base + start]
        return lengths

    def latest(self, source: np.ndarray, start: np.ndarray) -> np.ndarray:
        """Returns the position of the latest target whose history can begin at `start` and fit into a prompt.

        The returned position may be after the end of the sequence.
        """
        base = self.offsets[source]
        last = np.searchsorted(self.tokens, self.tokens[base + start] + self.room, side="right") - 1 - base
        latest: np.ndarray = np.minimum(last, start + self.max_history)
        return latest

    def earliest(self, source: np.ndarray, target: np.ndarray) -> np.ndarray:
        """Returns the earliest position from which the history of a target fits into a prompt."""
        base = self.offsets[source]
        start = np.searchsorted(self.tokens, self.tokens[base + target] - self.room, side="left") - base
        earliest: np.ndarray = np.maximum(np.maximum(start, target - self.max_history), 0)
        return earliest

    def half(self, source: np.ndarray, target: np.ndarray) -> np.ndarray:
        """Returns the latest position from which the history of a target is still long enough.

        A history is long enough if it has at least half of `room` tokens, or at least half of `max_history` items.
        """
        base = self.offsets[source]
        by_tokens = np.searchsorted(self.tokens, self.tokens[base + target] - self.room / 2, side="right") - base
        by_items = target - (self.max_history + 1) // 2 + 1
        # A history has too few tokens if it begins at `by_tokens` or later, and too few items if it begins at
        # `by_items` or later. From the later of the two positions on, it has both too few tokens and too few items, so
        # the latest valid start is one item earlier.
        start: np.ndarray = np.maximum(np.maximum(by_tokens, by_items) - 1, 0)
        return start


def whole_histories(
    num_known: np.ndarray, lengths: np.ndarray, limits: Limits
) -> tuple[HistoryWindows, HistoryWindows]:
    """Returns the targets whose whole history fits into a prompt, and the remaining targets.

    Both are returned as windows. A sequence has at most one window of each kind. The windows of the remaining targets
    still begin at the first item of their sequence, so their histories are too long for a prompt. [`cut`] can cut
    these windows into shorter ones.

    Args:
        num_known: For each sequence, the number of items at its beginning that are not targets.
        lengths: For each sequence, its number of items.
        limits: The limits of a prompt.
    """
    source = np.flatnonzero(lengths > num_known)
    start = np.zeros_like(source)
    first = num_known[source]
    end = lengths[source] - 1
    last = np.minimum(limits.latest(source, start), end)
    whole = HistoryWindows(source, start, first, last)
    rest = HistoryWindows(source, start, np.maximum(first, last + 1), end)
    return whole.where(whole.last >= whole.first), rest.where(rest.last >= rest.first)


def cut(rest: HistoryWindows, limits: Limits) -> HistoryWindows:
    """Cuts windows that are too long into shorter ones.

    The shorter windows share no targets, but each repeats about half a prompt of earlier items as history. Unless one
    more item would exceed the limits, the history of a target has at least half as many tokens, or half as many items,
    as the limits allow. The last window of a sequence begins as early as the limits allow for the history of its last
    target.
    """
    source, _, first, end = rest
    parts = [rest.where(np.zeros(len(source), bool))]  # an empty part, because `joined` needs at least one part
    while len(source):  # each pass makes one window per sequence that is not yet cut completely
        start = np.maximum(limits.half(source, first), limits.earliest(source, first))
        start = np.minimum(start, limits.earliest(source, end))
        last = np.minimum(limits.latest(source, start), end)
        parts.append(HistoryWindows(source, start, first, last))

        unfinished = last < end
        source = source[unfinished]
        end = end[unfinished]
        first = last[unfinished] + 1
    return joined(*parts)


def joined(*parts: HistoryWindows) -> HistoryWindows:
    """Joins several groups of windows into one, sorted by sequence and then by target."""
    windows = HistoryWindows(*(np.concatenate(values) for values in zip(*parts, strict=True)))
    return windows.where(np.lexsort((windows.first, windows.source)))


class BranchRows(NamedTuple):
    """Rows with branches: their tokens and labels, the sequence that each row was made from, and the branches."""

    tokens: Ragged
    labels: np.ndarray
    source: np.ndarray
    branches: Branches


def write_branches(
    items: Ragged,
    windows: HistoryWindows,
    limits: Limits,
    users: np.ndarray,
    prompt_format: PromptFormat,
    learned_lengths: np.ndarray,
    max_columns: int | None,
) -> BranchRows:
    """Writes windows as rows with branches.

    Args:
        items: The sequences.
        windows: The windows.
        limits: The limits of a prompt.
        users: The user of each sequence.
        prompt_format: How prompts and targets are written.
        learned_lengths: For each item, the number of learned tokens at the beginning of its path (its tokens as a
            target). Learned tokens are those that serve as labels. A target without learned tokens gets no branch.
        max_columns: Maximum number of columns of a row. If a window needs more columns, it is divided into several
            rows, each of which contains some of the targets and their histories.
    """
    # 1. Find the N targets with at least one learned token. Each of them gets a branch.
    window, position = windows.targets()
    target = items.values[items.offsets[windows.source[window]] + position]
    learned = learned_lengths[target]
    kept = learned > 0
    window, position, target, learned = window[kept], position[kept], target[kept], learned[kept]
    source = windows.source[window]
    heads = prompt_format.encode_heads(len(windows.source), users[windows.source])
    # The first item of a history has no separator before it. A history may also be empty.
    separated = limits.length(source, windows.start[window], position)
    prefixes = heads.lengths[window] + np.maximum(separated - len(prompt_format.separator), 0)
    tail = prompt_format.prompt_tail
    lengths = len(tail) + learned - 1  # the last learned token is only a label

    # 2. Divide the branches among rows. The last learned token of a branch is the label of the column that follows the
    # branch. No column follows the last branch of a row, so this branch gets one more: the last learned token itself.
    begins = _begins(prefixes, lengths, window, max_columns)
    firsts = np.flatnonzero(begins)
    bounds = np.append(firsts, len(begins))
    counts = np.diff(bounds)
    lasts = bounds[1:] - 1
    lengths[lasts] += 1

    # 3. Write the tokens: head, history, branches.
    trunk = items.pieces(source[firsts], windows.start[window[firsts]], position[lasts])
    paths = prompt_format.paths.take(target)
    written = join(Ragged.repeated(tail, len(target)), paths.head(lengths - len(tail)))
    branch_tokens = Ragged(written.values, written.offsets[bounds])
    tokens = join(heads.take(window[firsts]), prompt_format.encode_histories(trunk), branch_tokens)
    branches = Branches(tokens.lengths, Ragged.from_lengths(prefixes, counts), Ragged.from_lengths(lengths, counts))

    # 4. Write the labels. They are shifted as in Transformers: column c predicts the label at column c + 1. If the
    # tail is empty, the first token of the path is predicted by the last trunk column that the branch continues.
    row_starts = np.repeat(branches.row_starts(), counts)
    places = np.repeat(row_starts + branches.firsts() + len(tail), learned) + within(learned)
    if not len(tail):
        places[within(learned) == 0] = row_starts + prefixes
    labels = np.full(len(tokens.values), IGNORED)
    labels[places] = paths.head(learned).values
    return BranchRows(tokens, labels, source[firsts], branches)


def _begins(prefixes: np.ndarray, lengths: np.ndarray, window: np.ndarray, max_columns: int | None) -> np.ndarray:
    """Returns a mask `(N,)` of the branches that begin a row.

    A row contains branches of one window, as many as fit into `max_columns` but at least one.
    """
    begins = np.diff(window, prepend=-1) > 0
    if max_columns is None:
        return begins

    # Let `ends` be the cumulative sum of the branch lengths. A row of the branches i to j has prefixes[j] columns (its
    # trunk) + ends[j] - ends[i - 1] (its branches) + 1 (the last token of its last branch). Within a window,
    # prefixes[j] + ends[j] ascends with j. Adding window * step makes the sum ascend across windows, so that each call
    # of `searchsorted` finds the end of the current row in every window at once.
    ends = np.cumsum(lengths)
    step = prefixes.max(initial=0) + 1
    needed = prefixes + ends + 1 + window * step
    starts = np.flatnonzero(begins)
    stops = np.append(starts[1:], len(begins))
    while len(starts):  # each pass begins one row per window that has branches left
        begins[starts] = True
        bound = max_columns + ends[starts] - lengths[starts] + window[starts] * step
        following = np.searchsorted(needed, bound, side="right").clip(starts + 1, stops)
        starts = following[following < stops]
        stops = stops[following < stops]
    return begins


def without_branches(tokens: Ragged, labels: np.ndarray, source: np.ndarray) -> BranchRows:
    """Returns ordinary rows, which have no branches."""
    none = Ragged(np.empty(0, np.int64), np.zeros(len(tokens) + 1, np.int64))
    return BranchRows(tokens, labels, source, Branches(tokens.lengths, none, none))


def concatenated(*parts: BranchRows) -> BranchRows:
    """Returns the rows of all parts, in the order of their sequences."""
    source = np.concatenate([part.source for part in parts])
    order = np.argsort(source, kind="stable")
    tokens = _stacked([part.tokens for part in parts])
    labels = replace(tokens, values=np.concatenate([part.labels for part in parts]))
    prefixes = _stacked([part.branches.prefixes for part in parts])
    lengths = _stacked([part.branches.lengths for part in parts])
    branches = Branches(tokens.lengths[order], prefixes.take(order), lengths.take(order))
    return BranchRows(tokens.take(order), labels.take(order).values, source[order], branches)


def _stacked(parts: list[Ragged]) -> Ragged:
    """Returns the rows of all parts, one part after the other."""
    values = np.concatenate([part.values for part in parts])
    return Ragged.from_lengths(values, np.concatenate([part.lengths for part in parts]))
