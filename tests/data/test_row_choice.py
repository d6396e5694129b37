"""Tests which interactions `prepare` keeps (repeats, events, empty ratings, unknown items), and how it reads
timestamps."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.data.sources import LOG, rows_of, write_csv, write_table
from trl_rec.data import load, prepare
from trl_rec.data.card import describe
from trl_rec.data.filtering import drop_repeats, is_repeated
from trl_rec.data.indexed_log import IndexedLog
from trl_rec.evaluation import evaluate_baselines
from trl_rec.trainer.alro.rows import build_rated_rows


HEADER = ("user_id", "item_id", "timestamp", "rating")
PLAIN = [("u1", "a", 1, 5), ("u1", "b", 2, 4), ("u1", "c", 3, 3), ("u1", "d", 4, 2), ("u2", "d", 5, 1)]
EVENTS = [
    ("u1", "a", 1, "view"),
    ("u1", "b", 2, "cart"),
    ("u1", "b", 3, "purchase"),
    ("u1", "x", 4, "remove"),
    ("u1", "c", 5, "view"),
    ("u1", "d", 6, "purchase"),
    ("u2", "a", 7, "view"),
    ("u2", "c", 8, "purchase"),
    ("u2", "d", 9, "cart"),
    ("u2", "e", 10, "view"),
]
RATED = {"event_column": "event", "event_ratings": {"view": 2, "cart": 4, "purchase": 5, "remove": None}}


def interactions(dataset: Any) -> list[tuple[str, str, float]]:
    """Returns the user, item and rating of each interaction."""
    table = dataset.interactions
    users = [dataset.users["user_id"][user].as_py() for user in table["user"].to_pylist()]
    items = [dataset.catalog.ids[item] for item in table["item"].to_pylist()]
    return list(zip(users, items, table["rating"].to_pylist(), strict=True))


# Repeats


def test_a_log_with_every_row_twice_needs_the_option_repeats(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    source = write_table(tmp_path / "source", [row for row in PLAIN for _ in range(2)])
    with pytest.raises(ValueError, match="every target of the test split .* history.*set 'repeats: first'"):
        prepare(source, tmp_path / "out")
    assert not (tmp_path / "out").exists()

    first = prepare(source, tmp_path / "first", repeats="first")
    alone = prepare(write_table(tmp_path / "alone", PLAIN), tmp_path / "once")
    assert rows_of(first, "test") == rows_of(alone, "test")
    assert first.card["left_out"] == {"repeats": 5} and first.card["repeated_interactions"] == 0
    assert "left out on request: 5 for repeats" in describe(first.card)
    assert evaluate_baselines(first, ks=[4])["popularity"].metrics["recall@4"] > 0

    kept = prepare(source, tmp_path / "kept", repeats="keep")
    assert kept.card["repeated_interactions"] == 5 and kept.card["repeated_targets"] == {"validation": 0, "test": 1}
    assert kept.card["settings"]["repeats"] == "keep"
    assert "5 interactions repeat an item" in describe(kept.card)


def test_some_repeats_are_counted_and_cause_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    log = [*PLAIN, ("u3", "a", 1, 1), ("u3", "b", 2, 1), ("u3", "c", 3, 1), ("u3", "a", 4, 1)]
    with caplog.at_level(logging.WARNING):
        dataset = prepare(write_table(tmp_path / "source", log), tmp_path / "out")
    assert "1 of 4 validation and test targets are in their user's history" in caplog.text
    assert dataset.card["repeated_targets"] == {"validation": 0, "test": 1}
    assert dataset.card["repeated_interactions"] == 1


@given(st.lists(st.tuples(st.integers(0, 2), st.integers(0, 3)), max_size=20), st.sampled_from(["first", "last"]))
def test_repeats_equal_those_of_a_loop(pairs: list[tuple[int, int]], kept: str) -> None:
    pairs = sorted(pairs, key=lambda pair: pair[0])
    user, item = (np.array([pair[side] for pair in pairs], np.int32) for side in (0, 1))
    users = pa.table({"user_id": ["u", "v", "w"]})
    items = pa.table({"item_id": ["a", "b", "c", "d"]})
    log = IndexedLog(users, items, user, item, np.arange(len(pairs), dtype=float), None)
    seen: set[tuple[int, int]] = set()
    flags = []
    for pair in pairs:
        flags.append(pair in seen)
        seen.add(pair)
    assert is_repeated(log).tolist() == flags

    places = range(len(pairs)) if kept == "first" else reversed(range(len(pairs)))
    chosen: dict[tuple[int, int], int] = {}
    for place in places:
        chosen.setdefault(pairs[place], place)
    assert drop_repeats(log, kept).timestamp.tolist() == sorted(chosen.values())


# Events


@pytest.mark.parametrize(
    ("repeats", "bought"), [(None, [("b", 4), ("b", 5)]), ("first", [("b", 4)]), ("last", [("b", 5)])]
)
def test_events_become_ratings(tmp_path: Path, repeats: str | None, bought: list[tuple[str, float]]) -> None:
    source = write_table(tmp_path / "source", EVENTS, header=("user_id", "item_id", "timestamp", "event"))
    dataset = prepare(source, tmp_path / "out", repeats=repeats, **RATED)
    found = interactions(dataset)
    assert [(item, rating) for user, item, rating in found if user == "u1"] == [("a", 2), *bought, ("c", 2), ("d", 5)]
    assert dataset.card["has_ratings"] and dataset.card["left_out"]["events"] == 1
    assert dataset.card["settings"]["event_ratings"] == RATED["event_ratings"]
    assert (
        prepare(source, tmp_path / "out", repeats=repeats, **RATED).card == dataset.card
    )  # loads the existing folder


def test_an_event_log_gives_rated_rows(tmp_path: Path) -> None:
    """ALRO needs rated rows, which are lists of candidates with their ratings."""
    rng = np.random.default_rng(0)
    names = ["view", "cart", "purchase"]
    log = []
    for user in range(6):
        for step, item in enumerate(rng.permutation(12)[:10]):
            log.append((f"u{user}", f"i{item}", step, names[rng.integers(3)]))
    items = [(f"i{item}", f"Item {item}") for item in range(12)]
    header = ("user_id", "item_id", "timestamp", "event")
    source = write_table(tmp_path / "source", log, items, header=header)
    dataset = prepare(source, tmp_path / "out", split="leave_last", num_held_out=2, **RATED)
    rows = build_rated_rows(dataset.train, num_candidates=3)
    assert len(rows) and {rating for row in rows["ratings"] for rating in row} <= {2.0, 4.0, 5.0}


def test_event_ratings_replace_a_rating_column(tmp_path: Path) -> None:
    folder = tmp_path / "source"
    folder.mkdir()
    rows = [(user, item, time, "", event) for user, item, time, event in EVENTS if event != "remove"]
    write_csv(folder / "interactions.csv", (*HEADER, "event"), rows)
    assert {rating for _, _, rating in interactions(prepare(folder, tmp_path / "out", **RATED))} == {2, 4, 5}


# Empty ratings and unknown items


def test_empty_ratings_are_left_out_on_request(tmp_path: Path) -> None:
    source = write_table(tmp_path / "source", [*PLAIN, ("u1", "e", 9, ""), ("u2", "b", 9, "  ")])
    with pytest.raises(ValueError, match="row 6: the rating is empty; .* or set empty_ratings: drop"):
        prepare(source, tmp_path / "out")
    dataset = prepare(source, tmp_path / "out", empty_ratings="drop")
    assert dataset.card["left_out"] == {"empty_ratings": 2} and len(interactions(dataset)) == 5


@pytest.mark.parametrize("suffix", ["jsonl", "parquet"])
def test_null_and_nan_are_empty_ratings(tmp_path: Path, suffix: str) -> None:
    columns = {"user_id": ["u"] * 5, "item_id": list("abcde"), "timestamp": range(5), "rating": [1.0, None, 2, 3, 4]}
    (tmp_path / "source").mkdir()
    path = tmp_path / "source" / f"interactions.{suffix}"
    if suffix == "parquet":
        columns["rating"][4] = float("nan")
        pq.write_table(pa.table({name: list(values) for name, values in columns.items()}), path)
    else:
        rows = [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]
        path.write_text("\n".join(map(json.dumps, rows)))
    dataset = prepare(tmp_path / "source", tmp_path / "out", empty_ratings="drop")
    assert dataset.card["left_out"] == {"empty_ratings": 2 if suffix == "parquet" else 1}


def test_the_remaining_rows_keep_their_row_numbers(tmp_path: Path) -> None:
    source = write_table(tmp_path / "source", [("u1", "a", 1, ""), *PLAIN, ("u9", "b", "soon", 3)])
    with pytest.raises(ValueError, match="row 7: the timestamp 'soon'"):
        prepare(source, tmp_path / "out", empty_ratings="drop")
    source = write_table(tmp_path / "source", [("u1", "a", 1, ""), *PLAIN, ("u9", "zebra", 8, 3)])
    with pytest.raises(ValueError, match="row 7: item 'zebra' is not in items.csv"):
        prepare(source, tmp_path / "out", empty_ratings="drop")


def test_unknown_items_are_left_out_on_request(tmp_path: Path) -> None:
    source = write_table(tmp_path / "source", [*PLAIN, ("u1", "zebra", 9, 1)])
    with pytest.raises(ValueError, match="row 6: item 'zebra' is not in items.csv; .* or set unknown_items: drop"):
        prepare(source, tmp_path / "out")
    dataset = prepare(source, tmp_path / "out", unknown_items="drop")
    assert dataset.card["left_out"] == {"unknown_items": 1} and len(interactions(dataset)) == 5

    write_csv(tmp_path / "source" / "items.csv", ("item_id", "title"), [("other", "Other")])
    with pytest.raises(ValueError, match=r"interactions\.csv contains none of the items of items\.csv"):
        prepare(tmp_path / "source", tmp_path / "none", unknown_items="drop")


# Timestamps


@pytest.mark.parametrize(
    ("time_format", "texts"),
    [
        ("%d/%m/%Y", ["28/03/2024", "29/03/2024", "01/04/2024", "02/04/2024"]),
        ("%m/%d/%y %I:%M %p", ["03/28/24 01:00 AM", "03/28/24 02:00 PM", "03/29/24 12:00 AM", "03/29/24 12:00 PM"]),
        ("%Y-%m-%dT%H:%M:%S.%f%z", [f"2024-03-2{day}T10:00:00.5+0200" for day in (5, 6, 7, 8)]),
    ],
)
def test_timestamps_are_read_in_the_given_format(tmp_path: Path, time_format: str, texts: list[str]) -> None:
    log = [("u1", item, text, 1) for item, text in zip("abcd", reversed(texts), strict=True)]
    dataset = prepare(write_table(tmp_path / "source", log), tmp_path / "out", timestamp_format=time_format)
    assert [item for _, item, _ in interactions(dataset)] == list("dcba")
    assert dataset.interactions["timestamp"][0].as_py() == pytest.approx(1711324800, abs=4 * 86400)


def test_nanoseconds_keep_their_order_and_are_counted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    start = 1_700_000_000_000_000_000
    log = [("u1", "a", start + 3, 1), ("u1", "b", start + 1, 1), ("u1", "c", start + 2, 1), ("u1", "d", start, 1)]
    with caplog.at_level(logging.WARNING):
        dataset = prepare(write_table(tmp_path / "source", log), tmp_path / "out")
    assert [item for _, item, _ in interactions(dataset)] == list("dbca")
    assert dataset.card["merged_timestamps"] == 3
    assert "3 timestamps differ from the user's previous timestamp by less than float64 can represent" in caplog.text


def test_nanoseconds_of_arrow_keep_their_order(tmp_path: Path) -> None:
    times = pa.array([1_700_000_000_000_000_003, 1_700_000_000_000_000_001, 2, 1], pa.timestamp("ns"))
    (tmp_path / "source").mkdir()
    table = pa.table({"user_id": ["u"] * 4, "item_id": list("abcd"), "timestamp": times, "rating": [1, 1, 1, 1]})
    pq.write_table(table, tmp_path / "source" / "interactions.parquet")
    dataset = prepare(tmp_path / "source", tmp_path / "out")
    assert [item for _, item, _ in interactions(dataset)] == list("dcba")
    assert dataset.card["merged_timestamps"] == 2


# Cards


def test_the_card_of_an_older_version_is_still_accepted(tmp_path: Path) -> None:
    """The settings in the card omit newer options that are not set. `prepare` therefore still accepts a folder that
    was made before these options existed."""
    source = write_table(tmp_path / "source")
    dataset = prepare(source, tmp_path / "out")
    assert dataset.card["settings"] == {
        "layout": 1,
        "format": "table",
        "split": "leave_one_out",
        "min_user_interactions": 0,
        "min_item_interactions": 0,
        "columns": None,
        "group_column": None,
        "group_separator": "|",
    }
    card = json.loads((tmp_path / "out" / "card.json").read_text())
    for name in ("repeated_interactions", "repeated_targets", "left_out", "merged_timestamps"):
        del card[name]
    (tmp_path / "out" / "card.json").write_text(json.dumps(card))
    assert prepare(source, tmp_path / "out").card == card and describe(load(tmp_path / "out").card)
    with pytest.raises(ValueError, match="other settings"):
        prepare(source, tmp_path / "out", repeats="first")
    assert len(LOG) == card["num_interactions"]
