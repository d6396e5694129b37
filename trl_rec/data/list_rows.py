"""Rows whose completion is a list: the items that a user chooses next, in order, one after the other.

An item that the user has chosen before is passed over, within the list as before it, so that a list holds distinct
items and none of its history: what can be sampled when histories are excluded. Prompts still tell of every choice. A
list that the user's sequence cuts short is kept, and does not end in EOS: only its beginning is known.
"""

from __future__ import annotations

import numpy as np
import pyarrow as pa
from datasets import Dataset

from trl_rec.data.dataset import check_is_train, split_rows, split_users
from trl_rec.data.prompts import PromptFormat
from trl_rec.data.rows import IGNORED
from trl_rec.ragged import Ragged, join, within


def build_list_rows(
    split: Dataset, prompt_format: PromptFormat, *, every_position: bool = False, max_length: int | None = None
) -> Dataset:
    """Training rows of a training split, in each the next `prompt_format.list_length` items.

    Args:
        split: `RecDataset.train`. The validation and test splits are refused.
        prompt_format: How histories and lists are written, made with a `list_length`.
        every_position (*optional*, defaults to `False`): Whether a list begins at every target, rather than where the
            list before it ends.
        max_length (*optional*): Most tokens of a row, the longest list assumed; the oldest history goes first.

    Returns:
        `datasets.Dataset` with `input_ids`, `labels` (-100 in the prompt), `user`, `history` (all items before the
        list) and `items` (those of the list, at least one and at most `list_length`).
    """
    prompts, before, items, users = _prompts(split, prompt_format, every_position, max_length)
    columns = {
        **_learned(prompts, items, prompt_format),
        "user": users,
        "history": before.to_arrow(),
        "items": items.to_arrow(),
    }
    return Dataset(pa.table(columns), split=split.split)


def build_list_prompts(
    split: Dataset, prompt_format: PromptFormat, *, every_position: bool = False, max_length: int | None = None
) -> Dataset:
    """The same prompts without completions, for a policy that draws its own lists: `prompt_ids`, `user`, `history`,
    and `targets`, the items that [`build_list_rows`] would have it learn. The arguments are the same."""
    prompts, before, items, users = _prompts(split, prompt_format, every_position, max_length)
    columns = {
        "prompt_ids": prompts.to_arrow(),
        "user": users,
        "history": before.to_arrow(),
        "targets": items.to_arrow(),
    }
    return Dataset(pa.table(columns), split=split.split)


def complete_list_prompts(prompts: Dataset, items: Ragged, prompt_format: PromptFormat) -> Dataset:
    """Training rows of [`build_list_prompts`]' prompts and other lists than the users' own, such as the best of
    several drawn.

    Args:
        prompts: `prompt_ids`, `user` and `history`.
        items: A list for each of them.
        prompt_format: As the prompts were made with.
    """
    columns = {**_learned(split_rows(prompts, "prompt_ids"), items, prompt_format), "items": items.to_arrow()}
    columns |= {name: prompts.with_format("arrow")[:][name] for name in ("user", "history")}
    return Dataset(pa.table(columns), split=prompts.split)


def evaluation_list_rows(split: Dataset, prompt_format: PromptFormat, *, max_length: int | None = None) -> Dataset:
    """One row a user: the list of the first new items that the user goes on to choose, at most
    `prompt_format.list_length`.

    Args:
        split: A split of a `RecDataset`. Users who only come back to known items have no row.
        prompt_format: How histories and lists are written, made with a `list_length`.
        max_length (*optional*): As in [`build_list_rows`], and so are the columns of the rows.
    """
    items = list_targets(split, prompt_format.list_length or 1)
    rows = np.flatnonzero(items.lengths > 0)
    if not len(rows):
        raise ValueError(
            f"no user of the {split.split} split goes on to choose a new item; there is no list to measure"
        )
    histories, users = split_rows(split, "history").take(rows), split_users(split)[rows]
    columns = {
        "prompt_ids": prompt_format.encode(histories, users, max_length=max_length).to_arrow(),
        "user": pa.array(users),
        "history": histories.to_arrow(),
    }
    return complete_list_prompts(Dataset(pa.table(columns), split=split.split), items.take(rows), prompt_format)


