"""Builds the training rows of ALRO's rating stage: rated histories with their ratings as labels.

The rating stage comes before the training on lists of candidates (rated items to be ordered). A pretrained language
model already knows about items such as films, and about star ratings. A small model from scratch has to learn about
both first, and lists of candidates contain little information about them. The rows also work with a plain
`SFTTrainer`.
"""

from __future__ import annotations

import numpy as np
import pyarrow as pa
from datasets import Dataset

from trl_rec.data.branches.structure import IGNORED
from trl_rec.data.dataset import check_is_train, split_rows
from trl_rec.decoding.candidates.prompts import RatedPromptFormat
from trl_rec.ragged import Ragged, join, within


def build_rating_rows(split: Dataset, prompt_format: RatedPromptFormat, *, max_length: int) -> Dataset:
    """Builds the training rows of the rating stage.

    The history and the targets of each row of the split form one sequence of rated items. A long sequence is divided
    into training rows that overlap by half. Each rating of the sequence is a label in exactly one of these rows.

    Args:
        split: `RecDataset.train`, with ratings. The validation and test splits are refused.
        prompt_format: Format of rated histories.
        max_length: Maximum number of tokens per row.

    Returns:
        `datasets.Dataset` with `input_ids`, `labels` (-100 except at ratings) and `user`.
    """
    # 1. Join the items and ratings of each row of the split, and compute how many rated items fit in a training row.
    check_is_train(split, "models")
    items = join(split_rows(split, "history"), split_rows(split, "targets"))
    ratings = join(split_rows(split, "history_ratings"), split_rows(split, "target_ratings"))
    longest = int(prompt_format.items.lengths.max() + prompt_format.ratings.lengths.max())
    width = (max_length - len(prompt_format.prompt_head)) // longest
    if len(items.values) != len(ratings.values):
        raise ValueError(
            f"every item needs a rating, but there are {len(ratings.values)} ratings of {len(items.values)} items; "
            "use data with ratings"
        )
    if width < 2:
        raise ValueError(
            f"a row needs room for at least 2 rated items, and max_length={max_length} leaves room for {width}; "
            "increase max_length (rating_max_length in a recipe)"
        )

    # 2. Divide each sequence into windows of at most `width` items. Consecutive windows overlap by half.
    step = width - width // 2
    num_windows = 1 + np.maximum(-(-(items.lengths - width) // step), 0)
    source = np.repeat(np.arange(len(items)), num_windows)
    number = within(num_windows)
    start = number * step
    stop = np.minimum(start + width, items.lengths[source])
    items = items.pieces(source, start, stop)
    ratings = ratings.pieces(source, start, stop)
    # Ratings that are also in the previous window are only context, so that no rating is a label twice.
    first_new = np.where(number > 0, width - step, 0)
    is_new = within(items.lengths) >= np.repeat(first_new, items.lengths)

    # 3. Tokenize each item and its rating. Only the tokens of ratings that are not in the previous window are labels.
    item_ids = prompt_format.items.take(items.values)
    rating_ids = prompt_format.ratings.take(prompt_format.nearest(ratings.values))
    is_label = np.repeat(is_new, rating_ids.lengths)
    rating_labels = Ragged(np.where(is_label, rating_ids.values, IGNORED), rating_ids.offsets)
    pieces = join(item_ids, rating_ids)
    labels = join(_ignored(item_ids), rating_labels)

    # 4. For each window, join the head of the prompt and the tokens of the window into one row.
    head = Ragged.repeated(prompt_format.prompt_head, len(items))
    row_offsets = pieces.offsets[items.offsets]
    columns = {
        "input_ids": join(head, Ragged(pieces.values, row_offsets)).to_arrow(),
        "labels": join(_ignored(head), Ragged(labels.values, row_offsets)).to_arrow(),
        "user": pa.array(split.with_format("numpy")[:]["user"][source]),
    }
    return Dataset(pa.table(columns), split=split.split)


def _ignored(rows: Ragged) -> Ragged:
    """Returns rows of the same lengths in which no token is a label."""
    return Ragged(np.full(len(rows.values), IGNORED), rows.offsets)
