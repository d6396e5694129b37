"""Tests how the columns of source files are converted. For bad input, `prepare` writes nothing, and raises a one-line
error that names the file and, if a value is bad, also its row."""

import datetime
import decimal

import numpy as np
import pyarrow as pa
import pytest

from tests.data.sources import ITEMS, LOG, write_csv, write_table
from trl_rec.data import prepare
from trl_rec.data.columns import coded_ids, encode, grouped, ids, items_table, split_lists
from trl_rec.data.interactions import interactions_table
from trl_rec.data.log import Options
from trl_rec.data.timestamps import seconds


HEADER = ("user_id", "item_id", "timestamp", "rating")


def replaced(row, column, value):
    """Returns the log with one cell replaced. Row numbers start at 1."""
    return [
        tuple(value if (i, name) == (row, column) else cell for name, cell in zip(HEADER, cells, strict=True))
        for i, cells in enumerate(LOG, 1)
    ]


BAD_LOGS = {
    "empty user": (replaced(4, "user_id", ""), "interactions.csv, row 4: the user_id is empty; fill it in"),
    "blank item": (replaced(7, "item_id", "  "), "interactions.csv, row 7: the item_id is empty; fill it in"),
    "unknown item": (
        replaced(3, "item_id", "x"),
        "interactions.csv, row 3: item 'x' is not in items.csv; add it there",
    ),
    "text as time": (
        replaced(6, "timestamp", "noon"),
        "interactions.csv, row 6: the timestamp 'noon' is neither a number nor ISO",
    ),
    "first time bad": (
        replaced(1, "timestamp", "noon"),
        "interactions.csv, row 1: the timestamp 'noon' is neither a number nor",
    ),
    "no time": (
        replaced(8, "timestamp", ""),
        "interactions.csv, row 8: the timestamp '' is neither a number nor ISO 8601",
    ),
    "infinite time": (replaced(2, "timestamp", "inf"), "interactions.csv, row 2: the timestamp 'inf' is neither"),
    "NaN rating": (
        replaced(5, "rating", "nan"),
        "interactions.csv, row 5: the rating 'nan' is not a finite number; correct it",
    ),
    "infinite rating": (
        replaced(5, "rating", "-inf"),
        "interactions.csv, row 5: the rating '-inf' is not a finite number",
    ),
    "huge rating": (
        replaced(5, "rating", "1e39"),
        "interactions.csv, row 5: the rating '1e39' is out of float32's range",
    ),
    "no rating": (replaced(2, "rating", ""), "interactions.csv, row 2: the rating is empty; fill it in"),
    "rating in words": (
        replaced(1, "rating", "good"),
        "interactions.csv, row 1: the rating 'good' is not a finite number",
    ),
    "no rows": ([], "interactions.csv contains no rows"),
    "ragged": ([*LOG, ("u", "a")], "interactions.csv cannot be read: .*Expected 4 columns, got 2"),
}


@pytest.mark.parametrize("name", BAD_LOGS)
def test_bad_interactions_are_refused(tmp_path, name):
    log, message = BAD_LOGS[name]
    refuse(write_table(tmp_path / "source", log), message)


@pytest.mark.parametrize(
    ("items", "message"),
    [
        ([*ITEMS, ("b", "Butter")], "items.csv, row 6: the item_id 'b' occurs more than once; keep one of its rows"),
        ([*ITEMS, ("", "Butter")], "items.csv, row 6: the item_id is empty"),
        ([*ITEMS, ("f", " \n ")], "items.csv, row 6: item 'f' has an empty title; give it one"),
        ([], "items.csv contains no rows"),
    ],
)
def test_bad_items_are_refused(tmp_path, items, message):
    refuse(write_table(tmp_path / "source", items=items), message)


@pytest.mark.parametrize(
    ("users", "message"),
    [
        ([("u1", 3), ("u2", 4)], "interactions.csv, row 8: user 'u3' is not in users.csv; add it there"),
        ([("u1", 3), ("u2", 4), ("u3", 5), ("u2", 6)], "users.csv, row 4: the user_id 'u2' occurs more than once"),
    ],
)
def test_bad_users_are_refused(tmp_path, users, message):
    refuse(write_table(tmp_path / "source", users=users), message)


@pytest.mark.parametrize("missing", HEADER[:3])
def test_missing_columns_are_refused(tmp_path, missing):
    header = [name if name != missing else "other" for name in HEADER]
    refuse(
        write_table(tmp_path / "source", header=header),
        f"interactions.csv has no column '{missing}', only .*; if another column contains these values",
    )


def test_an_item_table_without_titles_is_refused(tmp_path):
    source = write_table(tmp_path / "source")
    write_csv(source / "items.csv", ("item_id", "name"), ITEMS)
    refuse(source, "items.csv has no column 'title', only item_id, name; if another column")


def test_a_column_that_is_given_twice_is_refused(tmp_path):
    header = ("user_id", "item_id", "timestamp", "timestamp")
    refuse(write_table(tmp_path / "source", header=header), "interactions.csv has several columns named 'timestamp'")