def list_targets(split: Dataset, list_length: int) -> Ragged:
    """Row `i`: what the user of the split's row `i` goes on to choose: the first new items, at most `list_length`, in
    order. A row is empty where the user only comes back to known items."""
    targets = split_rows(split, "targets")
    new = new_targets(split_rows(split, "history"), targets)
    kept = Ragged.from_lengths(targets.values[new], np.bincount(targets.row_ids[new], minlength=len(targets)))
    return kept.slice(0 * kept.lengths, np.minimum(kept.lengths, list_length))


def _prompts(
    split: Dataset, prompt_format: PromptFormat, every_position: bool, max_length: int | None
) -> tuple[Ragged, Ragged, Ragged, pa.Array]:
    """Prompts, the items that each tells of, those of the list after it, and the user."""
    check_is_train(split, "a model")
    length = _list_length(prompt_format)
    before, items, source = _windows(split, length, 1 if every_position else length)
    if int(items.lengths.max(initial=0)) < length:
        raise ValueError(
            f"no user of the {split.split} split goes on to choose {length} new items in one row; lower list_length, or "
            "prepare sequences rather than windows"
        )
    users = split_users(split)[source]
    return prompt_format.encode(before, users, max_length=max_length), before, items, pa.array(users)


def _learned(prompts: Ragged, items: Ragged, prompt_format: PromptFormat) -> dict[str, pa.Array]:
    """`input_ids` and `labels` of prompts and lists; whole lists end in EOS."""
    whole = items.lengths == prompt_format.list_length
    ends = Ragged.from_lengths(np.tile(prompt_format.end, int(whole.sum())), whole * len(prompt_format.end))
    tokens = join(prompts, items.flatten(prompt_format.paths), ends)
    learned = within(tokens.lengths) >= np.repeat(prompts.lengths, tokens.lengths)
    labels = Ragged(np.where(learned, tokens.values, IGNORED), tokens.offsets)
    return {"input_ids": tokens.to_arrow(), "labels": labels.to_arrow()}


def _windows(split: Dataset, length: int, stride: int) -> tuple[Ragged, Ragged, np.ndarray]:
    """All items before each list, the items of each list, and the split's row of each."""
    history, targets = split_rows(split, "history"), split_rows(split, "targets")
    new = np.flatnonzero(new_targets(history, targets))
    counts = np.bincount(targets.row_ids[new], minlength=len(targets))
    items, place = Ragged.from_lengths(targets.values[new], counts), within(targets.lengths)[new]
    lists = -(-counts // stride)
    source, start = np.repeat(np.arange(len(targets)), lists), within(lists) * stride
    chosen = items.take(source).slice(start, np.minimum(start + length, counts[source]))
    stop = history.lengths[source] + place[items.offsets[:-1][source] + start]
    return join(history, targets).take(source).slice(0 * stop, stop), chosen, source


def new_targets(history: Ragged, targets: Ragged) -> np.ndarray:
    """Of all targets, which are the user's first choice of the item in the row."""
    sequences = join(history, targets)
    order = np.lexsort((sequences.values, sequences.row_ids))  # stable: equal items of a row in time order
    first = np.ones(len(order), bool)
    row, item = sequences.row_ids[order], sequences.values[order]
    first[1:] = (row[1:] != row[:-1]) | (item[1:] != item[:-1])
    is_new = np.empty(len(order), bool)
    is_new[order] = first
    return is_new[within(sequences.lengths) >= history.lengths[sequences.row_ids]]


def _list_length(prompt_format: PromptFormat) -> int:
    if prompt_format.list_length is None:
        raise ValueError(
            "the prompt format is one of single items; make it with PromptFormat.for_catalog(..., list_length=...)"
        )
    return prompt_format.list_length
