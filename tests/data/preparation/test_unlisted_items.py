"""With `unknown_items="keep"`, an interaction keeps its place in the user's history even if the item table does not
list its item."""

import random

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.data.sources import write_table
from trl_rec.data import load, prepare
from trl_rec.serving import UserHistories


ITEMS = [(item, f"Title {item}") for item in "abcdefgh"]
START = 1_700_000_000_000_000_000  # nanoseconds since 1970; neighbouring integers are equal in float64


def make_log(seed: int) -> list[tuple[str, str, int, int]]:
    """Returns a log of five users with repeated items and the rare item `a`. Some timestamps are equal, and others
    become equal only when they are rounded."""
    draw = random.Random(seed)
    return [
        (f"u{draw.randrange(5)}", draw.choice("a" + 7 * "bcdefgh"), START + draw.choice([0, 1, 2, 3, 10**9]), 1)
        for _ in range(120)
    ]


@pytest.mark.parametrize("minimum", [0, 4])
@pytest.mark.parametrize("repeats", ["keep", "first", "last"])
@pytest.mark.parametrize("seed", range(2))
def test_unlisted_items_have_the_same_place_as_listed_items(tmp_path, seed, repeats, minimum):
    log = make_log(seed)
    listed = "abdfg"
    whole = prepare(write_table(tmp_path / "whole", log, ITEMS), tmp_path / "all", repeats=repeats)
    source = write_table(tmp_path / "part", log, [item for item in ITEMS if item[0] in listed])
    options = {"unknown_items": "keep", "repeats": repeats, "min_item_interactions": minimum}
    dataset = prepare(source, tmp_path / "data", **options)

    # 1. The item table of `whole` lists all items. The histories of `dataset` equal those of `whole`, but lack
    # the listed items that `min_item_interactions` has removed.
    dropped = set(listed) - set(dataset.catalog.ids)
    assert dropped == ({"a"} if minimum else set())
    expected = {
        user: [item for item in whole.history_of(user) if item not in dropped]
        for user in dataset.users["user_id"].to_pylist()
    }
    assert any({"c", "e", "h"} & set(history) for history in expected.values())
    assert {user: dataset.history_of(user) for user in expected} == expected
    catalog = dataset.catalog.ids + ["c", "e", "h"]
    given = UserHistories.of_dataset(dataset, catalog=type("Known", (), {"ids": catalog})())
    found = [[catalog[item] for item in given.histories[row]] for row in range(len(given))]
    assert dict(zip(given.user_ids.to_pylist(), found, strict=True)) == expected and given.num_unknown == 0

    # 2. The card counts the dropped repeats of both listed and unlisted items.
    if not minimum:
        assert dataset.card["left_out"] == whole.card["left_out"]


def test_users_with_only_unlisted_items_are_left_out(tmp_path):
    log = [*make_log(0), ("u9", "h", START, 1)]
    source = write_table(tmp_path / "source", log, ITEMS[:4])
    dataset = prepare(source, tmp_path / "data", unknown_items="keep", repeats="keep")
    assert "u9" not in dataset.users["user_id"].to_pylist() and dataset.card["left_out"]["unknown_items"] == 1


def test_the_table_of_an_earlier_version_is_refused(tmp_path):
    source = write_table(tmp_path / "source", make_log(0), ITEMS[:4])
    path = prepare(source, tmp_path / "data", unknown_items="keep", repeats="keep").path / "unlisted.parquet"
    table = pq.read_table(path)
    assert table.schema.field("place").type == pa.int64()
    pq.write_table(table.drop_columns(["place"]), path)
    with pytest.raises(
        ValueError, match=r"unlisted\.parquet cannot be read: .*place.*; run trl-rec prepare again wit"
    ):
        load(tmp_path / "data").history_of("u1")
