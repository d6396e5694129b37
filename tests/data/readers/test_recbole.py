"""Tests the reader of RecBole's atomic files."""

import pytest

from tests.data.sources import rows_of
from trl_rec.data import prepare


INTER = (
    "user_id:token\titem_id:token\trating:float\ttimestamp:float\n1\t10\t4\t3\n1\t11\t5\t1\n1\t12\t3\t2\n2\t10\t2\t1\n"
)
ITEM = (
    "item_id:token\tname:token_seq\tclass:token_seq\tprice:float\tvector:float_seq\n"
    '10\tA "big" day\tx y\t1.5\t1 2\n11\tB\t\t\t3 4\n12\tC\ty\t2\t\n'
)
USER = "user_id:token\tage:token\n2\t30\n1\t20\n"


def write(folder, **files):
    folder.mkdir()
    for suffix, text in files.items():
        (folder / f"X.{suffix}").write_text(text, encoding="utf-8")
    return folder


def test_atomic_files_are_read(tmp_path):
    dataset = prepare(
        write(tmp_path / "source", inter=INTER, item=ITEM, user=USER), tmp_path / "out", group_column="class"
    )
    assert rows_of(dataset, "test") == {"1": (["11", "12"], ["10"])}
    assert dataset.catalog.items.to_pylist() == [
        {"item_id": "10", "title": 'A "big" day', "class": ["x", "y"], "price": 1.5, "vector": [1, 2]},
        {"item_id": "11", "title": "B", "class": [], "price": None, "vector": [3, 4]},
        {"item_id": "12", "title": "C", "class": ["y"], "price": 2, "vector": []},
    ]
    assert dataset.users.to_pydict() == {"user_id": ["2", "1"], "age": ["30", "20"]}
    assert dataset.test[0]["target_ratings"] == [4] and dataset.catalog.group_shares()[0] == ["x", "y"]


def test_a_rating_of_an_item_is_a_number(tmp_path):
    source = write(tmp_path / "source", inter=INTER, item=ITEM.replace("price:float", "rating:float"))
    assert prepare(source, tmp_path / "out").catalog.items["rating"].to_pylist() == [1.5, None, 2]


def test_title_column_can_be_named(tmp_path):
    source = write(
        tmp_path / "source",
        inter=INTER,
        item=ITEM.replace("class:token_seq", "label:token_seq").replace("\t\t\t", "\tz\t\t"),
    )
    assert prepare(source, tmp_path / "out", title_column="label").catalog.titles == ["x y", "z", "y"]


def test_without_an_item_file_titles_are_ids(tmp_path):
    assert prepare(write(tmp_path / "source", inter=INTER), tmp_path / "out").catalog.titles == ["10", "11", "12"]


@pytest.mark.parametrize(
    ("files", "arguments", "message"),
    [
        (
            {"item": ITEM.replace("name:", "label:")},
            {},
            "X.item has no title column .title, movie_title, name, item_name",
        ),
        ({"item": ITEM}, {"group_column": "brand"}, "the items have no column 'brand' to group by .X.item has only"),
        (
            {"item": ITEM.replace("price:float", "price")},
            {},
            "X.item: the column 'price' has no known type; write price:token, :float",
        ),
        ({"item": ITEM.replace("1.5", "cheap")}, {}, "X.item, row 1: the price 'cheap' is not a finite number"),
        ({"item": ITEM.replace("\t2\t", "\tdear\t")}, {}, "X.item, row 3: the price 'dear' is not a finite number"),
        ({"item": ITEM.replace("1 2", "1 two")}, {}, "X.item, row 1: the vector .*two.* cannot be read as list<"),
        ({"inter": INTER.replace("\t2\t1\n", "\t2\tlate\n")}, {}, "X.inter, row 4: the timestamp 'late' is neither"),
        ({"inter": INTER.replace("\t12\t", "\t13\t"), "item": ITEM}, {}, "X.inter, row 3: item '13' is not in X.item"),
    ],
)
def test_bad_files_are_refused(tmp_path, files, arguments, message):
    source = write(tmp_path / "source", **({"inter": INTER} | files))
    with pytest.raises(ValueError, match=message):
        prepare(source, tmp_path / "out", **arguments)
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


def test_two_datasets_in_one_folder_are_refused(tmp_path):
    source = write(tmp_path / "source", inter=INTER)
    (source / "Y.inter").write_text(INTER)
    with pytest.raises(ValueError, match="contains X.inter and Y.inter; keep only one of them"):
        prepare(source, tmp_path / "out")
