"""Converts the tables of a source to common columns and types.

If a value cannot be converted, an error is raised, and its message contains the file and the row. Messages count rows
from 1, without the header.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from functools import partial
from typing import Protocol

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from trl_rec.data.log import Options
from trl_rec.ragged import BLOCK, Ragged


Parser = Callable[[pa.ChunkedArray], pa.ChunkedArray]
# In Arrow's regular expressions (RE2), `\s` matches only ASCII white space, without the vertical tab. The pattern
# therefore also lists the vertical tab, the Unicode separators and U+0085 (next line).
WHITE_SPACE = r"[\s\v\p{Z}\x{85}]+"


class Columns(Protocol):
    """A table whose columns can be read one at a time. `pa.Table` has this interface, too."""

    @property
    def column_names(self) -> list[str]:
        """The names of the columns."""

    @property
    def num_rows(self) -> int:
        """The number of rows."""

    def column(self, name: str) -> pa.ChunkedArray:
        """Returns a column."""


class RowError(ValueError):
    """A row of a source file is invalid.

    Args:
        where (`str`): Name of the file.
        row (`int`): Row number, counted from 0. The message counts from 1.
        problem (`str`): What is wrong with the row, and how to fix it.
    """

    def __init__(self, where: str, row: int, problem: str) -> None:
        super().__init__(f"{where}, row {row + 1}: {problem}")
        self.where = where
        self.row = row
        self.problem = problem


def items_table(table: pa.Table, where: str) -> pa.Table:
    """Checks a table of items, and returns it with `item_id` and `title` as the first columns.

    Raises ValueError if one of these two columns is missing, the table has no rows, an id is empty or repeated, a
    title is empty, or a semantic ID is invalid. Every run of white space in a title becomes one space.
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
        raise ValueError(
            f"{where}: each cell of the column semantic_id must be a list of texts, one per token; {remedy}"
        )
    column = column.cast(pa.list_(pa.string()))
    empty = pc.fill_null(pc.equal(pc.list_value_length(column), 0), True)
    check_none(empty, column, where, f"the semantic_id {{}} contains no tokens; add its tokens, or {remedy}")

    lists = Ragged.from_arrow(column)
    is_empty = np.array([not token for token in lists.values], bool)
    has_empty = np.bincount(lists.row_ids[is_empty], minlength=len(lists)) > 0
    message = f"the semantic_id {{}} contains an empty token; correct it, or {remedy}"
    check_none(pa.chunked_array([has_empty]), column, where, message)
    return column


def grouped(items: pa.Table | None, options: Options, where: str | None) -> pa.Table | None:
    """Returns the items. If `options` names a group column, this column is converted to lists of texts.

    Raises ValueError if the items lack the column.
    """
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
        table = table.set_column(position, field.name, decoded(table.column(position), field.name, where))
    return table


def decoded(column: pa.ChunkedArray, name: str, where: str) -> pa.ChunkedArray:
    """Returns a column with its dictionary encoding removed, if it has one."""
    is_encoded = pa.types.is_dictionary(column.type)
    return cast(column, column.type.value_type, name, where) if is_encoded else column


def users_table(table: pa.Table, where: str) -> pa.Table:
    """Checks a table of users, and returns it with `user_id` as the first column.

    Raises ValueError if this column is missing, the table has no rows, or an id is empty or repeated.
    """
    require(table, ("user_id",), where)
    rest = table.drop_columns(["user_id"])
    return pa.table({"user_id": distinct_ids(table, "user_id", where), **_columns_of(rest)})


def ids(column: pa.ChunkedArray, name: str, where: str) -> pa.ChunkedArray:
    """Returns a column of ids as text. Raises ValueError if an id is empty.

    Floats must be whole numbers and are written without a decimal point.
    """
    if pa.types.is_floating(column.type):
        column = _whole(column, name, where)
    column = cast(column, pa.string(), name, where)
    empty = pc.fill_null(pc.equal(pc.utf8_trim_whitespace(column), ""), True)
    check_none(empty, column, where, f"the {name} is empty; fill it in, or leave the row out")
    return column


def distinct_ids(table: pa.Table, name: str, where: str) -> pa.ChunkedArray:
    """Same as [`ids`], but a repeated id also raises ValueError."""
    column = ids(table[name], name, where)
    # `encode` numbers distinct ids in order of first appearance. If no id is repeated, the rows have the numbers 0, 1,
    # 2 and so on.
    repeated = encode(column)[0] != np.arange(len(column))
    message = f"the {name} {{}} occurs more than once; keep one of its rows"
    check_none(pa.chunked_array([repeated]), column, where, message)
    return column


def encode(column: pa.ChunkedArray) -> tuple[np.ndarray, pa.Array]:
    """Numbers the distinct values of a column in order of first appearance.

    Returns an int32 array that contains the number of each row's value, and an array of the distinct values in the
    order of their numbers, which start at 0.
    """
    is_encoded = pa.types.is_dictionary(column.type)
    encoded = column.dictionary_encode()
    if not _share_dictionary(encoded.chunks):
        encoded = encoded.unify_dictionaries()
    chunks = encoded.chunks
    if not chunks:
        return np.empty(0, np.int32), pa.array([], column.type.value_type if is_encoded else column.type)
    # All chunks have the same dictionary, so use the dictionary of the first chunk.
    codes = np.concatenate([chunk.indices.to_numpy() for chunk in chunks])
    return _by_appearance(codes, chunks[0].dictionary) if is_encoded else (codes, chunks[0].dictionary)


