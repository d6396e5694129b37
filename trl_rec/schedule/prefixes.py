"""Builds prompts for preference training: each training target, or an even sample of them, with the history before it.

The sample is drawn before any prefix is built, because all prefixes of long histories together are far larger than the
log itself.
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
    """Every `history + targets[:t]` of a training split, with `targets[t]` as its target.

    Args:
        train: `RecDataset.train`. Raises for the validation and test splits.
        max_prompts (*optional*, defaults to all): Number of prefixes, drawn evenly from all of them by the seed; they
            stay in the order of the split.
        max_history (*optional*, defaults to all): Number of items of a prefix; the newest ones are kept.
        seed (*optional*, defaults to `0`): Chooses the sample.

    Returns:
        `datasets.Dataset` with `user`, `history`, `target` and, if the log has ratings, `rating` (of the target).
    """
    check_is_train(train, "a preference")
    total = len(split_rows(train, "targets").values)
    if not total:
        raise ValueError("the train split has no targets: every user has a single interaction; add data")
    return prefixes_at(train, even_sample(total, max_prompts, seed), max_history=max_history)


def prefixes_at(train: Dataset, targets: np.ndarray, *, max_history: int | None = None) -> Dataset:
    """The prefixes of some targets, as in [`training_prefixes`].

    Args:
        train: The training split.
        targets (`np.ndarray` of shape `(N,)`): Numbers of targets, counted from 0 through all rows of the split.
        max_history (*optional*, defaults to all): Number of items of a prefix; the newest ones are kept.
    """
    if max_history is not None:
        COUNT.check("max_history", max_history)
    history = split_rows(train, "history")
    target = split_rows(train, "targets")
    sequences = join(history, target)
    ratings = ratings_of(train)

    # Each prefix is a slice of its row's sequence and ends just before its target, (N,) each.
    source = np.searchsorted(target.offsets, targets, side="right") - 1  # the row of each target
    first = sequences.offsets[source]
    stop = first + history.lengths[source] + targets - target.offsets[source]
    start = first if max_history is None else np.maximum(first, stop - max_history)

    # Prefixes of a row overlap, so their values are copied.
    lengths = stop - start
    before = Ragged.from_lengths(sequences.values[np.repeat(start, lengths) + within(lengths)], lengths)

    # int32, as in the splits; `stop` is the position of the target itself.
    columns = {
        "user": pa.array(column(train, "user")[source], pa.int32()),
        "history": before.to_arrow(),
        "target": pa.array(sequences.values[stop], pa.int32()),
    }
    if ratings is not None:
        columns["rating"] = pa.array(ratings.values[stop], pa.float32())
    return Dataset(pa.table(columns), split="train")


def even_sample(total: int, max_prompts: int | None, seed: int) -> np.ndarray:
    """At most `max_prompts` of the numbers below `total`, in ascending order; all samples are equally likely."""
    if max_prompts is not None:
        COUNT.check("max_prompts", max_prompts)
    if max_prompts is None or max_prompts >= total:
        return np.arange(total)
    return np.sort(permuted(np.arange(max_prompts), np.zeros(max_prompts, np.int64), seed, total))


def ratings_of(train: Dataset) -> Ragged | None:
    """The ratings of each row, those of its history and then of its targets; None if the log has no ratings."""
    if not {"history_ratings", "target_ratings"} <= set(train.column_names):
        return None
    # A log without ratings has the columns too, with empty lists.
    ratings = join(split_rows(train, "history_ratings"), split_rows(train, "target_ratings"))
    if not len(ratings.values):
        return None
    check_aligned(ratings, train, "ratings")
    return ratings


def check_aligned(scores: Ragged, train: Dataset, what: str) -> None:
    """Raises unless `scores` has one value for each item of each row, history and targets joined."""
    lengths = split_rows(train, "history").lengths + split_rows(train, "targets").lengths
    if len(scores) != len(lengths):
        raise ValueError(
            f"{what} has {len(scores)} rows and the training split {len(lengths)}; give one row of scores per row"
        )
    wrong = np.flatnonzero(scores.lengths != lengths)
    if len(wrong):
        row = wrong[0]
        raise ValueError(
            f"{what}, row {row}: {scores.lengths[row]} values for {lengths[row]} items; "
            "give one per item of history and targets"
        )


def check_prefixes(prefixes: Dataset) -> None:
    """Raises unless the rows come from `training_prefixes`, or are a selection of such rows."""
    missing = {"user", "history", "target"} - set(prefixes.column_names)
    if missing:
        reason = f"the column {min(missing)!r} is missing"
    elif prefixes.split != "train":
        reason = f"their split is {str(prefixes.split)!r}, not 'train'"
    else:
        return
    raise ValueError(f"these are not training prefixes ({reason}); build them with training_prefixes(dataset.train)")


def column(rows: Dataset, name: str) -> np.ndarray:
    """A column of numbers. It respects rows that were selected or reordered."""
    values: np.ndarray = rows.select_columns([name]).with_format("numpy")[:][name]
    return values
