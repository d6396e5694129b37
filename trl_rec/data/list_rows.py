"""Builds rows whose completion is a list: the next few items that a user chooses for the first time, in order.

A list contains only new items: items that the user has not chosen before. Its items are therefore distinct, and none
of them is in the history. The lists that a model samples have the same two properties if decoding excludes the items
of the history. The history in the prompt contains every item as often as the user chose it.

A list near the end of a user's items may have fewer than `list_length` items. Such a list does not end in EOS, because
the remaining items of a full list are unknown.

If items are written as titles, twins (items with the same title) count as one item.
"""

from __future__ import annotations

import numpy as np
import pyarrow as pa
from datasets import Dataset

from trl_rec.data.branches.structure import IGNORED
from trl_rec.data.dataset import check_is_train, split_rows, split_users
from trl_rec.data.prompts import PromptFormat
from trl_rec.items.twins import Twins
from trl_rec.ragged import Ragged, join, within


def build_list_rows(
    split: Dataset, prompt_format: PromptFormat, *, every_position: bool = False, max_length: int | None = None
) -> Dataset:
    """Returns training rows, each with a list of the next new items, at most `prompt_format.list_length` of them.

    Args:
        split: `RecDataset.train`; the validation and test splits are refused.
        prompt_format: How histories and lists are written. It must have a `list_length`.
        every_position (*optional*, defaults to `False`): Whether a list begins at every new target, so that lists
            overlap. By default a list begins where the previous list ends.
        max_length (*optional*): Maximum number of tokens of a prompt and the longest possible list together. If they
            are too long, the oldest items of the history are dropped.

    Returns:
        `datasets.Dataset` with `input_ids`, `labels` (-100 in the prompt), `user`, `history` (all items before the
        list) and `items` (the list, with 1 to `list_length` items).
    """
    prompts, before, items, users = _prompts(split, prompt_format, every_position, max_length)
    columns = {
        **_tokens_and_labels(prompts, items, prompt_format),
        "user": users,
        "history": before.to_arrow(),
        "items": items.to_arrow(),
    }
    return Dataset(pa.table(columns), split=split.split)


def build_list_prompts(
    split: Dataset, prompt_format: PromptFormat, *, every_position: bool = False, max_length: int | None = None
) -> Dataset:
    """Returns the prompts of [`build_list_rows`] without completions, for a policy that samples its own lists.

    The arguments are the same as for [`build_list_rows`].

    Returns:
        `datasets.Dataset` with `prompt_ids`, `user`, `history`, and `targets` (the list that the user chose).
    """
    prompts, before, items, users = _prompts(split, prompt_format, every_position, max_length)
    columns = {
        "prompt_ids": prompts.to_arrow(),
        "user": users,
        "history": before.to_arrow(),
        "targets": items.to_arrow(),
    }
    return Dataset(pa.table(columns), split=split.split)


def complete_list_prompts(prompts: Dataset, items: Ragged, prompt_format: PromptFormat) -> Dataset:
    """Returns training rows made from prompts and given lists, such as the best of several sampled lists.

    Args:
        prompts: Rows of [`build_list_prompts`], with `prompt_ids`, `user` and `history`.
        items: One list of items per prompt.
        prompt_format: The format of the prompts. It must have a `list_length`.

    Returns:
        `datasets.Dataset` with the columns of [`build_list_rows`].
    """
    kept = prompts.with_format("arrow")[:]
    columns = {
        **_tokens_and_labels(split_rows(prompts, "prompt_ids"), items, prompt_format),
        "items": items.to_arrow(),
        "user": kept["user"],
        "history": kept["history"],
    }
    return Dataset(pa.table(columns), split=prompts.split)


def evaluation_list_rows(split: Dataset, prompt_format: PromptFormat, *, max_length: int | None = None) -> Dataset:
    """Returns rows for measuring the loss on a validation or test split. Never train on these rows.

    Each row of the split becomes one row, whose list contains the first `list_length` new items among the targets.
    Rows of the split whose targets contain no new item are left out.

    Args:
        split: A split of a `RecDataset`.
        prompt_format: How histories and lists are written. It must have a `list_length`.
        max_length (*optional*): See [`build_list_rows`].

    Returns:
        `datasets.Dataset` with the columns of [`build_list_rows`].
    """
    items = list_targets(split, _list_length(prompt_format), prompt_format.twins)
    rows = np.flatnonzero(items.lengths > 0)
    if not len(rows):
        raise ValueError(
            f"no user of the {split.split} split chooses a new item, so there are no lists to evaluate; use more data"
        )
    histories = split_rows(split, "history").take(rows)
    users = split_users(split)[rows]
    columns = {
        "prompt_ids": prompt_format.encode(histories, users, max_length=max_length).to_arrow(),
        "user": pa.array(users),
        "history": histories.to_arrow(),
    }
    return complete_list_prompts(Dataset(pa.table(columns), split=split.split), items.take(rows), prompt_format)


