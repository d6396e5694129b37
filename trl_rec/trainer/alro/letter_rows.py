"""Builds training rows that teach which item a letter names, for a model that is trained from scratch.

A row lists some items of the training split with their letters, as ALRO's prompts list candidates. Then it repeats
pairs of an item and its letter, drawn with replacement, so that a letter cannot be guessed from those that are left.
In every second row, each pair ends with the letter, and the letters are labels: the model has to find an item in the
list and write its letter. In the other rows, each pair ends with the item, and the items are labels. Both directions
need the same step, which is to connect each listed item with the letter before it. In an experiment (see
docs/results.md), a small model learned from such rows to find the item of a letter, but not the letter of an item.
`benchmarks/letter_lookup.py` measures how often a model finds each of them.

A pretrained language model can already look up what a letter names. A small model from scratch does not learn this
from lists of candidates alone, because it would have to learn at the same time which items a user likes.
"""

from __future__ import annotations

import numpy as np
import pyarrow as pa
from datasets import Dataset

from trl_rec.data.branches.structure import IGNORED
from trl_rec.data.dataset import check_is_train, split_rows
from trl_rec.decoding.candidates.prompts import RatedPromptFormat
from trl_rec.ragged import Ragged, join


def build_letter_rows(
    split: Dataset,
    prompt_format: RatedPromptFormat,
    *,
    num_lists: int,
    num_candidates: int,
    max_length: int,
    seed: int = 0,
) -> Dataset:
    """Builds the rows, with the columns of [`build_rating_rows`].

    Args:
        split: `RecDataset.train`. The validation and test splits are refused.
        prompt_format: Format of lists. It must have letters.
        num_lists: Number of rows.
        num_candidates: Number of items per row. If the split has fewer items, each row lists all of them.
        max_length: Maximum number of tokens per row.
        seed (*optional*, defaults to `0`): Seed for drawing the items and the pairs of each row.
    """
    # 1. Draw the items of each row from the training split, and the pairs that are repeated.
    check_is_train(split, "models")
    if not len(prompt_format.letters):
        raise ValueError("letter_lists needs candidates that are named by letters; set letters to true")
    known = np.unique(np.concatenate([split_rows(split, name).values for name in ("history", "targets")]))
    count = min(num_candidates, len(known))
    draw = np.random.default_rng(seed)
    items = np.stack([draw.choice(known, count, replace=False) for _ in range(num_lists)])  # (num_lists, count)
    places = draw.integers(0, count, (num_lists, count))  # where the items of the pairs stand in the list

    # 2. Tokenize the lists.
    lists = Ragged.from_lengths(items.ravel(), np.full(num_lists, count))
    slots = Ragged.from_lengths(np.tile(np.arange(count), num_lists), np.full(num_lists, count))
    shown, names = prompt_format.encode_candidates(lists, slots)

    # 3. Tokenize the pairs. In every second row, the letter stands after its item and is the label. In the other rows,
    #    the letter stands before its item, and the item is the label.
    letters = np.take_along_axis(names.values.reshape(num_lists, count), places, 1).ravel()
    pair_items = prompt_format.items.take(np.take_along_axis(items, places, 1).ravel())
    is_first = np.repeat(np.arange(num_lists) % 2 == 1, count)  # (num_lists * count,): whether the letter is first
    before = Ragged.from_lengths(letters[is_first], is_first.astype(np.int64))
    after = Ragged.from_lengths(letters[~is_first], (~is_first).astype(np.int64))
    item_labels = np.where(is_first[pair_items.row_ids], pair_items.values, IGNORED)
    pairs = _per_row(join(before, pair_items, after), count)
    pair_labels = _per_row(join(_ignored(before), Ragged(item_labels, pair_items.offsets), after), count)

    # 4. Join the head of the prompt, the list and the pairs of each row.
    head = Ragged.repeated(prompt_format.prompt_head, num_lists)
    rows = join(head, shown, pairs)
    if rows.lengths.max() > max_length:
        raise ValueError(
            f"a row that teaches the letters of {count} items takes up to {rows.lengths.max()} tokens, but "
            f"rating_max_length is {max_length}; raise rating_max_length"
        )
    columns = {
        "input_ids": rows.to_arrow(),
        "labels": join(_ignored(head), _ignored(shown), pair_labels).to_arrow(),
        "user": pa.array(np.full(num_lists, split.with_format("numpy")[0]["user"])),
    }
    return Dataset(pa.table(columns), split=split.split)


def _per_row(pieces: Ragged, count: int) -> Ragged:
    """Joins every `count` consecutive pieces into one row."""
    return Ragged(pieces.values, pieces.offsets[::count])


def _ignored(rows: Ragged) -> Ragged:
    """Returns rows of the same lengths in which no token is a label."""
    return Ragged(np.full(len(rows.values), IGNORED), rows.offsets)
