"""Checks the interactions of a source, and turns events such as views and purchases into ratings.

Rows may be left out on request. They are counted, and the rows of the others keep their numbers in messages.
"""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from trl_rec.data.columns import RowError, cast, check_none, encode, ids, numbers, plain, require, shown
from trl_rec.data.log import Options
from trl_rec.data.timestamps import exact_order, seconds


def interactions_table(table: pa.Table, where: str) -> pa.Table:
    """Checks interactions, none of which is left out; see [`read_interactions`]."""
    return read_interactions(table, where, Options())[0]


def read_interactions(table: pa.Table, where: str, options: Options) -> tuple[pa.Table, dict[str, int]]:
    """Checks interactions, and leaves rows out as the options say.

    Args:
        table: The interactions; columns that nothing uses are dropped.
        where: The file's name, for messages.
        options: `timestamp_format`, `empty_ratings`, `event_column` and `event_ratings` are used.

    Returns:
        The columns of `Log.interactions`, and how many rows were left out, by reason.
    """
    # 1. Choose the rows.
    table = plain(table, where)
    require(table, ("user_id", "item_id", "timestamp"), where)
    rows = np.arange(table.num_rows)  # of the file
    left_out = {}
    if options.event_column is not None:
        table, rows, left_out["events"] = _rate_events(table, rows, where, options)
    elif options.empty_ratings == "drop" and "rating" in table.column_names:
        table, rows, left_out["empty_ratings"] = _kept(table, rows, pc.invert(_is_empty(table["rating"])))
    if not table.num_rows:
        raise ValueError(f"{where}: every row is left out; correct event_ratings or empty_ratings")

    # 2. Convert them.
    try:
        columns = _converted(table, where, options.timestamp_format)
    except RowError as error:  # it counts the rows that are left
        raise RowError(error.where, int(rows[error.row]), error.problem) from error
    return pa.table({**columns, "row": rows + 1}), {reason: count for reason, count in left_out.items() if count}


def _converted(table: pa.Table, where: str, time_format: str | None) -> dict[str, pa.ChunkedArray]:
    """The columns in our types."""
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
        overflows = pc.invert(pc.is_finite(ratings))  # all were finite as float64
        check_none(overflows, table["rating"], where, "the rating {} is out of float32's range; correct it")
        columns["rating"] = ratings
    return columns


def _rate_events(table: pa.Table, rows: np.ndarray, where: str, options: Options) -> tuple[pa.Table, np.ndarray, int]:
    """The table with the ratings of its events, without the events that have none."""
    name = options.event_column or ""
    if name not in table.column_names:
        raise ValueError(f"{where} has no event_column {name!r}, only {', '.join(table.column_names)}; name another")
    ratings = dict(options.event_ratings or {})

    # Each distinct event is looked up once; the codes then spread the ratings over all rows.
    codes, events = encode(pc.utf8_trim_whitespace(cast(table[name], pa.string(), name, where).fill_null("")))
    values = []
    for code, event in enumerate(events.to_pylist()):
        if event not in ratings:
            row = int(rows[np.flatnonzero(codes == code)[0]])
            remedy = "add it to event_ratings, with null to leave such rows out"
            raise RowError(where, row, f"the event {shown(event)} has no rating; {remedy}")
        values.append(ratings[event])

    rated = pa.chunked_array([pa.array(values, pa.float64()).take(pa.array(codes))])
    table = table.drop_columns(["rating"]) if "rating" in table.column_names else table
    return _kept(table.append_column("rating", rated), rows, rated.is_valid())


def _kept(table: pa.Table, rows: np.ndarray, kept: pa.ChunkedArray) -> tuple[pa.Table, np.ndarray, int]:
    """The rows for which `kept` is true, their numbers, and the number of the others."""
    chosen = np.flatnonzero(kept.to_numpy())
    return table.take(pa.array(chosen)), rows[chosen], len(rows) - len(chosen)


def _is_empty(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """Where a column has null, NaN or blank text."""
    if pa.types.is_string(column.type) or pa.types.is_large_string(column.type):
        return pc.fill_null(pc.equal(pc.utf8_trim_whitespace(column), ""), True)
    if pa.types.is_floating(column.type):
        return pc.fill_null(pc.is_nan(column), True)
    return column.is_null()
