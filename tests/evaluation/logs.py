"""Builds small splits from users' sequences of items. There are two forms of training rows: whole (one row per user)
and windowed (one row per target)."""

import pyarrow as pa
from datasets import Dataset, NamedSplit


ITEMS = pa.list_(pa.int32())


def make_split(rows, name="train"):
    """Returns a split with the given `(user, history, targets)` rows."""
    users, histories, targets = zip(*rows, strict=True) if rows else ((), (), ())
    columns = {
        "user": pa.array(users, pa.int32()),
        "history": pa.array(histories, ITEMS),
        "targets": pa.array(targets, ITEMS),
    }
    return Dataset(pa.table(columns), split=NamedSplit(name))


def whole_rows(sequences):
    """Returns one row per user, with the first item as history and all other items as targets."""
    return [(user, items[:1], items[1:]) for user, items in enumerate(sequences) if items]


def windowed_rows(sequences, width):
    """Returns one row per target, as in windowed data, with at most `width` items of history. The rows of different
    users alternate."""
    rows = [
        (step, user, items[max(0, step - width) : step], items[step : step + 1])
        for user, items in enumerate(sequences)
        for step in range(1, len(items))
    ]
    return [row[1:] for row in sorted(rows, key=lambda row: row[:2])]