def list_targets(split: Dataset, list_length: int, twins: Twins | None = None) -> Ragged:
    """Returns the first `list_length` new items among the targets of each row of a split.

    For a row with fewer new items, the list is shorter and may be empty. With `twins`, an item is new only if neither
    the item nor any of its twins occurs earlier in the row.
    """
    targets = split_rows(split, "targets")
    is_new = new_targets(split_rows(split, "history"), targets, twins)
    num_new = np.bincount(targets.row_ids[is_new], minlength=len(targets))
    return Ragged.from_lengths(targets.values[is_new], num_new).head(list_length)


def new_targets(history: Ragged, targets: Ragged, twins: Twins | None = None) -> np.ndarray:
    """Returns whether each target is new, as booleans `(len(targets.values),)`.

    A target is new if its item is neither in the history nor among the earlier targets of its row. With `twins`, all
    twins count as the same item.
    """
    sequences = join(history, targets)
    if twins is not None:
        sequences = Ragged(twins.groups[sequences.values], sequences.offsets)

    # After sorting by row and item, repetitions are neighbours. The sort is stable, so each item's earliest position
    # comes first.
    order = np.lexsort((sequences.values, sequences.row_ids))
    row = sequences.row_ids[order]
    item = sequences.values[order]
    first = np.ones(len(order), bool)
    first[1:] = (row[1:] != row[:-1]) | (item[1:] != item[:-1])
    is_new = np.empty(len(order), bool)
    is_new[order] = first

    is_target = within(sequences.lengths) >= history.lengths[sequences.row_ids]  # one boolean per item of `sequences`
    flags: np.ndarray = is_new[is_target]
    return flags


def _prompts(
    split: Dataset, prompt_format: PromptFormat, every_position: bool, max_length: int | None
) -> tuple[Ragged, Ragged, Ragged, pa.Array]:
    """Returns four values for each list: its prompt, the items before it, the items in it, and the user."""
    check_is_train(split, "models")
    length = _list_length(prompt_format)
    before, items, source = _cut_lists(split, length, 1 if every_position else length, prompt_format.twins)
    if int(items.lengths.max(initial=0)) < length:
        raise ValueError(
            f"no row of the {split.split} split contains {length} new items; lower list_length, or, if each row of "
            "the source is a window (a history and one target), prepare a table of the interactions instead"
        )
    users = split_users(split)[source]
    return prompt_format.encode(before, users, max_length=max_length), before, items, pa.array(users)


def _list_length(prompt_format: PromptFormat) -> int:
    """Returns the number of items of a complete list. Raises `ValueError` if the format is for single items."""
    if prompt_format.list_length is None:
        raise ValueError(
            "the prompt format is for single items; create it with PromptFormat.for_catalog(..., list_length=...)"
        )
    return prompt_format.list_length


def _cut_lists(split: Dataset, length: int, stride: int, twins: Twins | None) -> tuple[Ragged, Ragged, np.ndarray]:
    """Returns the items before each list, the items of each list, and the index of each list's row in the split.

    A list begins at every `stride`-th new target of a row.
    """
    # 1. Gather the new targets of each row, and their positions among all targets of the row.
    history = split_rows(split, "history")
    targets = split_rows(split, "targets")
    new = np.flatnonzero(new_targets(history, targets, twins))
    num_new = np.bincount(targets.row_ids[new], minlength=len(targets))  # per row of the split
    items = Ragged.from_lengths(targets.values[new], num_new)
    position = within(targets.lengths)[new]

    # 2. Cut the new targets of each row into lists.
    num_lists = -(-num_new // stride)  # rounded up
    source = np.repeat(np.arange(len(targets)), num_lists)
    start = within(num_lists) * stride
    lists = items.pieces(source, start, np.minimum(start + length, num_new[source]))

    # 3. Take all items before the first item of a list, including repeated items.
    first = position[items.offsets[:-1][source] + start]  # where each list begins among the targets of its row
    stop = history.lengths[source] + first
    before = join(history, targets).take(source).head(stop)
    return before, lists, source


def _tokens_and_labels(prompts: Ragged, items: Ragged, prompt_format: PromptFormat) -> dict[str, pa.Array]:
    """Returns the columns `input_ids` and `labels` of prompts and lists. Only lists of full length end in EOS."""
    is_complete = items.lengths == _list_length(prompt_format)
    ends = Ragged.from_lengths(
        np.tile(prompt_format.end, int(is_complete.sum())), is_complete * len(prompt_format.end)
    )
    tokens = join(prompts, items.flatten(prompt_format.paths), ends)
    is_completion = within(tokens.lengths) >= np.repeat(prompts.lengths, tokens.lengths)
    labels = Ragged(np.where(is_completion, tokens.values, IGNORED), tokens.offsets)
    return {"input_ids": tokens.to_arrow(), "labels": labels.to_arrow()}
