"""Checks the interactions of a log, and turns events such as views and purchases into ratings.

Some options drop rows. The number of dropped rows is returned. The row numbers in error messages count all rows of the
file, including the dropped ones.
"""

from __future__ import annotations

from collections.abc import Collection

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from trl_rec.data.columns import (
    Columns,
    RowError,
    cast,
    check_none,
    coded_ids,
    decoded,
    encode,
    numbers,
    require,
    shown,
)
from trl_rec.data.log import Options
from trl_rec.data.timestamps import exact_order, seconds


REQUIRED = ("user_id", "item_id", "timestamp")  # columns that interactions must have


def interactions_table(table: Columns, where: str) -> pa.Table:
    """Same as [`read_interactions`] without options. Drops no rows, and returns only the table."""
    return read_interactions(table, where, Options())[0]


def read_interactions(table: Columns, where: str, options: Options) -> tuple[pa.Table, dict[str, int]]:
    """Checks interactions, and drops the rows that the options exclude.

    The unconverted columns of a large log do not all fit in memory at once. Each column is therefore requested from
    `table`, converted and released before the next column is requested.

    Args:
        table: The interactions. Columns that are not needed are not read.
        where: Name of the file, for error messages.
        options: `timestamp_format`, `empty_ratings`, `event_column` and `event_ratings` are used.

    Returns:
        The table `Log.interactions`, and the number of dropped rows by reason.
    """
    # 1. Select the rows to keep.
    require(table, REQUIRED, where)
    chosen = _Chosen(table, where)
    left_out = {}
    if options.event_column is not None:
        ratings = _rate_events(table, where, options)
        chosen = _Chosen(table, where, ratings.is_valid(), ratings)
        left_out["events"] = chosen.num_dropped
    elif options.empty_ratings == "drop" and "rating" in table.column_names:
        empty = _is_empty(decoded(table.column("rating"), "rating", where))
        chosen = _Chosen(table, where, pc.invert(empty))
        left_out["empty_ratings"] = chosen.num_dropped
    if not len(chosen.rows):
        raise ValueError(
            f"{where}: no rows are left, because the options drop all of them; correct event_ratings or empty_ratings"
        )

    # 2. Convert the columns of these rows.
    try:
        columns = _converted(chosen, where, options.timestamp_format)
    except RowError as error:  # `error.row` counts only the kept rows
        raise RowError(error.where, int(chosen.rows[error.row]), error.problem) from error
    left_out = {reason: count for reason, count in left_out.items() if count}
    return pa.table({**columns, "row": chosen.rows + 1}), left_out


class _Chosen:
    """The kept rows of a table. Each column is read only on request.

    Args:
        table (`Columns`): The table.
        where (`str`): Name of the file, for error messages.
        kept (`pa.ChunkedArray`, *optional*): A boolean per row. By default, all rows are kept.
        ratings (`pa.ChunkedArray`, *optional*): Ratings that replace those of the table.
    """

    def __init__(
        self,
        table: Columns,
        where: str,
        kept: pa.ChunkedArray | None = None,
        ratings: pa.ChunkedArray | None = None,
    ) -> None:
        self._table = table
        self._where = where
        self._kept = kept
        self._ratings = ratings
        self.rows = np.arange(table.num_rows) if kept is None else np.flatnonzero(kept.to_numpy())  # from 0
        self.has_ratings = ratings is not None or "rating" in table.column_names

    @property
    def num_dropped(self) -> int:
        """The number of rows that are left out."""
        return self._table.num_rows - len(self.rows)

    def column(self, name: str) -> pa.ChunkedArray:
        """Returns the kept rows of a column."""
        if name == "rating" and self._ratings is not None:
            values = self._ratings
        else:
            values = decoded(self._table.column(name), name, self._where)
        return values if self._kept is None else values.filter(self._kept)


def _converted(chosen: _Chosen, where: str, time_format: str | None) -> dict[str, pa.ChunkedArray]:
    """Converts the columns to the types of `Log.interactions`."""
    columns = {name: coded_ids(chosen.column(name), name, where) for name in ("user_id", "item_id")}

    timestamp = chosen.column("timestamp")
    columns["timestamp"] = seconds(timestamp, where, time_format)
    exact = None if time_format is not None else exact_order(timestamp)
    if exact is not None:
        columns["exact_time"] = exact
    del timestamp

    if chosen.has_ratings:
        column = chosen.column("rating")
        empty = "the rating is empty; fill it in, leave the row out, or set empty_ratings: drop"
        check_none(_is_empty(column), column, where, empty)
        ratings = numbers(column, "rating", where).cast(pa.float32(), safe=False)
        overflows = pc.invert(pc.is_finite(ratings))  # all ratings were finite as float64
        check_none(overflows, column, where, "the rating {} is out of float32's range; correct it")
        columns["rating"] = ratings
    return columns


def check_event_column(present: Collection[str], name: str, where: str) -> None:
    """Raises ValueError if the column of events is not among the columns that are present."""
    if name not in present:
        raise ValueError(
            f"{where} has no column {name!r} for event_column, only {', '.join(present)}; choose another event_column"
        )


def _rate_events(table: Columns, where: str, options: Options) -> pa.ChunkedArray:
    """Returns the rating of each row's event, or null if the event's rating is None."""
    name = options.event_column or ""
    check_event_column(table.column_names, name, where)
    ratings = dict(options.event_ratings or {})

    # Look up each distinct event once, then index by `codes` to get the rating of every row.
    column = decoded(table.column(name), name, where)
    codes, events = encode(pc.utf8_trim_whitespace(cast(column, pa.string(), name, where).fill_null("")))
    values = []
    for code, event in enumerate(events.to_pylist()):
        if event not in ratings:
            row = int(np.argmax(codes == code))
            remedy = "add it to event_ratings, with a rating, or with null to leave its rows out"
            raise RowError(where, row, f"the event {shown(event)} has no rating; {remedy}")
        values.append(ratings[event])
    return pa.chunked_array([pa.array(values, pa.float64()).take(pa.array(codes))])


def _is_empty(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """Returns a boolean per row: whether the value is null, NaN or blank text."""
    if pa.types.is_string(column.type) or pa.types.is_large_string(column.type):
        return pc.fill_null(pc.equal(pc.utf8_trim_whitespace(column), ""), True)
    if pa.types.is_floating(column.type):
        return pc.fill_null(pc.is_nan(column), True)
    return column.is_null()
