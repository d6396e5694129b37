"""Rows that teach a model from scratch what ratings mean: rated histories in which every rating is a target.

A pretrained language model already knows films and stars. A small model has to learn them first, and lists of
candidates contain little about either. The rows suit a plain `SFTTrainer`.
"""

from __future__ import annotations

import numpy as np
import pyarrow as pa
from datasets import Dataset

from trl_rec.data.dataset import check_is_train, split_rows
from trl_rec.data.rows import IGNORED
from trl_rec.decoding.candidates.prompts import RatedPromptFormat
from trl_rec.ragged import Ragged, join, within


def build_rating_rows(split: Dataset, prompt_format: RatedPromptFormat, *, max_length: int) -> Dataset:
    """Training rows of a training split. A long sequence becomes several rows that overlap by half, in which each
    rating is a label once.

    Args:
        split: `RecDataset.train`, with ratings. The validation and test splits are refused.
        prompt_format: How a rated history is written.
        max_length: Most tokens per row.

    Returns:
        `datasets.Dataset` with `input_ids`, `labels` (-100 except at ratings) and `user`.
    """
    # 1. Each user's items and ratings in time order, and how many of them fit in a row.
    check_is_train(split, "a model")
    items = join(split_rows(split, "history"), split_rows(split, "targets"))
    ratings = join(split_rows(split, "history_ratings"), split_rows(split, "target_ratings"))
    longest = int(prompt_format.items.lengths.max() + prompt_format.ratings.lengths.max())
    width = (max_length - len(prompt_format.prompt_head)) // longest
    if width < 2 or len(items.values) != len(ratings.values):
        raise ValueError(
            f"max_length {max_length} leaves room for {width} rated items and there are {len(ratings.values)} "
            f"ratings of {len(items.values)} items; give room for two, and data with ratings"
        )

    # 2. Windows of that width, each starting half a width after the one before.
    step = width - width // 2
    num_windows = 1 + np.maximum(-(-(items.lengths - width) // step), 0)
    source = np.repeat(np.arange(len(items)), num_windows)
    number = within(num_windows)
    start = number * step
    stop = np.minimum(start + width, items.lengths[source])
    items = items.take(source).slice(start, stop)
    ratings = ratings.take(source).slice(start, stop)
    # Ratings that the window before contained too are context here, and not labels a second time.
    first_new = np.where(number > 0, width - step, 0)
    is_new = within(items.lengths) >= np.repeat(first_new, items.lengths)

    # 3. The tokens of each item and its rating; only those of a new rating are labels.
    item_ids = prompt_format.items.take(items.values)
    rating_ids = prompt_format.ratings.take(prompt_format.nearest(ratings.values))
    is_label = np.repeat(is_new, rating_ids.lengths)
    rating_labels = Ragged(np.where(is_label, rating_ids.values, IGNORED), rating_ids.offsets)
    pieces = join(item_ids, rating_ids)
    labels = join(_ignored(item_ids), rating_labels)

    # 4. The pieces of a window become one row, after the head of the prompt.
    head = Ragged.repeated(prompt_format.prompt_head, len(items))
    row_offsets = pieces.offsets[items.offsets]
    columns = {
        "input_ids": join(head, Ragged(pieces.values, row_offsets)).to_arrow(),
        "labels": join(_ignored(head), Ragged(labels.values, row_offsets)).to_arrow(),
        "user": pa.array(split.with_format("numpy")[:]["user"][source]),
    }
    return Dataset(pa.table(columns), split=split.split)


def _ignored(rows: Ragged) -> Ragged:
    """The same rows with no label."""
    return Ragged(np.full(len(rows.values), IGNORED), rows.offsets)
