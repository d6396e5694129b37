"""Rows of rated lists: a user's rated history, and candidates that the same user rated later.

The candidates' ratings are the labels. Only a user's first rating of an item is a label, so a candidate is neither in
the history nor twice in a list. A list whose ratings are all equal has nothing to rank and is left out.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
from datasets import Dataset

from trl_rec.data.dataset import RecDataset, at_most, check_is_train, split_rows
from trl_rec.data.list_rows import new_targets
from trl_rec.decoding.candidates.prompts import RatedPromptFormat
from trl_rec.ragged import Ragged, join, within
from trl_rec.ranges import COUNT
from trl_rec.trainer.alro.config import NUM_CANDIDATES


if TYPE_CHECKING:
    from trl_rec.trainer.alro.config import AlroConfig

MOST_VALUES = 100
RATED = {"history", "history_ratings", "candidates", "ratings", "row"}


def build_rated_rows(
    split: Dataset, *, num_candidates: int = 10, stride: int | None = None, max_history: int | None = None
) -> Dataset:
    """Training rows of a training split: windows that slide over each user's ratings.

    Args:
        split: `RecDataset.train`. The validation and test splits are refused.
        num_candidates (*optional*, defaults to `10`): Most candidates of a list, from 2 to 26. The last list of a user
            may have fewer.
        stride (*optional*, defaults to `num_candidates`): New items between the starts of two lists.
        max_history (*optional*): Most items per history, the newest ones. By default all.

    Returns:
        `datasets.Dataset` with `user`, `history` and `history_ratings`, `candidates` and `ratings`, oldest first, and
        `row`, the number of the row.
    """
    check_is_train(split, "a model")
    stride = num_candidates if stride is None else stride
    COUNT.check("stride", stride)
    if max_history is not None:
        COUNT.check("max_history", max_history)
    return _rows(split, num_candidates, stride, max_history)


def held_out_rows(split: Dataset, *, num_candidates: int = 10, max_history: int | None = None) -> Dataset:
    """Rows of a validation or test split, one per row of the split. Its first `num_candidates` new targets are the
    candidates. The columns are those of [`build_rated_rows`], where `row` is the row of the split."""
    return _rows(split, num_candidates, None, max_history)


def rating_values(split: Dataset) -> list[float]:
    """The ratings that occur in a split or in rated rows, ascending. There is at least one."""
    names = [name for name in ("history_ratings", "target_ratings", "ratings") if name in split.column_names]
    values = np.unique(np.concatenate([[], *(split_rows(split, name).values for name in names)]))
    if not len(values):
        raise ValueError(_unrated(split))
    if len(values) > MOST_VALUES:
        raise ValueError(f"there are {len(values)} different ratings, too many to write; round them to a scale first")
    ratings: list[float] = values.astype(float).tolist()
    return ratings


def training_lists(split: Dataset, prompt_format: RatedPromptFormat, args: AlroConfig) -> Dataset:
    """The lists of a training split."""
    rows = build_rated_rows(
        split, num_candidates=args.num_candidates, stride=args.stride, max_history=args.max_history
    )
    return _that_fit(rows, prompt_format, args)


def ranked_lists(split: Dataset, prompt_format: RatedPromptFormat, args: AlroConfig) -> Dataset:
    """The lists of a validation or test split. A user whose candidates are all rated alike has no list."""
    rows = held_out_rows(split, num_candidates=args.num_candidates, max_history=args.max_history)
    return _that_fit(rows, prompt_format, args)


def check_rankable(dataset: RecDataset, prompt_format: RatedPromptFormat, args: AlroConfig) -> None:
    """Refuses a dataset that would end a run after hours: a split has no list to learn from or to rank."""
    training_lists(dataset.train, prompt_format, args)
    ranked_lists(at_most(args.max_users, dataset.validation), prompt_format, args)
    ranked_lists(dataset.test, prompt_format, args)


def _rows(split: Dataset, num_candidates: int, stride: int | None, max_history: int | None) -> Dataset:
    """Lists of a split. One begins at every `stride`-th new target of a row; with None a row has one list."""
    NUM_CANDIDATES.check("num_candidates", num_candidates)
    history, targets, history_ratings, target_ratings = _rated(split)

    # 1. The new targets of each row, and how many lists they give.
    new = np.flatnonzero(new_targets(history, targets))
    counts = np.bincount(targets.row_ids[new], minlength=len(targets))
    num_lists = np.minimum(counts, 1) if stride is None else -(-counts // stride)

    # 2. Which row each list comes from, and where it starts and stops among the row's new targets.
    source = np.repeat(np.arange(len(targets)), num_lists)
    start = within(num_lists) * (stride or 0)
    stop = np.minimum(start + num_candidates, counts[source])

    # 3. The history of a list ends where its first candidate stands in the sequence.
    starts_of_rows = np.cumsum(counts) - counts
    first = within(targets.lengths)[new][starts_of_rows[source] + start]
    end = history.lengths[source] + first
    begin = 0 * end if max_history is None else np.maximum(end - max_history, 0)
    columns = {
        "history": join(history, targets).take(source).slice(begin, end),
        "history_ratings": join(history_ratings, target_ratings).take(source).slice(begin, end),
        "candidates": Ragged.from_lengths(targets.values[new], counts).take(source).slice(start, stop),
        "ratings": Ragged.from_lengths(target_ratings.values[new], counts).take(source).slice(start, stop),
    }

    # 4. A list whose ratings are all equal has nothing to rank.
    kept = np.flatnonzero(_spread(columns["ratings"]) > 0)
    if not len(kept):
        raise ValueError(
            f"the {split.split} split has no list with two different ratings; its rows need several rated targets: "
            "prepare the data with split leave_last or time, from sequences rather than windows"
        )
    users = split.with_format("numpy")[:]["user"][source[kept]]
    table = {name: rows.take(kept).to_arrow() for name, rows in columns.items()}
    numbers = np.arange(len(kept)) if stride is not None else source[kept]
    return Dataset(pa.table({"user": pa.array(users), **table, "row": pa.array(numbers)}), split=split.split)


def _rated(split: Dataset) -> tuple[Ragged, Ragged, Ragged, Ragged]:
    """History and targets, and the ratings of both."""
    names = ("history", "targets", "history_ratings", "target_ratings")
    if not {*names} <= {*split.column_names}:
        raise ValueError(_unrated(split))
    history, targets, history_ratings, target_ratings = (split_rows(split, name) for name in names)
    all_rated = np.array_equal(history.offsets, history_ratings.offsets)
    if not all_rated or not np.array_equal(targets.offsets, target_ratings.offsets):
        raise ValueError(_unrated(split))

    values = np.concatenate([history_ratings.values, target_ratings.values])
    if not (np.isfinite(values) & (values >= 0)).all():
        raise ValueError(f"the {split.split} split holds a rating that is negative or no number; rate from 0 upwards")
    return history, targets, history_ratings, target_ratings


def _unrated(split: Dataset) -> str:
    which = "the rows have" if split.split is None else f"the {split.split} split has"
    return f"{which} no ratings to rank by; prepare the data from a log with ratings"


def _spread(ratings: Ragged) -> np.ndarray:
    """The largest rating of each row minus its smallest. No row may be empty."""
    starts = ratings.offsets[:-1]
    return np.maximum.reduceat(ratings.values, starts) - np.minimum.reduceat(ratings.values, starts)


def _that_fit(rows: Dataset, prompt_format: RatedPromptFormat, args: AlroConfig) -> Dataset:
    """The same rows. A list that does not fit in `max_length` is refused."""
    prompt_format.check_lengths(
        split_rows(rows, "candidates"), args.max_length, f"list {{row}} of the {rows.split} split"
    )
    return rows