def _share_dictionary(chunks: list[pa.DictionaryArray]) -> bool:
    """Returns whether all chunks share one dictionary in memory, as after `dictionary_encode`.

    If they do, unifying their dictionaries would only copy the dictionary for every chunk.
    """
    addresses = {tuple(one and one.address for one in chunk.dictionary.buffers()) for chunk in chunks}
    return len(addresses) <= 1


def coded_ids(column: pa.ChunkedArray, name: str, where: str) -> pa.ChunkedArray:
    """Same as [`ids`], but the text is dictionary-encoded, so that each distinct id is stored and checked once."""
    # 1. Encode. If there is a null, let `ids` raise the error. The rows before the null are passed too, because one of
    # them may be invalid in another way.
    if column.null_count:
        first = int(pc.index(column.is_null(), True).as_py())
        ids(column[: first + 1], name, where)
    try:
        codes, values = encode(column)
    except pa.ArrowNotImplementedError:  # lists and structs cannot be encoded; `ids` refuses them
        codes, values = encode(ids(column, name, where))

    # 2. Check the distinct values. They are in order of first appearance, so the first invalid value belongs to the
    # first invalid row.
    try:
        texts = ids(pa.chunked_array([values]), name, where)
    except RowError as error:
        raise RowError(where, int(np.argmax(codes == error.row)), error.problem) from error

    # 3. Different values may have the same text, such as 0.0 and -0.0. Give them the same code.
    text_codes, distinct = encode(texts)
    if len(distinct) < len(values):
        codes = text_codes[codes]
    return pa.chunked_array([pa.DictionaryArray.from_arrays(pa.array(codes), distinct)])


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
    # The new offset of a row is the number of kept parts before its old offset. If `rows` is a slice of a larger
    # array, its old offsets do not start at 0, so subtract the first of them.
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


def _by_appearance(codes: np.ndarray, values: pa.Array) -> tuple[np.ndarray, pa.Array]:
    """Renumbers codes in order of first appearance, and drops the values that no row has."""
    # 1. Find the first row of each code. If a code occurs several times in an assignment, numpy keeps the last row, so
    # assign the rows backwards.
    num_rows = len(codes)
    first = np.full(len(values), num_rows)
    for stop in range(num_rows, 0, -BLOCK):
        start = max(stop - BLOCK, 0)
        first[codes[start:stop][::-1]] = np.arange(stop - 1, start - 1, -1)

    # 2. Renumber.
    order = np.argsort(first, kind="stable")
    order = order[first[order] < num_rows]
    if np.array_equal(order, np.arange(len(values))):
        return codes, values
    new_codes = np.zeros(len(values), codes.dtype)
    new_codes[order] = np.arange(len(order))
    return new_codes[codes], values.take(pa.array(order))


def _can_cast(kind: pa.DataType, column: pa.ChunkedArray) -> bool:
    """Returns whether all values of the column can be converted. Null can be converted to any type."""
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

    Raises RowError for fractions, and for numbers so large that the float type cannot represent every integer of that
    size. Different ids of the source may have been rounded to the same large number.
    """
    # The float type represents every integer up to `last` exactly.
    last = 2.0 ** (np.finfo(column.type.to_pandas_dtype()).nmant + 1)
    values = column.cast(pa.float64())
    # NaN and infinity are not whole. Null is accepted here, because `ids` reports it as an empty id.
    whole = pc.and_(pc.equal(pc.trunc(values), values), pc.less_equal(pc.abs(values), last))
    message = (
        f"the {name} {{}} is not a whole number, or is so large that the type {column.type} may have rounded it; "
        "write the ids as text"
    )
    check_none(pc.invert(pc.fill_null(whole, True)), column, where, message)
    return values.cast(pa.int64())


def require(table: Columns, names: Sequence[str], where: str) -> None:
    """Raises ValueError if the table lacks one of the columns in `names`, or has no rows."""
    require_names(table.column_names, names, where)
    if table.num_rows == 0:
        raise ValueError(f"{where} contains no rows; give a file with at least one")


def require_names(present: Collection[str], names: Sequence[str], where: str) -> None:
    """Raises ValueError if one of `names` is not among the columns that are present."""
    for name in names:
        if name not in present:
            raise ValueError(
                f"{where} has no column {name!r}, only {', '.join(present)}; if another column contains these values, "
                f"set columns={{{name!r}: '<its name>'}} (format 'table'), or rename it in the file (other formats)"
            )


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
    # If no parser can read the first value, take any parser. It fails the check below.
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

    Arrow's errors do not contain the row, so the row is found by binary search.
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
    # `safe=False` rounds integers that float64 cannot represent exactly. A safe cast would raise an error for them.
    is_text = pa.types.is_string(column.type) or pa.types.is_large_string(column.type)
    return (pc.utf8_trim_whitespace(column) if is_text else column).cast(pa.float64(), safe=False)
