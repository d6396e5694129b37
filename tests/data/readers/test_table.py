"""Tests the reader of plain tables in CSV, Parquet and JSON Lines."""

import datetime
import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.data.sources import ITEMS, LOG, rows_of, write_csv, write_table
from trl_rec.data import prepare


def columns_of(rows, names):
    return pa.table([list(column) for column in zip(*rows, strict=True)], names=names)


@pytest.mark.parametrize("suffix", ["parquet", "jsonl"])
def test_parquet_and_json_lines_equal_csv(tmp_path, suffix):
    names = {"interactions": ["user_id", "item_id", "timestamp", "rating"], "items": ["item_id", "title"]}
    (tmp_path / "source").mkdir()
    for kind, rows in (("interactions", LOG), ("items", ITEMS)):
        table, path = columns_of(rows, names[kind]), tmp_path / "source" / f"{kind}.{suffix}"
        if suffix == "parquet":
            pq.write_table(table, path)
        else:
            path.write_text("\n".join(json.dumps(row) for row in table.to_pylist()))
    expected = prepare(write_table(tmp_path / "csv"), tmp_path / "expected")
    found = prepare(tmp_path / "source", tmp_path / "found")
    assert found.card["fingerprint"] == expected.card["fingerprint"]
    assert found.interactions.equals(expected.interactions)
    assert found.test.to_list() == expected.test.to_list()


def test_columns_are_renamed(tmp_path):
    log = [("ignored", *row, "a long review\nof two lines") for row in LOG]
    source = write_table(
        tmp_path / "source", log, None, header=("user_id", "customer", "product", "time", "stars", "review")
    )
    write_csv(
        source / "items.csv", ("product", "name", "title", "price"), [(item, name, "Dr", 3) for item, name in ITEMS]
    )
    names = {"user_id": "customer", "item_id": "product", "timestamp": "time", "rating": "stars", "title": "name"}
    dataset = prepare(source, tmp_path / "out", columns=names)
    expected = prepare(write_table(tmp_path / "plain"), tmp_path / "expected")
    assert rows_of(dataset, "test") == rows_of(expected, "test") and dataset.interactions.equals(expected.interactions)
    assert dataset.catalog.items.column_names == ["item_id", "title", "price"] and dataset.catalog.titles[0] == "Apple"


def test_line_breaks_in_text_are_read_in_a_file_of_several_blocks(tmp_path):
    review = "line\n" * 50
    log = [(f"u{row // 4}", "abcd"[row % 4], row, 1, review) for row in range(10_000)]
    source = write_table(tmp_path / "source", log, header=("user_id", "item_id", "timestamp", "rating", "review"))
    assert prepare(source, tmp_path / "out").card["num_interactions"] == 10_000


def test_an_unknown_column_is_refused(tmp_path):
    with pytest.raises(
        ValueError,
        match="the option 'columns' maps rating to 'stars', which is not a column of interactions.csv or items.csv",
    ):
        prepare(write_table(tmp_path / "source"), tmp_path / "out", columns={"rating": "stars"})


@pytest.mark.parametrize("suffix", ["csv", "parquet", "jsonl"])
def test_the_message_about_a_missing_column_names_all_columns_of_the_file(tmp_path, suffix):
    names = ["customer", "item_id", "when", "stars"]
    table, path = columns_of(LOG, names), tmp_path / f"interactions.{suffix}"
    if suffix == "parquet":
        pq.write_table(table, path)
    elif suffix == "csv":
        write_csv(path, names, LOG)
    else:
        path.write_text("\n".join(json.dumps(row) for row in table.to_pylist()))
    with pytest.raises(ValueError, match=f"{path.name} has no column 'user_id', only customer, item_id, when, stars;"):
        prepare(tmp_path, tmp_path / "out")
    events = {"columns": {"user_id": "customer", "timestamp": "when"}, "event_column": "kind"}
    with pytest.raises(
        ValueError, match="has no column 'kind' for event_column, only user_id, item_id, timestamp, stars;"
    ):
        prepare(tmp_path, tmp_path / "out", **events, event_ratings={"view": 1})


