"""Prompts for preference training: each training target after what came before it, all of them or an even sample.

A sample is drawn before any prefix is made, as the prefixes of long histories add up to far more than the log itself.
"""

from __future__ import annotations

import numpy as np
import pyarrow as pa
from datasets import Dataset

from trl_rec.data.dataset import check_is_train, split_rows
from trl_rec.evaluation.random_order import permuted
from trl_rec.ragged import Ragged, join, within


def training_prefixes(
    train: Dataset, *, max_prompts: int | None = None, max_history: int | None = None, seed: int = 0
) -> Dataset:
    """Every `history + targets[:t]` of a training split, with `targets[t]` as target.

    Args:
        train: `RecDataset.train`. The validation and test splits are refused.
        max_prompts (*optional*): Most prefixes, drawn evenly over all of them by the seed and kept in the split's
            order.
        max_history (*optional*): Most items of a prefix, the newest ones.
        seed: Chooses the sample.

    Returns:
        `datasets.Dataset` with `user`, `history`, `target` and, where the log has ratings, `rating` (the target's).
    """
    check_is_train(train, "a preference")
    total = len(split_rows(train, "targets").values)
    if not total:
        raise ValueError("the train split holds no target: every user has a single interaction; add data")
    return prefixes_at(train, sampled(total, max_prompts, seed), max_history=max_history)


def prefixes_at(train: Dataset, targets: np.ndarray, *, max_history: int | None = None) -> Dataset:
    """The prefixes of the chosen targets, which are numbered through all rows of the split."""
    if max_history is not None and max_history < 1:
        raise ValueError(f"max_history={max_history}: a prefix needs room for an item at least")
    history, target = split_rows(train, "history"), split_rows(train, "targets")
    sequences, ratings = join(history, target), ratings_of(train)
    source = np.searchsorted(target.offsets, targets, side="right") - 1
    first = sequences.offsets[source]
    stop = first + history.lengths[source] + targets - target.offsets[source]
    start = first if max_history is None else np.maximum(first, stop - max_history)
    lengths = stop - start
    before = Ragged.from_lengths(sequences.values[np.repeat(start, lengths) + within(lengths)], lengths)
    columns = {
        "user": pa.array(column(train, "user")[source], pa.int32()),
        "history": before.to_arrow(),
        "target": pa.array(sequences.values[stop], pa.int32()),
    }
    if ratings is not None:
        columns["rating"] = pa.array(ratings.values[stop], pa.float32())
    return Dataset(pa.table(columns), split="train")


def sampled(total: int, most: int | None, seed: int) -> np.ndarray:
    """At most `most` of the numbers below `total`, ascending, all equally likely."""
    if most is not None and most < 1:
        raise ValueError(f"max_prompts={most}: at least one prompt is needed")
    if most is None or most >= total:
        return np.arange(total)
    return np.sort(permuted(np.arange(most), np.zeros(most, np.int64), seed, total))


def ratings_of(train: Dataset) -> Ragged | None:
    """One rating for each item of a row, history and targets joined; None where the log has none."""
    if not {"history_ratings", "target_ratings"} <= set(train.column_names):
        return None
    ratings = join(split_rows(train, "history_ratings"), split_rows(train, "target_ratings"))
    if not len(ratings.values):
        return None
    check_aligned(ratings, train, "ratings")
    return ratings


def check_aligned(scores: Ragged, train: Dataset, what: str) -> None:
    """Raises unless there is one score for each item of each row."""
    lengths = split_rows(train, "history").lengths + split_rows(train, "targets").lengths
    if len(scores) != len(lengths):
        raise ValueError(
            f"{what} hold {len(scores)} rows, the training split {len(lengths)}; give one row of scores for each"
        )
    wrong = np.flatnonzero(scores.lengths != lengths)
    if len(wrong):
        row = wrong[0]
        raise ValueError(
            f"{what}, row {row}: {scores.lengths[row]} for {lengths[row]} items; give one for each item of history and targets"
        )


def check_prefixes(prefixes: Dataset) -> None:
    """Raises unless the rows come from `training_prefixes`, or a selection of them."""
    missing = {"user", "history", "target"} - set(prefixes.column_names)
    if missing or prefixes.split != "train":
        told = (
            f"the column {min(missing)!r} is missing"
            if missing
            else f"their split is {str(prefixes.split)!r}, not 'train'"
        )
        raise ValueError(f"these are no training prefixes ({told}); make them with training_prefixes(dataset.train)")


def column(rows: Dataset, name: str) -> np.ndarray:
    """A column of numbers, rows chosen or reordered respected."""
    return rows.select_columns([name]).with_format("numpy")[:][name]
