"""Converts the tables of a source to common columns and types.

A value that cannot be converted raises an error that names the file and the row. Rows are counted from 1, without the
header.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from trl_rec.data.log import Options
from trl_rec.ragged import Ragged


Parser = Callable[[pa.ChunkedArray], pa.ChunkedArray]
# `\s` matches only ASCII white space, so add Unicode separators and U+0085 (next line).
WHITE_SPACE = r"[\s\p{Z}\x{85}]+"


class RowError(ValueError):
    """A row of a source file is invalid.

    Args:
        where (`str`): Name of the file.
        row (`int`): Row number, from 0. The message counts from 1.
        problem (`str`): What is wrong with the row, and how to fix it.
    """

    def __init__(self, where: str, row: int, problem: str) -> None:
        super().__init__(f"{where}, row {row + 1}: {problem}")
        self.where = where
        self.row = row
        self.problem = problem


def items_table(table: pa.Table, where: str) -> pa.Table:
    """Checks a table of items, and returns it with `item_id` and `title` as the first columns.

    Raises ValueError if an id is repeated or a title is empty. Line breaks in titles become spaces.
    """
    require(table, ("item_id", "title"), where)
    item_ids = distinct_ids(table, "item_id", where)
    titles = single_line(cast(table["title"], pa.string(), "title", where))
    empty = pc.fill_null(pc.equal(titles, ""), True)  # null counts as empty
    check_none(empty, item_ids, where, "item {} has an empty title; give it one, or leave the item out")

    rest = table.drop_columns(["item_id", "title"])
    if "semantic_id" in rest.column_names:
        place = rest.column_names.index("semantic_id")
        rest = rest.set_column(place, "semantic_id", _semantic_ids(rest["semantic_id"], where))
    return pa.table({"item_id": item_ids, "title": titles, **_columns_of(rest)})


def _semantic_ids(column: pa.ChunkedArray, where: str) -> pa.ChunkedArray:
    """Checks that a column contains lists of tokens, and that no list and no token is empty."""
    remedy = "rename the column if it means something else"
    values = column.type.value_type if _has_lists(column) else None
    if values is None or not (pa.types.is_string(values) or pa.types.is_large_string(values)):
        raise ValueError(f"{where}: the column semantic_id must contain lists of tokens, as text; {remedy}")
    column = column.cast(pa.list_(pa.string()))
    empty = pc.fill_null(pc.equal(pc.list_value_length(column), 0), True)
    check_none(empty, column, where, f"the semantic_id {{}} contains no tokens; add its tokens, or {remedy}")
    lists = Ragged.from_arrow(column)
    bad = np.array([not token for token in lists.values], bool)
    without = np.bincount(lists.row_ids[bad], minlength=len(lists)) > 0
    message = f"the semantic_id {{}} contains an empty token; correct it, or {remedy}"
    check_none(pa.chunked_array([without]), column, where, message)
    return column


def grouped(items: pa.Table | None, options: Options, where: str | None) -> pa.Table | None:
    """Returns the items. If `options` names a group column, that column is converted to lists of text."""
    name = options.group_column
    if name is None:
        return items
    if items is None or where is None or name not in items.column_names:
        reason = f"{where} has only {', '.join(items.column_names)}" if items is not None else "there is no item table"
        raise ValueError(f"the items have no column {name!r} to group by ({reason}); choose another group_column")
    kind = pa.list_(pa.string()) if _has_lists(items[name]) else pa.string()
    lists = split_lists(cast(items[name], kind, name, where), options.group_separator)
    return items.set_column(items.column_names.index(name), name, lists)


def plain(table: pa.Table, where: str) -> pa.Table:
    """Decodes dictionary-encoded columns, which Parquet uses for categories and partitions."""
    for position, field in enumerate(table.schema):
        if pa.types.is_dictionary(field.type):
            values = cast(table.column(position), field.type.value_type, field.name, where)
            table = table.set_column(position, field.name, values)
    return table


def users_table(table: pa.Table, where: str) -> pa.Table:
    """Checks a table of users, and returns it with `user_id` first. Raises ValueError if an id is repeated."""
    require(table, ("user_id",), where)
    rest = table.drop_columns(["user_id"])
    return pa.table({"user_id": distinct_ids(table, "user_id", where), **_columns_of(rest)})


def ids(table: pa.Table, name: str, where: str) -> pa.ChunkedArray:
    """Returns a column of ids as text. Raises ValueError if an id is empty.

    Floats must be whole numbers and are written without a decimal point.
    """
    column = table[name]
    if pa.types.is_floating(column.type):
        column = _whole(column, name, where)
    column = cast(column, pa.string(), name, where)
    empty = pc.fill_null(pc.equal(pc.utf8_trim_whitespace(column), ""), True)
    check_none(empty, column, where, f"the {name} is empty; fill it in, or leave the row out")
    return column


def distinct_ids(table: pa.Table, name: str, where: str) -> pa.ChunkedArray:
    """Same as [`ids`], except that a repeated id raises a ValueError."""
    column = ids(table, name, where)
    # If every id is new, `encode` numbers the rows 0, 1, 2 and so on.
    repeated = encode(column)[0] != np.arange(len(column))
    message = f"the {name} {{}} occurs more than once; keep one of its rows"
    check_none(pa.chunked_array([repeated]), column, where, message)
    return column


def encode(column: pa.ChunkedArray) -> tuple[np.ndarray, pa.Array]:
    """Numbers the distinct values in order of first appearance.

    Returns an int32 array that contains the number of each row's value, and an array of the distinct values in the
    order of their numbers, which start at 0.
    """
    chunks = column.dictionary_encode().unify_dictionaries().chunks
    if not chunks:
        return np.empty(0, np.int32), pa.array([], column.type)
    # After unification all chunks have the same dictionary, so use the one of the first chunk.
    return np.concatenate([chunk.indices.to_numpy() for chunk in chunks]), chunks[0].dictionary


def single_line(titles: pa.ChunkedArray) -> pa.ChunkedArray:
    """Replaces every run of white space in titles, including line breaks, by one space, and trims both ends."""
    return pc.utf8_trim_whitespace(pc.replace_substring_regex(titles, WHITE_SPACE, " "))


def numbers(column: pa.ChunkedArray, name: str, where: str) -> pa.ChunkedArray:
    """Converts numbers or text to float64. Raises RowError at the first value that is not a finite number."""
    return parsed(column, [to_float], where, f"the {name} {{}} is not a finite number")


def split_lists(column: pa.ChunkedArray, separator: str) -> pa.ChunkedArray:
    """Converts a column to lists of trimmed texts. Empty texts are dropped, and null becomes an empty list.

    Args:
        column: Text or lists of text. Only text is split at the separator.
        separator: Separates the parts of a text.
    """
    if _has_lists(column):
        rows = column.cast(pa.list_(pa.string())).fill_null([]).combine_chunks()
    else:
        rows = pc.split_pattern(pc.fill_null(column.cast(pa.string()), ""), separator).combine_chunks()

    parts = pc.utf8_trim_whitespace(rows.flatten())
    kept = pc.fill_null(pc.not_equal(parts, ""), False).to_numpy(zero_copy_only=False)
    # The new offset of a row is the number of kept parts before its old offset. Old offsets of a slice do not start
    # at 0, so subtract the first one.
    num_kept = np.concatenate([[0], np.cumsum(kept)])
    offsets = num_kept[rows.offsets.to_numpy() - rows.offsets[0].as_py()]
    return pa.chunked_array([pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), parts.filter(pa.array(kept)))])


def cast(column: pa.ChunkedArray, kind: pa.DataType, name: str, where: str) -> pa.ChunkedArray:
    """Casts a column to another type. Raises RowError at the first value that cannot be converted."""
    try:
        return column.cast(kind)
    except pa.ArrowException as error:
        row = _first_failing(partial(_can_cast, kind), column)
        value = column[row].as_py()
        raise RowError(where, row, f"the {name} {shown(value)} cannot be read as {kind}; correct it") from error


def shown(value: object) -> str:
    """Returns the `repr` of a value for an error message, truncated if it is long."""
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:60]}... ({len(text)} characters)"


def _can_cast(kind: pa.DataType, column: pa.ChunkedArray) -> bool:
    """Returns whether all values of the column can be converted."""
    try:
        return column.null_count == len(column) or column.cast(kind) is not None
    except pa.ArrowException:
        return False


def _columns_of(table: pa.Table) -> dict[str, pa.ChunkedArray]:
    return dict(zip(table.column_names, table.columns, strict=True))


def _has_lists(column: pa.ChunkedArray) -> bool:
    kind = column.type
    return bool(pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind))


def _whole(column: pa.ChunkedArray, name: str, where: str) -> pa.ChunkedArray:
    """Converts whole floats to int64.

    Raises RowError for fractions. Also raises it for numbers so large that the float type cannot represent every
    integer of that size, because different ids of the source may have been rounded to the same number.
    """
    # The float type represents every integer up to `last` exactly.
    last = 2.0 ** (np.finfo(column.type.to_pandas_dtype()).nmant + 1)
    values = column.cast(pa.float64())
    # NaN and infinity are not whole. Null is accepted here, because `ids` reports it as an empty id.
    whole = pc.and_(pc.equal(pc.floor(values), values), pc.less_equal(pc.abs(values), last))
    message = (
        f"the {name} {{}} is not a whole number, or so large that {column.type} may have rounded it; write the ids as "
        "text"
    )
    check_none(pc.invert(pc.fill_null(whole, True)), column, where, message)
    return values.cast(pa.int64())


def require(table: pa.Table, names: Sequence[str], where: str) -> None:
    """Raises ValueError if the table lacks one of these columns, or has no rows."""
    for name in names:
        if name not in table.column_names:
            raise ValueError(
                f"{where} has no column {name}, only {', '.join(table.column_names)}; map it with "
                f"columns={{{name!r}: ...}}"
            )
    if table.num_rows == 0:
        raise ValueError(f"{where} contains no rows; give a file with at least one")


def check_none(bad: pa.ChunkedArray, column: pa.ChunkedArray, where: str, message: str) -> None:
    """Raises RowError at the first row for which `bad` is true.

    `{}` in the message is replaced by the value of `column` in that row.
    """
    rows = np.flatnonzero(bad.to_numpy())
    if len(rows):
        value = column[int(rows[0])].as_py()
        raise RowError(where, int(rows[0]), message.format(shown(value)))


def parsed(column: pa.ChunkedArray, parsers: Sequence[Parser], where: str, message: str) -> pa.ChunkedArray:
    """Converts a column to float64 with the first of `parsers` that can read the value in the column's first row.

    Raises RowError at the first value that this parser cannot read. `{}` in the message is replaced by the value.
    """
    # If no parser can read the first value, any parser fails the check below, so take the first one.
    parse = next((parse for parse in parsers if _can_parse(parse, column[:1])), parsers[0])
    if not _can_parse(parse, column):
        row = _first_failing(partial(_can_parse, parse), column)
        problem = message.format(shown(column[row].as_py()))
        raise RowError(where, row, f"{problem}; correct it, or leave the row out")
    return parse(column)


def _can_parse(parse: Parser, column: pa.ChunkedArray) -> bool:
    """Returns whether the parser converts every value to a finite number."""
    try:
        # With min_count=0, `all` is true for an empty column.
        return column.null_count == 0 and bool(pc.all(pc.is_finite(parse(column)), min_count=0).as_py())
    except pa.ArrowException:
        return False


def _first_failing(fits: Callable[[pa.ChunkedArray], bool], column: pa.ChunkedArray) -> int:
    """Returns the index of the first row whose value makes `fits` return False.

    Arrow's errors do not name the row, so it is found by binary search.
    """
    low = 0
    high = len(column)
    while high - low > 1:  # the first bad value is in column[low:high]
        middle = (low + high) // 2
        if fits(column[low:middle]):
            low = middle
        else:
            high = middle
    return low


def to_float(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """Converts numbers, or text that contains numbers, to float64."""
    # A safe cast would raise an error for integers that float64 cannot represent. Here they are rounded instead.
    is_text = pa.types.is_string(column.type) or pa.types.is_large_string(column.type)
    return (pc.utf8_trim_whitespace(column) if is_text else column).cast(pa.float64(), safe=False)
