"""Converts the timestamps of a source to float64. Numbers keep their unit, and dates become seconds since 1970.

Times without a time zone are interpreted as UTC. float64 cannot represent all integers above 2**53, and times in
nanoseconds since 1970 are that large. If a column contains an integer above 2**53, or has the type of a timestamp in
nanoseconds, the interactions are therefore sorted by the original values.
"""

from __future__ import annotations

from datetime import UTC, datetime

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from trl_rec.data.columns import Parser, RowError, encode, parsed, shown, to_float


LARGEST = 2**53  # float64 represents every integer up to this value


def seconds(column: pa.ChunkedArray, where: str, time_format: str | None = None) -> pa.ChunkedArray:
    """Converts timestamps to float64.

    Numbers keep their unit; dates, times and ISO 8601 text become seconds since 1970.

    Args:
        column: Numbers, dates, times or text.
        where: Name of the file, for error messages.
        time_format (*optional*): Format of text, as in `datetime.strptime`, such as `"%d/%m/%Y"`.
    """
    if time_format is not None:
        return _from_format(column, where, time_format)
    if pa.types.is_date(column.type) or pa.types.is_timestamp(column.type):
        return parsed(column, [_from_time], where, "the timestamp {} is not a time")
    _check_zones(column, where)
    parsers: list[Parser] = [to_float, _from_iso, _from_zoned_iso]
    message = (
        "the timestamp {} is neither a number nor ISO 8601 text, or is not of the same kind as the first timestamp "
        "(for other text, set timestamp_format)"
    )
    return parsed(column, parsers, where, message)


def exact_order(column: pa.ChunkedArray) -> pa.ChunkedArray | None:
    """If [`seconds`] may round two of the timestamps to the same float64, returns them as int64, which can be sorted
    exactly. Otherwise, returns None."""
    kind = column.type
    if pa.types.is_timestamp(kind):
        return column.cast(pa.int64()) if kind.unit == "ns" else None
    is_text = pa.types.is_string(kind) or pa.types.is_large_string(kind)
    if not is_text and not pa.types.is_integer(kind):
        return None
    try:
        numbers = (pc.utf8_trim_whitespace(column) if is_text else column).cast(pa.int64())
    except pa.ArrowException:
        return None
    bounds = pc.min_max(numbers)
    largest = max(abs(bounds["min"].as_py() or 0), abs(bounds["max"].as_py() or 0))
    return numbers if largest > LARGEST else None


def _from_format(column: pa.ChunkedArray, where: str, time_format: str) -> pa.ChunkedArray:
    """Converts text in the given format to seconds. Each distinct text is parsed once."""
    if not (pa.types.is_string(column.type) or pa.types.is_large_string(column.type)):
        raise ValueError(f"{where}: the timestamps are {column.type}, not text; leave timestamp_format out")
    codes, texts = encode(column.fill_null(""))
    values = np.empty(len(texts), np.float64)
    for position, text in enumerate(texts.to_pylist()):
        try:
            time = datetime.strptime(text.strip(), time_format)
            values[position] = (time if time.tzinfo else time.replace(tzinfo=UTC)).timestamp()
        except (ValueError, OverflowError) as error:
            row = int(np.flatnonzero(codes == position)[0])
            problem = f"the timestamp {shown(text)} does not match the timestamp_format {time_format!r}; correct one"
            raise RowError(where, row, f"{problem} of them, or leave the row out") from error
    return pa.chunked_array([values[codes]])


def _check_zones(column: pa.ChunkedArray, where: str) -> None:
    """Raises RowError if only some of the texts with a time of day have a time zone, because the rows could then be
    sorted wrongly."""
    if not (pa.types.is_string(column.type) or pa.types.is_large_string(column.type)):
        return
    is_time = pc.fill_null(pc.match_substring_regex(column, r"^\s*\d{4}-\d{2}-\d{2}[T ]\d"), False)
    zoned = pc.fill_null(pc.match_substring_regex(column, r"(Z|[+-]\d{2}:?\d{2}|[+-]\d{2})\s*$"), False)
    times = np.flatnonzero(is_time.to_numpy())
    flags = zoned.to_numpy()[times]
    if not len(times) or flags.all() or not flags.any():
        return
    row = int(times[np.flatnonzero(flags != flags[0])[0]])
    difference = "has no time zone, but the timestamps before it have one"
    if not flags[0]:
        difference = "has a time zone, but the timestamps before it have none"
    problem = f"the timestamp {shown(column[row].as_py())} {difference}"
    raise RowError(where, row, f"{problem}; write all timestamps with a time zone, or all without")


def _from_time(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """Converts dates and times of any type to seconds since 1970, with microsecond resolution."""
    zone = column.type.tz if pa.types.is_timestamp(column.type) else None
    microseconds = column.cast(pa.timestamp("us", zone), safe=False).cast(pa.int64())
    return pc.divide(microseconds.cast(pa.float64()), 1e6)


def _from_iso(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """Converts ISO 8601 text without a time zone to seconds."""
    return _from_time(column.cast(pa.timestamp("us")))


def _from_zoned_iso(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """Converts ISO 8601 text with a time zone to seconds."""
    return _from_time(column.cast(pa.timestamp("us", "UTC")))
