"""A source's tables brought to the common columns and types; what does not fit is refused with its file and row.

Rows are counted from 1, the header not included.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from trl_rec.data.log import Options


Parser = Callable[[pa.ChunkedArray], pa.ChunkedArray]
BLANKS = r"[\s\p{Z}\x{85}]+"


def interactions_table(table: pa.Table, where: str) -> pa.Table:
    """`user_id, item_id, timestamp` and, where there is one, `rating`, checked; `where` names the file in messages."""
    _require(table, ("user_id", "item_id", "timestamp"), where)
    columns = {name: ids(table, name, where) for name in ("user_id", "item_id")}
    columns["timestamp"] = seconds(table["timestamp"], where)
    if "rating" in table.column_names:
        columns["rating"] = numbers(table["rating"], "rating", where).cast(pa.float32(), safe=False)
        _check_where(
            pc.invert(pc.is_finite(columns["rating"])),
            table["rating"],
            where,
            "the rating {} is out of float32's range",
        )
    return pa.table(columns)


def items_table(table: pa.Table, where: str) -> pa.Table:
    """`item_id, title` and the further columns; ids are distinct, titles hold something and run over one line."""
    _require(table, ("item_id", "title"), where)
    item_ids, titles = (
        distinct_ids(table, "item_id", where),
        single_line(cast(table["title"], pa.string(), "title", where)),
    )
    empty = pc.fill_null(pc.equal(titles, ""), True)
    _check_where(empty, item_ids, where, "item {} has an empty title; give it one, or leave the item out")
    rest = table.drop_columns(["item_id", "title"])
    if "semantic_id" in rest.column_names and not _holds_lists(rest["semantic_id"]):
        raise ValueError(
            f"{where}: the column semantic_id must hold lists of tokens; rename it if it means something else"
        )
    return pa.table({"item_id": item_ids, "title": titles} | dict(zip(rest.column_names, rest.columns, strict=True)))


def grouped(items: pa.Table | None, options: Options, where: str | None) -> pa.Table | None:
    """The items, with their group column, where one is named, made lists of text."""
    name = options.group_column
    if name is None:
        return items
    if items is None or where is None or name not in items.column_names:
        there = f"{where} has only {', '.join(items.column_names)}" if items is not None else "there is no item table"
        raise ValueError(f"no item column {name!r} to group by: {there}; name another group_column")
    kind = pa.list_(pa.string()) if _holds_lists(items[name]) else pa.string()
    lists = split_lists(cast(items[name], kind, name, where), options.group_separator)
    return items.set_column(items.column_names.index(name), name, lists)


def users_table(table: pa.Table, where: str) -> pa.Table:
    """`user_id` first, then the further columns; ids are distinct."""
    _require(table, ("user_id",), where)
    rest = table.drop_columns(["user_id"])
    return pa.table(
        {"user_id": distinct_ids(table, "user_id", where)} | dict(zip(rest.column_names, rest.columns, strict=True))
    )


def ids(table: pa.Table, name: str, where: str) -> pa.ChunkedArray:
    """A column of ids as text, none of them empty; ids that are numbers are whole, and written without a point."""
    column = table[name]
    if pa.types.is_floating(column.type):
        column = _whole(column, name, where)
    column = cast(column, pa.string(), name, where)
    empty = pc.fill_null(pc.equal(pc.utf8_trim_whitespace(column), ""), True)
    _check_where(empty, column, where, f"the {name} is empty; fill it in, or leave the row out")
    return column


def distinct_ids(table: pa.Table, name: str, where: str) -> pa.ChunkedArray:
    """A column of ids of which none occurs twice."""
    column = ids(table, name, where)
    repeated = encode(column)[0] != np.arange(
        len(column)
    )  # codes count up from 0 until the first id that was seen before
    _check_where(
        pa.chunked_array([repeated]), column, where, f"the {name} {{}} occurs more than once; keep one of its rows"
    )
    return column


def encode(column: pa.ChunkedArray) -> tuple[np.ndarray, pa.Array]:
    """Codes `(len(column),)` int32, numbered by first appearance, and the value of each code."""
    chunks = column.dictionary_encode().unify_dictionaries().chunks
    if not chunks:
        return np.empty(0, np.int32), pa.array([], column.type)
    return np.concatenate([chunk.indices.to_numpy() for chunk in chunks]), chunks[0].dictionary


def single_line(titles: pa.ChunkedArray) -> pa.ChunkedArray:
    """Titles with every run of white space, line breaks included, made one blank."""
    return pc.utf8_trim_whitespace(pc.replace_substring_regex(titles, BLANKS, " "))


def numbers(column: pa.ChunkedArray, name: str, where: str) -> pa.ChunkedArray:
    """A column of finite float64 numbers, from numbers or from text."""
    return _parsed(column, [_to_float], where, f"the {name} {{}} is not a finite number")


def seconds(column: pa.ChunkedArray, where: str) -> pa.ChunkedArray:
    """Timestamps as float64: numbers as they are; dates, times and ISO 8601 text in seconds since 1970, UTC unless
    told."""
    return _parsed(
        column,
        [_to_float, _from_iso, _from_zoned_iso],
        where,
        "the timestamp {} is neither a number nor ISO 8601 text",
    )


def split_lists(column: pa.ChunkedArray, separator: str) -> pa.ChunkedArray:
    """Lists of trimmed texts that are not empty, from text that is split or from lists; nothing at all gives an empty
    list."""
    if _holds_lists(column):
        rows = column.cast(pa.list_(pa.string())).fill_null([]).combine_chunks()
    else:
        rows = pc.split_pattern(pc.fill_null(column.cast(pa.string()), ""), separator).combine_chunks()
    parts = pc.utf8_trim_whitespace(rows.flatten())
    kept = pc.fill_null(pc.not_equal(parts, ""), False).to_numpy(zero_copy_only=False)
    offsets = np.concatenate([[0], np.cumsum(kept)])[rows.offsets.to_numpy() - rows.offsets[0].as_py()]
    return pa.chunked_array([pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), parts.filter(pa.array(kept)))])


def cast(column: pa.ChunkedArray, kind: pa.DataType, name: str, where: str) -> pa.ChunkedArray:
    """The column in another type; a value that has none in it is refused with its row."""
    try:
        return column.cast(kind)
    except pa.ArrowException as error:
        row = _first_failing(partial(_casts, kind), column)
        value = column[row].as_py()
        raise ValueError(
            f"{where}, row {row + 1}: the {name} {value!r} cannot be read as {kind}; correct it"
        ) from error


def _casts(kind: pa.DataType, column: pa.ChunkedArray) -> bool:
    try:
        return column.null_count == len(column) or column.cast(kind) is not None
    except pa.ArrowException:
        return False


def _holds_lists(column: pa.ChunkedArray) -> bool:
    kind = column.type
    return pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)


def _whole(column: pa.ChunkedArray, name: str, where: str) -> pa.ChunkedArray:
    """Whole floats as int64. Past the last number that the type counts to one by one, ids may have merged already."""
    last = 2.0 ** (np.finfo(column.type.to_pandas_dtype()).nmant + 1)
    values = column.cast(pa.float64())
    whole = pc.and_(pc.equal(pc.floor(values), values), pc.less_equal(pc.abs(values), last))
    message = f"the {name} {{}} is not a whole number that {column.type} holds exactly; write it as text"
    _check_where(pc.invert(pc.fill_null(whole, True)), column, where, message)
    return values.cast(pa.int64())


def _require(table: pa.Table, names: Sequence[str], where: str) -> None:
    for name in names:
        if name not in table.column_names:
            raise ValueError(
                f"{where} has no column {name}, only {', '.join(table.column_names)}; map it with columns={{{name!r}: ...}}"
            )
    if table.num_rows == 0:
        raise ValueError(f"{where} contains no rows; give a file with at least one")


def _check_where(bad: pa.ChunkedArray, column: pa.ChunkedArray, where: str, message: str) -> None:
    rows = np.flatnonzero(bad.to_numpy())
    if len(rows):
        raise ValueError(f"{where}, row {rows[0] + 1}: {message.format(repr(column[int(rows[0])].as_py()))}")


def _parsed(column: pa.ChunkedArray, parsers: Sequence[Parser], where: str, message: str) -> pa.ChunkedArray:
    """The column through the first parser that reads its first value."""
    if pa.types.is_date(column.type) or pa.types.is_timestamp(column.type):
        parsers = [_from_time]
    parse = next((parse for parse in parsers if _succeeds(parse, column[:1])), parsers[0])
    if not _succeeds(parse, column):
        row = _first_failing(partial(_succeeds, parse), column)
        raise ValueError(
            f"{where}, row {row + 1}: {message.format(repr(column[row].as_py()))}; correct it, or leave the row out"
        )
    return parse(column)


def _succeeds(parse: Parser, column: pa.ChunkedArray) -> bool:
    try:
        return column.null_count == 0 and bool(pc.all(pc.is_finite(parse(column)), min_count=0).as_py())
    except pa.ArrowException:
        return False


def _first_failing(fits: Callable[[pa.ChunkedArray], bool], column: pa.ChunkedArray) -> int:
    low, high = 0, len(column)  # the first bad value lies in column[low:high]
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(column[low:middle]) else (low, middle)
    return low


def _to_float(column: pa.ChunkedArray) -> pa.ChunkedArray:
    text = pa.types.is_string(column.type) or pa.types.is_large_string(column.type)
    return (pc.utf8_trim_whitespace(column) if text else column).cast(pa.float64(), safe=False)


def _from_time(column: pa.ChunkedArray) -> pa.ChunkedArray:
    zone = column.type.tz if pa.types.is_timestamp(column.type) else None
    return pc.divide(column.cast(pa.timestamp("us", zone), safe=False).cast(pa.int64()).cast(pa.float64()), 1e6)


def _from_iso(column: pa.ChunkedArray) -> pa.ChunkedArray:
    return _from_time(column.cast(pa.timestamp("us")))


def _from_zoned_iso(column: pa.ChunkedArray) -> pa.ChunkedArray:
    return _from_time(column.cast(pa.timestamp("us", "UTC")))
