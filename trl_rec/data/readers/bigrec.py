"""Reads BIGRec's files: windows in `train.csv`, `test.csv` and optionally `valid.csv`, and titles in a JSON file.

The JSON file is named `id2name4Rec.json` or `id2name.json`. The columns of the CSV files are
`user_id,item_ids,timestamp`. Each row is a window: a list of ids whose last item is the target. The source has already
assigned the windows to splits, one file per split. If there is no validation file, the last tenth of the training rows
by time becomes the validation split. Training rows with equal timestamps stay in the same split. Titles in the
published dataset contain HTML entities and line breaks. The entities are decoded, and the line breaks become spaces.
"""

from __future__ import annotations

import html
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from trl_rec.data.columns import RowError, ids, items_table, shown, split_lists
from trl_rec.data.log import Log, Options, Reader
from trl_rec.data.readers.files import check_single, load_json, read_delimited, read_header
from trl_rec.data.timestamps import seconds


COLUMNS = ("user_id", "item_ids", "timestamp")
# File name patterns of each table, in order of preference.
PATTERNS = {
    "train": ("train.csv", "train_*.csv"),
    "validation": ("valid.csv", "validation.csv", "valid_*.csv"),
    "test": ("test.csv", "test_*.csv"),
    "items": ("id2name4Rec.json", "id2name.json"),
}


class BigRecReader(Reader):
    """Reader of BIGRec's files, which contain windows that are already assigned to splits."""

    options = frozenset({"timestamp_format"})
    windowed = True

    def find(self, folder: Path) -> dict[str, Path]:
        """Returns a dict that maps table names to files.

        The dict is empty unless there are files of training windows, test windows and titles.
        """
        files = {kind: path for kind, patterns in PATTERNS.items() if (path := _first_match(folder, patterns))}
        return files if {"train", "test", "items"} <= files.keys() else {}

    def read(self, files: dict[str, Path], options: Options) -> Log:
        """Reads the windows of the three splits, and the items."""
        time_format = options.timestamp_format
        windows = {split: _read_windows(path, time_format) for split, path in files.items() if split != "items"}
        notes: tuple[str, ...] = ()
        if "validation" not in windows:
            windows["train"], windows["validation"], note = _hold_out(windows["train"], files["train"].name)
            notes = (note,)

        # Held-out validation rows come from the training file, so error messages about them name this file.
        names = {"validation": files["train"].name, **{kind: path.name for kind, path in files.items()}}
        return Log(windows=windows, items=_read_items(files["items"]), names=names, notes=notes)


def _first_match(folder: Path, patterns: tuple[str, ...]) -> Path | None:
    """Tries the patterns in order, and returns the first file that matches, or None.

    Raises ValueError if several files match the same pattern.
    """
    for pattern in patterns:
        paths = sorted([*folder.glob(pattern), *folder.glob(f"{pattern}.gz")])
        check_single(paths, folder)
        if paths:
            return paths[0]
    return None


def _read_windows(path: Path, time_format: str | None) -> pa.Table:
    """Reads a CSV file, and sorts its rows by time. Rows with equal timestamps keep the order of the file."""
    header = read_header(path)
    missing = [name for name in COLUMNS if name not in header]
    if missing:
        raise ValueError(f"{path.name} has no column {missing[0]}, only {', '.join(header)}; add it")
    table = read_delimited(path, columns=COLUMNS, text=COLUMNS)
    if table.num_rows == 0:
        raise ValueError(f"{path.name} contains no rows; give a file with at least one")

    # The ids are written as a Python list, with or without quotes: "['3', '1', '4']".
    item_ids = split_lists(pc.replace_substring_regex(table["item_ids"], r"[\[\]()'\"\s]", ""), ",")
    short = np.flatnonzero(pc.list_value_length(item_ids).to_numpy() < 2)
    if len(short):
        row = int(short[0])
        value = shown(table["item_ids"][row].as_py())
        raise RowError(path.name, row, f"{value} has fewer than two ids; leave the row out")

    times = seconds(table["timestamp"], path.name, time_format)
    columns = {
        "user_id": ids(table["user_id"], "user_id", path.name),
        "item_ids": item_ids,
        "timestamp": times,
        "row": np.arange(1, table.num_rows + 1),
    }
    order = np.argsort(times.to_numpy(), kind="stable")  # `_hold_out` cuts the rows by time
    return pa.table(columns).take(pa.array(order))


def _hold_out(train: pa.Table, where: str) -> tuple[pa.Table, pa.Table, str]:
    """Splits off the last tenth of the training rows by time. Returns both parts and a note for the dataset's card."""
    times = train["timestamp"].to_numpy()
    # Find the row after the first nine tenths of the rows, and cut before the first row that has the same timestamp.
    # Rows with equal timestamps therefore stay together.
    cut = int(np.searchsorted(times, times[len(times) * 9 // 10]))
    if cut == 0:
        raise ValueError(
            f"{where}: the last tenth cannot be held out, because too many rows have the same timestamp; provide a "
            "valid.csv"
        )
    counts = f"the last {len(times) - cut} of its {len(times)} training rows by time are the validation split"
    return train[:cut], train[cut:], f"the source has no validation file; {counts}"


def _read_items(path: Path) -> pa.Table:
    """Reads the items from a JSON object that maps ids to titles."""
    names = load_json(path, dict)
    titles = [html.unescape("" if name is None else str(name)) for name in names.values()]
    columns = {"item_id": pa.array(names, pa.string()), "title": pa.array(titles, pa.string())}
    return items_table(pa.table(columns), path.name)
