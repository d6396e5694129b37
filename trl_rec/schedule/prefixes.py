"""Builds prefixes for preference training. A prefix consists of the user's items before a training target.

Targets are sampled before their prefixes are built, because all prefixes of long histories would take far more memory
than the interactions themselves.
"""

from __future__ import annotations

import numpy as np
import pyarrow as pa
from datasets import Dataset

from trl_rec.data.dataset import check_is_train, split_rows
from trl_rec.evaluation.random_order import permuted
from trl_rec.ragged import Ragged, join, within
from trl_rec.ranges import COUNT


def training_prefixes(
    train: Dataset, *, max_prompts: int | None = None, max_history: int | None = None, seed: int = 0
) -> Dataset:
    """Builds a prefix `history + targets[:t]` with the target `targets[t]`, for every t and every row of the split.

    Args:
        train: `RecDataset.train`. Other splits raise `ValueError`.
        max_prompts (*optional*, defaults to all): Maximum number of prefixes, sampled uniformly. The sampled prefixes
            stay in the order of the split.
        max_history (*optional*, defaults to all): Maximum number of items in a prefix. The newest items are kept.
        seed (*optional*, defaults to `0`): Seed of the sample.

    Returns:
        `datasets.Dataset` with the columns `user`, `history` (the prefix), `target` and, if the dataset has ratings,
        `rating` (the rating of the target).
    """
    check_is_train(train, "preferences")
    total = len(split_rows(train, "targets").values)
    if not total:
        raise ValueError(
            "the training split has no targets, because no user has more than one interaction; use more data"
        )
    return prefixes_at(train, even_sample(total, max_prompts, seed), max_history=max_history)


def prefixes_at(train: Dataset, targets: np.ndarray, *, max_history: int | None = None) -> Dataset:
    """Builds the prefixes of the given targets, as in [`training_prefixes`].

    Args:
        train: The training split.
        targets (`np.ndarray` of shape `(N,)`): Indices into the concatenated targets of all rows.
        max_history (*optional*, defaults to all): Maximum number of items in a prefix. The newest items are kept.
    """
    if max_history is not None:
        COUNT.check("max_history", max_history)
    history = split_rows(train, "history")
    target = split_rows(train, "targets")
    sequences = join(history, target)
    ratings = ratings_of(train)

    # Find where each prefix starts and stops in `sequences.values`. The arrays have the shape (N,).
    source = np.searchsorted(target.offsets, targets, side="right") - 1  # the row of each target
    first = sequences.offsets[source]
    stop = first + history.lengths[source] + targets - target.offsets[source]
    start = first if max_history is None else np.maximum(first, stop - max_history)

    # Copy the values, because prefixes of the same row overlap.
    lengths = stop - start
    before = Ragged.from_lengths(sequences.values[np.repeat(start, lengths) + within(lengths)], lengths)

    # Make the columns, with the same data types as in the splits. A prefix stops just before its target, so `stop` is
    # the position of the target.
    columns = {
        "user": pa.array(column(train, "user")[source], pa.int32()),
        "history": before.to_arrow(),
        "target": pa.array(sequences.values[stop], pa.int32()),
    }
    if ratings is not None:
        columns["rating"] = pa.array(ratings.values[stop], pa.float32())
    return Dataset(pa.table(columns), split="train")


def even_sample(total: int, max_prompts: int | None, seed: int) -> np.ndarray:
    """Samples at most `max_prompts` numbers below `total` uniformly, and returns them in ascending order."""
    if max_prompts is not None:
        COUNT.check("max_prompts", max_prompts)
    if max_prompts is None or max_prompts >= total:
        return np.arange(total)
    return np.sort(permuted(np.arange(max_prompts), np.zeros(max_prompts, np.int64), seed, total))


def ratings_of(train: Dataset) -> Ragged | None:
    """Returns the ratings of the history and then of the targets of each row, or None if there are no ratings."""
    if not {"history_ratings", "target_ratings"} <= set(train.column_names):
        return None
    # A dataset without ratings may have the columns, with empty lists.
    ratings = join(split_rows(train, "history_ratings"), split_rows(train, "target_ratings"))
    if not len(ratings.values):
        return None
    check_aligned(ratings, train, "ratings")
    return ratings


def check_aligned(scores: Ragged, train: Dataset, what: str) -> None:
    """Raises `ValueError` if `scores` does not have one value for each history item and target of each row."""
    lengths = split_rows(train, "history").lengths + split_rows(train, "targets").lengths
    if len(scores) != len(lengths):
        raise ValueError(
            f"there are {len(scores)} rows of {what}, but the training split has {len(lengths)}; give one row of "
            "scores per row of the split"
        )
    wrong = np.flatnonzero(scores.lengths != lengths)
    if len(wrong):
        row = wrong[0]
        raise ValueError(
            f"{what}, row {row}: there are {scores.lengths[row]} scores for {lengths[row]} items; give one score "
            "per item of history and targets"
        )


def check_prefixes(prefixes: Dataset) -> None:
    """Raises `ValueError` if the rows do not come from `training_prefixes`. A selection of rows is allowed."""
    missing = {"user", "history", "target"} - set(prefixes.column_names)
    if missing:
        reason = f"the column {min(missing)!r} is missing"
    elif prefixes.split != "train":
        reason = f"their split is {str(prefixes.split)!r}, not 'train'"
    else:
        return
    raise ValueError(f"these are not training prefixes ({reason}); build them with training_prefixes(dataset.train)")


def column(rows: Dataset, name: str) -> np.ndarray:
    """Returns a column of numbers as an array, in the order of the rows."""
    values: np.ndarray = rows.select_columns([name]).with_format("numpy")[:][name]
    return values