def test_an_empty_file_is_refused(tmp_path):
    source = write_table(tmp_path / "source")
    (source / "interactions.csv").write_text("")
    refuse(source, "interactions.csv is empty; give a file with a header")


def test_text_that_is_not_utf_8_is_refused(tmp_path):
    source = write_table(tmp_path / "source")
    (source / "items.csv").write_bytes("item_id,title\na,Café\n".encode("latin-1"))
    refuse(source, "items.csv is not UTF-8 text; convert it")


def test_a_missing_source_is_refused(tmp_path):
    with pytest.raises(ValueError, match="nowhere is not a folder; give the folder of the source"):
        prepare(tmp_path / "nowhere", tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def refuse(source, message):
    with pytest.raises(ValueError, match=message) as error:
        prepare(source, source.parent / "deeper" / "out")
    assert "\n" not in str(error.value)
    assert [path.name for path in source.parent.iterdir()] == ["source"]


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (["1", " 2.5 ", "1e3"], [1, 2.5, 1000]),
        ([1, 2], [1, 2]),
        (["1970-01-02", "1970-01-03"], [86400, 172800]),
        (["1970-01-01T00:00:01", "1970-01-01 00:00:02.5"], [1, 2.5]),
        (["1970-01-01T00:00:01Z", "1970-01-01T01:00:01+01:00"], [1, 1]),
        ([datetime.datetime(1970, 1, 1, 0, 1)], [60]),
        ([datetime.datetime(1970, 1, 1, 1, tzinfo=datetime.timezone(datetime.timedelta(hours=1)))], [0]),
        ([datetime.date(1970, 1, 2)], [86400]),
    ],
)
def test_times_are_converted_to_seconds(values, expected):
    found = seconds(pa.chunked_array([values]), "log.csv")
    assert found.type == pa.float64() and found.to_pylist() == expected


def test_the_error_names_the_row_of_a_bad_time_in_any_chunk():
    for row in range(9):
        texts = ["2020-01-01"] * 9
        texts[row] = "2020-13-01"
        with pytest.raises(ValueError, match=f"log.csv, row {row + 1}: the timestamp '2020-13-01'"):
            seconds(pa.chunked_array([texts[:4], texts[4:]]), "log.csv")


def test_null_cells_are_refused():
    columns = {"user_id": ["u", None], "item_id": ["a", "b"], "timestamp": [1.0, 2.0]}
    with pytest.raises(ValueError, match="log, row 2: the user_id is empty"):
        interactions_table(pa.table(columns), "log")
    columns |= {"user_id": ["u", "v"], "timestamp": [1.0, None]}
    with pytest.raises(ValueError, match="log, row 2: the timestamp None is neither"):
        interactions_table(pa.table(columns), "log")


def test_numeric_ids_become_text_and_leading_zeros_are_kept(tmp_path):
    columns = {"user_id": [7, 8], "item_id": ["007", "7"], "timestamp": np.array([1, 2]), "rating": [1, 2]}
    table = interactions_table(pa.table(columns), "log")
    assert table["user_id"].to_pylist() == ["7", "8"] and table["item_id"].to_pylist() == ["007", "7"]
    ids = pa.dictionary(pa.int32(), pa.string())
    assert table.schema.types == [ids, ids, pa.float64(), pa.float32(), pa.int64()]
    assert table["row"].to_pylist() == [1, 2]


@pytest.mark.parametrize("kind", [pa.float64(), pa.float32(), pa.float16()])
def test_whole_floats_are_written_as_whole_numbers(kind):
    table = pa.table({"user_id": pa.array([7.0, -3.0, 1024.0], pa.float32()).cast(kind)})
    assert ids(table["user_id"], "user_id", "log").to_pylist() == ["7", "-3", "1024"]


def test_large_whole_floats_keep_their_digits():
    table = pa.table({"user_id": [1234567890123.0, 2.0**53]})
    assert ids(table["user_id"], "user_id", "log").to_pylist() == ["1234567890123", "9007199254740992"]


@pytest.mark.parametrize(
    ("bad", "kind", "message"),
    [
        (
            1.5,
            pa.float64(),
            "the user_id 1.5 is not a whole number, or is so large that the type double may have rounded it",
        ),
        (float("nan"), pa.float64(), "the user_id nan is not a whole number"),
        (float("inf"), pa.float64(), "the user_id inf is not a whole number"),
        (2.0**54, pa.float64(), "the user_id 1.8014398509481984e.16 is not a whole number"),
        (
            2.0**25,
            pa.float32(),
            "the user_id 33554432.0 is not a whole number, or is so large that the type float may",
        ),
        (None, pa.float64(), "the user_id is empty"),
        ([1], pa.list_(pa.int64()), r"the user_id \[1\] cannot be read as string"),
    ],
)
def test_ids_that_cannot_become_text_are_refused(bad, kind, message):
    good = [1] if pa.types.is_list(kind) else 1.0
    column = pa.chunked_array([pa.array([], kind), pa.array([bad], kind)])
    for read in (ids, coded_ids):
        with pytest.raises(ValueError, match=f"log, row 1: {message}") as error:
            read(column, "user_id", "log")
        assert "\n" not in str(error.value)
        if not pa.types.is_list(kind):
            with pytest.raises(ValueError, match=f"log, row 2: {message}"):
                read(pa.chunked_array([pa.array([good, bad], kind)]), "user_id", "log")


