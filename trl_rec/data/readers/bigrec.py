"""BIGRec's files: `train.csv`, `test.csv`, perhaps `valid.csv` with `user_id,item_ids,timestamp`, and names in JSON.

The rows are windows that the source has cut and split already: a list of ids whose last is the target. Without a
validation file the last tenth of the training rows is held out, the cut moved so that no timestamp lies on both sides.
Titles carry HTML entities, and one of them a line break: both are undone.
"""

from __future__ import annotations

import html
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from trl_rec.data.columns import ids, items_table, seconds, split_lists
from trl_rec.data.delimited import read_delimited, read_header
from trl_rec.data.log import Log, Options
from trl_rec.data.readers.lcrec import load_json


OPTIONS: frozenset[str] = frozenset()
COLUMNS = ("user_id", "item_ids", "timestamp")


def find(folder: Path) -> dict[str, Path]:
    """The folder's splits and names; none without both train and test."""
    patterns = {
        "train": ("train.csv", "train_*.csv"),
        "validation": ("valid.csv", "validation.csv", "valid_*.csv"),
        "test": ("test.csv", "test_*.csv"),
        "items": ("id2name4Rec.json", "id2name.json"),
    }
    files = {kind: path for kind, names in patterns.items() if (path := _first(folder, names))}
    return files if {"train", "test", "items"} <= files.keys() else {}


def read(files: dict[str, Path], options: Options) -> Log:
    """The windows in those files."""
    windows = {split: _windows(path) for split, path in files.items() if split != "items"}
    notes: tuple[str, ...] = ()
    if "validation" not in windows:
        windows["train"], windows["validation"], notes = _hold_out(windows["train"], files["train"].name)
    names = {kind: path.name for kind, path in files.items()} | {
        "validation": files.get("validation", files["train"]).name
    }
    return Log(windows=windows, items=_items(files["items"]), names=names, notes=notes)


def _first(folder: Path, patterns: tuple[str, ...]) -> Path | None:
    for pattern in patterns:
        found = sorted(folder.glob(pattern))
        if len(found) > 1:
            raise ValueError(f"{folder} holds {' and '.join(path.name for path in found)}; leave one of them")
        if found:
            return found[0]
    return None


def _windows(path: Path) -> pa.Table:
    """The file's rows in time order; rows of one time keep the file's order."""
    missing = [name for name in COLUMNS if name not in read_header(path)]
    if missing:
        raise ValueError(f"{path.name} has no column {missing[0]}, only {', '.join(read_header(path))}; add it")
    table = read_delimited(path, columns=COLUMNS, text=COLUMNS)
    if table.num_rows == 0:
        raise ValueError(f"{path.name} holds no rows; give a file with at least one")
    item_ids = split_lists(pc.replace_substring_regex(table["item_ids"], r"[\[\]()'\"\s]", ""), ",")
    short = np.flatnonzero(pc.list_value_length(item_ids).to_numpy() < 2)
    if len(short):
        row = int(short[0])
        raise ValueError(
            f"{path.name}, row {row + 1}: {table['item_ids'][row].as_py()!r} holds fewer than two ids; leave the row out"
        )
    times = seconds(table["timestamp"], path.name)
    order = pa.array(np.argsort(times.to_numpy(), kind="stable"))
    columns = {
        "user_id": ids(table, "user_id", path.name),
        "item_ids": item_ids,
        "timestamp": times,
        "row": np.arange(1, table.num_rows + 1),
    }
    return pa.table(columns).take(order)


def _hold_out(train: pa.Table, where: str) -> tuple[pa.Table, pa.Table, tuple[str, ...]]:
    times = train["timestamp"].to_numpy()
    cut = int(
        np.searchsorted(times, times[len(times) * 9 // 10])
    )  # everything at the cut's time goes to the later side
    if cut == 0:
        raise ValueError(f"{where}: the timestamps are too alike to hold out the last tenth; give a valid.csv")
    note = f"the source has no validation file: the last {len(times) - cut} of its {len(times)} training rows by time are held out"
    return train[:cut], train[cut:], (note,)


def _items(path: Path) -> pa.Table:
    names = load_json(path, dict)
    titles = [html.unescape("" if title is None else str(title)) for title in names.values()]
    return items_table(
        pa.table({"item_id": pa.array(names, pa.string()), "title": pa.array(titles, pa.string())}), path.name
    )
