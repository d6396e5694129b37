"""Rows that teach a model from scratch what ratings mean: rated histories, every rating in them a target.

A pretrained language model knows films and stars before it ranks anything; a small model has to learn them first, and
a list of candidates tells little of either. The rows are for `SFTTrainer` as it is.
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
    """Training rows of a training split. A long sequence becomes several rows that overlap by half, and each rating is
    learned once.

    Args:
        split: `RecDataset.train`, with ratings. The validation and test splits are refused.
        prompt_format: How a rated history is written.
        max_length: Most tokens of a row.

    Returns:
        `datasets.Dataset` with `input_ids`, `labels` (-100 but at ratings) and `user`.
    """
    check_is_train(split, "a model")
    items, ratings = (
        join(split_rows(split, before), split_rows(split, after))
        for before, after in (("history", "targets"), ("history_ratings", "target_ratings"))
    )
    width = (max_length - len(prompt_format.prompt_head)) // int(
        prompt_format.items.lengths.max() + prompt_format.ratings.lengths.max()
    )
    if width < 2 or len(items.values) != len(ratings.values):
        raise ValueError(
            f"max_length {max_length} leaves room for {width} rated items and there are {len(ratings.values)} "
            "ratings of "
            f"{len(items.values)} items; give room for two, and data with ratings"
        )
    step = width - width // 2
    windows = 1 + np.maximum(-(-(items.lengths - width) // step), 0)
    source, number = np.repeat(np.arange(len(items)), windows), within(windows)
    start = number * step
    stop = np.minimum(start + width, items.lengths[source])
    items, ratings = items.take(source).slice(start, stop), ratings.take(source).slice(start, stop)
    is_new = within(items.lengths) >= np.repeat(np.where(number > 0, width - step, 0), items.lengths)
    parts = prompt_format.items.take(items.values), prompt_format.ratings.take(prompt_format.nearest(ratings.values))
    labels = [
        np.full(len(parts[0].values), IGNORED),
        np.where(np.repeat(is_new, parts[1].lengths), parts[1].values, IGNORED),
    ]
    pieces, learned = (
        join(*parts),
        join(*(Ragged(kept, part.offsets) for kept, part in zip(labels, parts, strict=True))),
    )
    head = Ragged.repeated(prompt_format.prompt_head, len(items))
    columns = {
        "input_ids": join(head, Ragged(pieces.values, pieces.offsets[items.offsets])).to_arrow(),
        "labels": join(
            Ragged(np.full(len(head.values), IGNORED), head.offsets),
            Ragged(learned.values, pieces.offsets[items.offsets]),
        ).to_arrow(),
        "user": pa.array(split.with_format("numpy")[:]["user"][source]),
    }
    return Dataset(pa.table(columns), split=split.split)