def test_groups_are_split(tmp_path):
    source = write_table(tmp_path / "source", users=[("u3", 30), ("u2", 20), ("u1", 10)])
    write_csv(
        source / "items.csv",
        ("item_id", "title", "kinds"),
        [(*item, kinds) for item, kinds in zip(ITEMS, "x|y,,y,x | z,y".split(","), strict=True)],
    )
    dataset = prepare(source, tmp_path / "out", group_column="kinds")
    names, shares = dataset.catalog.group_shares()
    assert names == ["x", "y", "z"] and shares.tolist() == [
        [0.5, 0.5, 0],
        [0, 0, 0],
        [0, 1, 0],
        [0.5, 0, 0.5],
        [0, 1, 0],
    ]
    # Users have the order of the user table.
    assert dataset.users.to_pydict() == {"user_id": ["u3", "u2", "u1"], "age": [30, 20, 10]}
    assert rows_of(dataset, "test")["u1"] == (["b", "a", "c"], ["d"])
    other = prepare(source, tmp_path / "other", group_column="kinds", group_separator="/")
    assert other.catalog.group_shares()[0] == ["x | z", "x|y", "y"]


def test_group_column_must_exist(tmp_path):
    with pytest.raises(
        ValueError, match="the items have no column 'kinds' to group by .items.csv has only item_id, title"
    ):
        prepare(write_table(tmp_path / "source"), tmp_path / "out", group_column="kinds")
    with pytest.raises(ValueError, match="the items have no column 'kinds' to group by .there is no item table"):
        prepare(write_table(tmp_path / "bare", items=None), tmp_path / "out", group_column="kinds")


def test_two_files_of_one_table_are_refused(tmp_path):
    source = write_table(tmp_path / "source")
    pq.write_table(columns_of(ITEMS, ["item_id", "title"]), source / "items.parquet")
    with pytest.raises(ValueError, match="contains items.csv and items.parquet; keep only one"):
        prepare(source, tmp_path / "out")