def test_coded_ids_have_the_same_text_as_ids():
    column = pa.chunked_array([pa.array([3.0, -0.0, 7.0]), pa.array([0.0, 3.0])])
    found = coded_ids(column, "user_id", "log")
    assert found.to_pylist() == ids(column, "user_id", "log").to_pylist() == ["3", "0", "7", "0", "3"]
    assert found.type == pa.dictionary(pa.int32(), pa.string()) and len(found.chunk(0).dictionary) == 3


def test_encoding_a_filtered_column_numbers_only_the_remaining_values():
    column = pa.chunked_array([["a", "b", "c", "b", "d", "a"]]).dictionary_encode()
    codes, values = encode(column.filter(pa.array([False, False, True, True, False, True])))
    assert codes.tolist() == [0, 1, 2] and values.to_pylist() == ["c", "b", "a"]


@pytest.mark.parametrize(
    ("values", "kind", "shown"),
    [
        ([[1]], pa.list_(pa.int64()), r"\[1\]"),
        ([datetime.time(1)], pa.time64("us"), r"datetime.time\(1, 0\)"),
        ([{"a": 1}], pa.struct({"a": pa.int64()}), "{'a': 1}"),
        ([decimal.Decimal("1.5"), None], pa.decimal128(9, 1), "None"),
        ([None, decimal.Decimal("1.5")], pa.decimal128(9, 1), "None"),
    ],
)
def test_times_of_other_types_are_refused(values, kind, shown):
    row = 1 + (values[0] is not None) * (len(values) - 1)
    with pytest.raises(
        ValueError, match=f"log, row {row}: the timestamp {shown} is neither a number nor ISO 8601 text"
    ):
        seconds(pa.chunked_array([pa.array(values, kind)]), "log")


def test_titles_that_are_not_text_are_refused():
    with pytest.raises(ValueError, match=r"items, row 1: the title \['A'\] cannot be read as string; correct it"):
        items_table(pa.table({"item_id": ["1"], "title": [["A"]]}), "items")


def test_titles_are_written_in_one_line():
    items = items_table(
        pa.table({"item_id": ["1"], "title": [" A\n  title\u00a0 of\v\tparts\u2028"], "price": [3]}), "items"
    )
    assert items.to_pylist() == [{"item_id": "1", "title": "A title of parts", "price": 3}]


def test_a_semantic_id_must_be_a_list():
    with pytest.raises(
        ValueError, match="items: each cell of the column semantic_id must be a list of texts, one per token"
    ):
        items_table(pa.table({"item_id": ["1"], "title": ["A"], "semantic_id": ["<a_1>"]}), "items")


def test_text_is_split_and_lists_become_lists_of_text():
    column = pa.chunked_array([["a|b", "", None], [" c ||d", "|"]], pa.string())
    assert split_lists(column, "|").to_pylist() == [["a", "b"], [], [], ["c", "d"], []]
    large = pa.chunked_array([[[1, 2], []]], pa.large_list(pa.int64()))
    assert split_lists(large, "|").type == pa.list_(pa.string()) and split_lists(large, "|").to_pylist() == [
        ["1", "2"],
        [],
    ]
    assert split_lists(column[1:4], "|").to_pylist() == [[], [], ["c", "d"]]


@pytest.mark.parametrize("kind", [pa.list_(pa.string()), pa.large_list(pa.string()), pa.list_(pa.string(), 3)])
def test_texts_in_lists_are_trimmed_and_empty_texts_are_removed(kind):
    rows = [[" a ", None, "b"], None, ["", "  ", None], ["c", "a|b", "a "]]
    column = pa.chunked_array([pa.array(rows[:2], kind), pa.array(rows[2:], kind)])
    assert split_lists(column, "|").to_pylist() == [
        ["a", "b"],
        [],
        [],
        ["c", "a|b", "a"],
    ]  # texts in lists are not split
    assert split_lists(column[1:], "|").to_pylist() == [[], [], ["c", "a|b", "a"]]


def test_null_lists_become_empty_even_if_they_cover_values():
    rows = pa.ListArray.from_arrays(pa.array([0, 1, 3]), pa.array(["a", "b", "c"]), mask=pa.array([True, False]))
    assert split_lists(pa.chunked_array([rows]), "|").to_pylist() == [[], ["b", "c"]]


def test_groups_of_another_type_are_refused():
    items = pa.table({"item_id": ["1", "2"], "title": ["A", "B"], "kinds": [None, [{"name": "x"}]]})
    with pytest.raises(
        ValueError, match=r"items, row 2: the kinds \[{'name': 'x'}\] cannot be read as list<"
    ) as error:
        grouped(items, Options(group_column="kinds"), "items")
    assert "\n" not in str(error.value)
