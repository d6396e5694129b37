"""Builds training rows that teach which item a letter names, for a model that is trained from scratch.

A row lists some items of the training split with their letters, as a prompt does. It then repeats the items in another
order, each followed by its letter. Only the letters after the repeated items are labels. A pretrained language model
can already look up what a letter names. A small model from scratch does not learn this from lists of candidates alone,
because it would have to learn at the same time which items a user likes.
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
        seed (*optional*, defaults to `0`): Seed for drawing the items of each row and the order of their repetition.
    """
    # 1. Draw the items of each row from the training split, and the order in which they are repeated.
    check_is_train(split, "models")
    if not len(prompt_format.letters):
        raise ValueError("letter_lists needs candidates that are named by letters; set letters to true")
    known = np.unique(np.concatenate([split_rows(split, name).values for name in ("history", "targets")]))
    count = min(num_candidates, len(known))
    draw = np.random.default_rng(seed)
    items = np.stack([draw.choice(known, count, replace=False) for _ in range(num_lists)])  # (num_lists, count)
    orders = np.stack([draw.permutation(count) for _ in range(num_lists)])

    # 2. Tokenize the lists, and the repeated items, each followed by its letter.
    lists = Ragged.from_lengths(items.ravel(), np.full(num_lists, count))
    slots = Ragged.from_lengths(np.tile(np.arange(count), num_lists), np.full(num_lists, count))
    shown, names = prompt_format.encode_candidates(lists, slots)
    repeated = np.take_along_axis(items, orders, 1).ravel()
    letters = np.take_along_axis(names.values.reshape(num_lists, count), orders, 1).ravel()
    item_ids = prompt_format.items.take(repeated)
    letter_ids = Ragged.from_lengths(letters, np.ones_like(letters))
    pairs = _per_row(join(item_ids, letter_ids), count)
    pair_labels = _per_row(join(_ignored(item_ids), letter_ids), count)

    # 3. Join the head of the prompt, the list and the repeated items of each row.
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
