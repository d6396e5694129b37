"""Checks the interactions of a source, and turns events such as views and purchases into ratings.

Options may drop rows. Dropped rows are counted, and error messages use the row numbers of the file.
"""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from trl_rec.data.columns import RowError, cast, check_none, encode, ids, numbers, plain, require, shown
from trl_rec.data.log import Options
from trl_rec.data.timestamps import exact_order, seconds


def interactions_table(table: pa.Table, where: str) -> pa.Table:
    """Same as [`read_interactions`], except that it takes no options and drops no rows."""
    return read_interactions(table, where, Options())[0]


def read_interactions(table: pa.Table, where: str, options: Options) -> tuple[pa.Table, dict[str, int]]:
    """Checks interactions, and drops the rows that the options exclude.

    Args:
        table: The interactions. Columns that are not needed are dropped.
        where: Name of the file, for error messages.
        options: `timestamp_format`, `empty_ratings`, `event_column` and `event_ratings` are used.

    Returns:
        The table `Log.interactions`, and the number of dropped rows by reason.
    """
    # 1. Select the rows to keep.
    table = plain(table, where)
    require(table, ("user_id", "item_id", "timestamp"), where)
    rows = np.arange(table.num_rows)  # row numbers in the file, from 0
    left_out = {}
    if options.event_column is not None:
        table, rows, left_out["events"] = _rate_events(table, rows, where, options)
    elif options.empty_ratings == "drop" and "rating" in table.column_names:
        table, rows, left_out["empty_ratings"] = _kept(table, rows, pc.invert(_is_empty(table["rating"])))
    if not table.num_rows:
        raise ValueError(
            f"{where}: no rows are left, because the options drop all of them; correct event_ratings or empty_ratings"
        )

    # 2. Convert them.
    try:
        columns = _converted(table, where, options.timestamp_format)
    except RowError as error:  # `error.row` counts only the kept rows
        raise RowError(error.where, int(rows[error.row]), error.problem) from error
    return pa.table({**columns, "row": rows + 1}), {reason: count for reason, count in left_out.items() if count}


def _converted(table: pa.Table, where: str, time_format: str | None) -> dict[str, pa.ChunkedArray]:
    """Converts the columns to the types of `Log.interactions`."""
    columns = {
        "user_id": ids(table, "user_id", where),
        "item_id": ids(table, "item_id", where),
        "timestamp": seconds(table["timestamp"], where, time_format),
    }
    exact = None if time_format is not None else exact_order(table["timestamp"])
    if exact is not None:
        columns["exact_time"] = exact
    if "rating" in table.column_names:
        empty = "the rating is empty; fill it in, leave the row out, or set empty_ratings: drop"
        check_none(_is_empty(table["rating"]), table["rating"], where, empty)
        ratings = numbers(table["rating"], "rating", where).cast(pa.float32(), safe=False)
        overflows = pc.invert(pc.is_finite(ratings))  # all ratings were finite as float64
        check_none(overflows, table["rating"], where, "the rating {} is out of float32's range; correct it")
        columns["rating"] = ratings
    return columns


def _rate_events(table: pa.Table, rows: np.ndarray, where: str, options: Options) -> tuple[pa.Table, np.ndarray, int]:
    """Adds the ratings of events, and drops rows whose event has the rating None. Returns the same as [`_kept`]."""
    name = options.event_column or ""
    if name not in table.column_names:
        raise ValueError(
            f"{where} has no event_column {name!r}, only {', '.join(table.column_names)}; choose another event_column"
        )
    ratings = dict(options.event_ratings or {})

    # Look up each distinct event once, then index by `codes` to get the rating of every row.
    codes, events = encode(pc.utf8_trim_whitespace(cast(table[name], pa.string(), name, where).fill_null("")))
    values = []
    for code, event in enumerate(events.to_pylist()):
        if event not in ratings:
            row = int(rows[np.flatnonzero(codes == code)[0]])
            remedy = "add it to event_ratings; the rating null leaves such rows out"
            raise RowError(where, row, f"the event {shown(event)} has no rating; {remedy}")
        values.append(ratings[event])

    rated = pa.chunked_array([pa.array(values, pa.float64()).take(pa.array(codes))])
    table = table.drop_columns(["rating"]) if "rating" in table.column_names else table
    return _kept(table.append_column("rating", rated), rows, rated.is_valid())


def _kept(table: pa.Table, rows: np.ndarray, kept: pa.ChunkedArray) -> tuple[pa.Table, np.ndarray, int]:
    """Returns the rows for which `kept` is true, their row numbers, and the number of dropped rows."""
    chosen = np.flatnonzero(kept.to_numpy())
    return table.take(pa.array(chosen)), rows[chosen], len(rows) - len(chosen)


def _is_empty(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """Returns a boolean per row: whether the value is null, NaN or blank text."""
    if pa.types.is_string(column.type) or pa.types.is_large_string(column.type):
        return pc.fill_null(pc.equal(pc.utf8_trim_whitespace(column), ""), True)
    if pa.types.is_floating(column.type):
        return pc.fill_null(pc.is_nan(column), True)
    return column.is_null()
