"""Builds rows of rated lists. Each row contains a user's rated history, and candidates that the same user rated later.

The ratings of the candidates are the labels. Only a user's first rating of an item is a label, so a candidate is never
in the history and never occurs twice in a list. Lists whose ratings are all equal cannot be ranked and are left out.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
from datasets import Dataset

from trl_rec.data.dataset import RecDataset, at_most, check_is_train, split_rows
from trl_rec.data.list_rows import new_targets
from trl_rec.decoding.candidates.prompts import RatedPromptFormat
from trl_rec.evaluation.results import held_out
from trl_rec.ragged import Ragged, join, within
from trl_rec.ranges import COUNT
from trl_rec.trainer.alro.config import NUM_CANDIDATES


if TYPE_CHECKING:
    from trl_rec.trainer.alro.config import AlroConfig

MOST_VALUES = 100  # maximum number of distinct ratings
RATED = {"history", "history_ratings", "candidates", "ratings", "row"}  # columns of rated rows besides `user`


def build_rated_rows(
    split: Dataset, *, num_candidates: int = 10, stride: int | None = None, max_history: int | None = None
) -> Dataset:
    """Builds training rows from a training split.

    The lists are sliding windows over the new targets of each row of the split. A target is new if the user had not
    rated the item before.

    Args:
        split: `RecDataset.train`. The validation and test splits are refused.
        num_candidates (*optional*, defaults to `10`): Maximum number of candidates per list, from 2 to 26. The last
            lists from a row of the split may have fewer.
        stride (*optional*, defaults to `num_candidates`): Number of candidates between the starts of consecutive
            lists from the same row of the split.
        max_history (*optional*): Maximum number of items per history. The newest items are kept. By default,
            histories are not truncated.

    Returns:
        `datasets.Dataset` with the columns `user`, `history`, `history_ratings`, `candidates`, `ratings`, and `row`,
        which is the index of the row in the returned dataset. Histories and candidates are ordered from oldest to
        newest.
    """
    check_is_train(split, "models")
    stride = num_candidates if stride is None else stride
    COUNT.check("stride", stride)
    if max_history is not None:
        COUNT.check("max_history", max_history)
    return _rows(split, num_candidates, stride, max_history)


def held_out_rows(split: Dataset, *, num_candidates: int = 10, max_history: int | None = None) -> Dataset:
    """Builds at most one list per row of a validation or test split.

    The candidates are the first `num_candidates` new targets of the row. A target is new if the user had not rated the
    item before. The columns are those of [`build_rated_rows`], except that `row` contains the index of the source row
    in the split.
    """
    return _rows(split, num_candidates, None, max_history)


def rating_values(split: Dataset) -> list[float]:
    """Returns the distinct ratings of a split or of rated rows in ascending order. Raises ValueError if there are no
    ratings, or more than `MOST_VALUES` distinct ratings."""
    names = [name for name in ("history_ratings", "target_ratings", "ratings") if name in split.column_names]
    values = np.unique(np.concatenate([[], *(split_rows(split, name).values for name in names)]))
    if not len(values):
        raise ValueError(_unrated(split))
    if len(values) > MOST_VALUES:
        raise ValueError(
            f"the data contain {len(values)} distinct ratings, but at most {MOST_VALUES} are supported; round the "
            "ratings"
        )
    ratings: list[float] = values.astype(float).tolist()
    return ratings


def training_lists(split: Dataset, prompt_format: RatedPromptFormat, args: AlroConfig) -> Dataset:
    """Returns the rated lists of a training split. Raises ValueError if a list does not fit in `max_length`."""
    rows = build_rated_rows(
        split, num_candidates=args.num_candidates, stride=args.stride, max_history=args.max_history
    )
    return _that_fit(rows, prompt_format, args)


def ranked_lists(split: Dataset, prompt_format: RatedPromptFormat, args: AlroConfig) -> Dataset:
    """Returns the rated lists of a validation or test split. Users whose candidates all have the same rating are left
    out. Raises ValueError if a list does not fit in `max_length`."""
    rows = held_out_rows(split, num_candidates=args.num_candidates, max_history=args.max_history)
    return _that_fit(rows, prompt_format, args)


def check_rankable(dataset: RecDataset, prompt_format: RatedPromptFormat, args: AlroConfig) -> None:
    """Raises ValueError if a split has no list that can be trained on or ranked, or if a list does not fit in
    `max_length`. Without this check, the error might occur only after hours of training."""
    training_lists(dataset.train, prompt_format, args)
    ranked_lists(at_most(args.max_users, dataset.validation), prompt_format, args)
    if args.final_split != "none":
        ranked_lists(at_most(args.max_test_users, held_out(dataset, args.final_split)), prompt_format, args)


def _rows(split: Dataset, num_candidates: int, stride: int | None, max_history: int | None) -> Dataset:
    """Builds the lists of a split. For each row of the split, a list starts at every `stride`-th target that the user
    had not rated before. If `stride` is None, only the first of these lists is built."""
    NUM_CANDIDATES.check("num_candidates", num_candidates)
    history, targets, history_ratings, target_ratings = _rated(split)

    # 1. Find the new targets of each row (first ratings of an item), and count the lists that start at them.
    new = np.flatnonzero(new_targets(history, targets))
    counts = np.bincount(targets.row_ids[new], minlength=len(targets))
    num_lists = np.minimum(counts, 1) if stride is None else -(-counts // stride)

    # 2. Compute the source row of each list, and where the list starts and stops among the new targets of that row.
    source = np.repeat(np.arange(len(targets)), num_lists)
    start = within(num_lists) * (stride or 0)
    stop = np.minimum(start + num_candidates, counts[source])

    # 3. Join history and targets into one sequence per row. A list's history ends before the list's first candidate.
    starts_of_rows = np.cumsum(counts) - counts
    first = within(targets.lengths)[new][starts_of_rows[source] + start]
    end = history.lengths[source] + first
    begin = 0 * end if max_history is None else np.maximum(end - max_history, 0)
    columns = {
        "history": join(history, targets).pieces(source, begin, end),
        "history_ratings": join(history_ratings, target_ratings).pieces(source, begin, end),
        "candidates": Ragged.from_lengths(targets.values[new], counts).pieces(source, start, stop),
        "ratings": Ragged.from_lengths(target_ratings.values[new], counts).pieces(source, start, stop),
    }

    # 4. Drop lists whose ratings are all equal.
    kept = np.flatnonzero(_spread(columns["ratings"]) > 0)
    if not len(kept):
        raise ValueError(
            f"the {split.split} split has no list with two different ratings; a row needs several rated targets, so "
            "prepare a log of interactions with --split leave_last or --split time"
        )
    users = split.with_format("numpy")[:]["user"][source[kept]]
    table = {name: rows.take(kept).to_arrow() for name, rows in columns.items()}
    numbers = np.arange(len(kept)) if stride is not None else source[kept]
    return Dataset(pa.table({"user": pa.array(users), **table, "row": pa.array(numbers)}), split=split.split)


def _rated(split: Dataset) -> tuple[Ragged, Ragged, Ragged, Ragged]:
    """Returns the histories, the targets and the ratings of both. Raises ValueError if a rating is missing, negative
    or not finite."""
    names = ("history", "targets", "history_ratings", "target_ratings")
    if not {*names} <= {*split.column_names}:
        raise ValueError(_unrated(split))
    history, targets, history_ratings, target_ratings = (split_rows(split, name) for name in names)
    all_rated = np.array_equal(history.offsets, history_ratings.offsets)
    if not all_rated or not np.array_equal(targets.offsets, target_ratings.offsets):
        raise ValueError(_unrated(split))

    values = np.concatenate([history_ratings.values, target_ratings.values])
    if not (np.isfinite(values) & (values >= 0)).all():
        raise ValueError(
            f"the {split.split} split contains a rating that is negative or not finite; use ratings of at least 0"
        )
    return history, targets, history_ratings, target_ratings


def _unrated(split: Dataset) -> str:
    which = "the rows have" if split.split is None else f"the {split.split} split has"
    return f"{which} no ratings to rank by, or ratings of only some items; prepare the data from a log with ratings"


def _spread(ratings: Ragged) -> np.ndarray:
    """Returns the range of the ratings of each row. No row may be empty."""
    starts = ratings.offsets[:-1]
    return np.maximum.reduceat(ratings.values, starts) - np.minimum.reduceat(ratings.values, starts)


def _that_fit(rows: Dataset, prompt_format: RatedPromptFormat, args: AlroConfig) -> Dataset:
    """Returns `rows` unchanged. Raises ValueError if the candidates of a list, the model's answer and the longest
    rated item of the catalogue do not fit in `max_length`. The whole history need not fit, because prompts leave out
    the oldest items if necessary."""
    prompt_format.check_lengths(
        split_rows(rows, "candidates"), args.max_length, f"list {{row}} of the {rows.split} split"
    )
    return rows