def test_broken_parquet_is_refused(tmp_path):
    source = write_table(tmp_path / "source")
    (source / "interactions.csv").unlink()
    (source / "interactions.parquet").write_text("no parquet")
    with pytest.raises(ValueError, match="interactions.parquet cannot be read"):
        prepare(source, tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


def test_quoted_headers_a_byte_order_mark_and_text_that_looks_like_null_are_read(tmp_path):
    source = write_table(tmp_path / "source", items=None)
    text = '\ufeff"item_id","title","note, long"\r\na,NA,1\r\nb,null,2\r\nc,"3",3\r\nd,nan,4\r\n'
    (source / "items.csv").write_text(text, encoding="utf-8")
    assert prepare(source, tmp_path / "out").catalog.titles == ["NA", "null", "3", "nan"]


def write_json(path, rows):
    path.write_text("\n".join(json.dumps(row) for row in rows))


def test_text_in_json_that_looks_like_a_date_stays_text(tmp_path):
    source = tmp_path / "source"
    source.mkdir()
    log = [
        {"who": "2020-01-01T00:00:00Z", "item_id": f"2020-01-0{day}", "timestamp": f"2021-01-0{day}", "rating": 1}
        for day in range(1, 5)
    ]
    write_json(source / "interactions.jsonl", log)
    items = [
        {"item_id": row["item_id"], "title": "1984-01-01", "released": [row["item_id"]], "weight": day}
        for day, row in enumerate(log)
    ]
    write_json(source / "items.jsonl", items)
    dataset = prepare(source, tmp_path / "out", columns={"user_id": "who"}, group_column="released")
    assert dataset.users["user_id"].to_pylist() == ["2020-01-01T00:00:00Z"]
    assert (
        dataset.catalog.ids == [f"2020-01-0{day}" for day in range(1, 5)]
        and dataset.catalog.titles == ["1984-01-01"] * 4
    )
    assert dataset.catalog.group_shares()[0] == dataset.catalog.ids
    assert dataset.catalog.items.column_names == ["item_id", "title", "released", "weight"]
    assert (
        dataset.interactions["timestamp"][0].as_py() == datetime.datetime(2021, 1, 1, tzinfo=datetime.UTC).timestamp()
    )


def test_ids_that_are_numbers_keep_their_digits(tmp_path):
    log = [{"user_id": 1234567890123, "item_id": 1e12 + item, "timestamp": item} for item in range(3)]
    for suffix in ("jsonl", "parquet"):
        source = tmp_path / suffix
        source.mkdir()
        if suffix == "jsonl":
            write_json(source / "interactions.jsonl", log)
        else:
            pq.write_table(pa.Table.from_pylist(log), source / "interactions.parquet")
        dataset = prepare(source, tmp_path / f"out-{suffix}")
        assert dataset.users["user_id"].to_pylist() == ["1234567890123"]
        assert dataset.catalog.ids == ["1000000000000", "1000000000001", "1000000000002"]


def test_ids_that_lost_digits_are_refused(tmp_path):
    (tmp_path / "source").mkdir()
    write_json(
        tmp_path / "source" / "interactions.jsonl", [{"user_id": 12345678901234567890, "item_id": "a", "timestamp": 1}]
    )
    with pytest.raises(
        ValueError, match="interactions.jsonl, row 1: the user_id 1.2345678901234567e.19 is not a whole number"
    ):
        prepare(tmp_path / "source", tmp_path / "out")


@pytest.mark.parametrize(
    ("column", "value", "message"),
    [
        ("item_id", [["a"]], r"row 1: the item_id \['a'\] cannot be read as string; correct it"),
        ("timestamp", [["a"]], r"row 1: the timestamp \['a'\] is neither a number nor ISO 8601 text"),
        ("timestamp", [datetime.time(1)], r"row 1: the timestamp datetime.time\(1, 0\) is neither"),
        ("rating", [[1]], r"row 1: the rating \[1\] is not a finite number"),
    ],
)
def test_columns_of_another_type_are_refused(tmp_path, column, value, message):
    (tmp_path / "source").mkdir()
    columns = {"user_id": ["u"], "item_id": ["a"], "timestamp": [1], "rating": [1]} | {column: value}
    pq.write_table(pa.table(columns), tmp_path / "source" / "interactions.parquet")
    with pytest.raises(ValueError, match=f"interactions.parquet, {message}"):
        prepare(tmp_path / "source", tmp_path / "out")


@pytest.mark.parametrize("suffix", ["parquet", "jsonl"])
def test_a_broken_file_is_refused_even_if_columns_are_renamed(tmp_path, suffix):
    (tmp_path / "source").mkdir()
    (tmp_path / "source" / f"interactions.{suffix}").write_text('{"a": oops')
    with pytest.raises(ValueError, match=f"interactions.{suffix} cannot be read: ") as error:
        prepare(tmp_path / "source", tmp_path / "out", columns={"user_id": "who"})
    assert "\n" not in str(error.value)


def test_lists_are_read_as_groups(tmp_path):
    source = write_table(tmp_path / "source", items=None)
    kinds = [[" x", None], ["x", ""], None, ["y"], []]
    table = columns_of(ITEMS, ["item_id", "title"]).append_column("kinds", pa.array(kinds, pa.list_(pa.string())))
    pq.write_table(table, source / "items.parquet")
    names, shares = prepare(source, tmp_path / "out", group_column="kinds").catalog.group_shares()
    assert names == ["x", "y"] and shares.tolist() == [[1, 0], [1, 0], [0, 0], [0, 1], [0, 0]]
