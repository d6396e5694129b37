"""Tests that `trl-rec evaluate --lists` refuses malformed lists of other recommenders, and that damaged folders of
saved evaluations are refused."""

from __future__ import annotations

import gzip
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.robustness.attacks import Attack, assert_refused, each
from tests.robustness.test_locks import held
from trl_rec import evaluate_baselines, load, prepare
from trl_rec.evaluation import read_evaluation, write_evaluation


WORDS = ["--dataset", "data", "--output_dir", "out", "--ks", "2", "--lists", "lists.csv"]
HEADER = "user_id,rank,item_id"


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dataset, a file with one list of two items per user, and the folder of an evaluation."""
    folder = tmp_path_factory.mktemp("world")
    dataset = prepare("toy", folder / "data", toy_users=12, toy_items=60)
    lines = [HEADER]
    for user, history in zip(dataset.test["user"], dataset.test["history"], strict=True):
        items = [dataset.catalog.ids[item] for item in range(60) if item not in history][:2]
        lines += [f"{dataset.users['user_id'][user]},{rank},{item}" for rank, item in enumerate(items, 1)]
    (folder / "lists.csv").write_text("\n".join(lines) + "\n")
    results = evaluate_baselines(dataset, ks=[2])
    write_evaluation(folder / "kept", results, dataset=dataset, ks=[2], exclude_history=True)
    return folder


@pytest.fixture
def folder(world: Path, tmp_path: Path) -> Path:
    shutil.copytree(world, tmp_path / "world")
    return tmp_path / "world"


def lines_of(folder: Path) -> list[str]:
    return (folder / "lists.csv").read_text().splitlines()


def edit(change: Callable[[list[str]], list[str]]) -> Callable[[Path], object]:
    """Rewrites the lines of `lists.csv`, including the header."""
    return lambda folder: (folder / "lists.csv").write_text("\n".join(change(lines_of(folder))) + "\n")


def first(**cells: str) -> Callable[[Path], object]:
    """Replaces cells of the first line below the header of `lists.csv`."""

    def change(lines: list[str]) -> list[str]:
        line = dict(zip(HEADER.split(","), lines[1].split(","), strict=True)) | cells
        return [lines[0], ",".join(line.values()), *lines[2:]]

    return edit(change)


def content(data: bytes, name: str = "lists.csv") -> Callable[[Path], object]:
    return lambda folder: (folder / name).write_bytes(data)


def known_item(folder: Path) -> None:
    """Puts an item of the first user's history into the list of this user."""
    dataset = load(folder / "data")
    item = dataset.catalog.ids[dataset.test["history"][0][0]]
    first(item_id=item)(folder)


def parquet(**columns: pa.Array) -> Callable[[Path], object]:
    return lambda folder: pq.write_table(pa.table(columns), folder / "lists.parquet")


PARQUET = ["--lists", "lists.parquet"]
LISTS = [
    Attack(
        "no file", "there is no file nowhere.csv; give a CSV, TSV or Parquet file", words=["--lists", "nowhere.csv"]
    ),
    Attack(
        "other kind",
        "card.json is not a CSV, TSV or Parquet file; its name must end in .csv, .tsv, .csv.gz, .tsv.gz or .parquet",
        words=["--lists", "data/card.json"],
    ),
    Attack("empty file", "lists.csv is empty", content(b"")),
    Attack("no lines", "lists.csv contains no lists; write one line per user and rank", edit(lambda lines: lines[:1])),
    Attack("not text", "lists.csv is not UTF-8 text", content(b"user_id,rank,item_id\n\xff\xfe,1,2\n")),
    Attack(
        "cut gzip",
        "lists.csv.gz cannot be read",
        lambda folder: (folder / "lists.csv.gz").write_bytes(gzip.compress((folder / "lists.csv").read_bytes())[:-12]),
        ["--lists", "lists.csv.gz"],
    ),
    Attack("not parquet", "lists.parquet cannot be read", content(b"PAR1 oops", "lists.parquet"), PARQUET),
    Attack("repeated column", "several columns named 'rank'", content(b"user_id,rank,rank,item_id\n")),
    Attack(
        "no rank",
        "lists.csv has no column rank, only user_id, place, item_id; lists need the columns user_id, rank and item_id",
        edit(lambda lines: ["user_id,place,item_id", *lines[1:]]),
    ),
    Attack("unknown user", "row 1: the user 'nobody' is not in", first(user_id="nobody")),
    Attack("empty user", "row 1: the user_id is empty", first(user_id="")),
    Attack("unknown item", "row 1: the item 'nothing' is not in the catalogue of", first(item_id="nothing")),
    Attack("empty item", "row 1: the item_id is empty", first(item_id=" ")),
    Attack(
        "repeated item",
        "row 2: the item ",
        edit(lambda lines: [*lines[:2], lines[1].replace(",1,", ",2,"), *lines[3:]]),
    ),
    Attack(
        "repeated rank",
        "row 2: the rank '1' occurs twice in one list",
        edit(lambda lines: [*lines[:2], lines[2].replace(",2,", ",1,"), *lines[3:]]),
    ),
    Attack("rank 0", "row 1: the rank '0' is below 1; the best item of a list has the rank 1", first(rank="0")),
    Attack("fraction", "row 1: the rank '1.5' is not a whole number", first(rank="1.5")),
    Attack("no number", "row 1: the rank 'best' is not a finite number", first(rank="best")),
    Attack("infinite rank", "row 1: the rank 'inf' is not a finite number", first(rank="inf")),
    Attack("huge rank", "row 1: the rank '1e300' is not a whole number of at most 2^31", first(rank="1e300")),
    Attack(
        "skipped rank",
        "row 1: the list has 2 items, but contains the rank 7; number the ranks from 1 without gaps",
        first(rank="7"),
    ),
    Attack(
        "missing user",
        "lists.csv has no list for 1 of 12 rows of the test split",
        edit(lambda lines: [lines[0], *lines[3:]]),
    ),
    Attack("short lists", "the longest list has 2 items, but ks goes up to 5", words=["--ks", "5"]),
    Attack("history", "is in the user's history; leave such items out, or set exclude_history", known_item),
    Attack(
        "score",
        "row 1: the score 'nan' is not a finite number",
        edit(lambda lines: [f"{lines[0]},score", *(f"{line},nan" for line in lines[1:])]),
    ),
    Attack(
        "unknown row",
        "row 1: there is no row 99 in the test split of 12 rows; rows are counted from 0",
        parquet(row=pa.array([99]), rank=pa.array([1]), item_id=pa.array(["0"])),
        PARQUET,
    ),
    Attack(
        "null item",
        "row 1: the item_id is empty",
        parquet(row=pa.array([1]), rank=pa.array([1]), item_id=pa.array([None], pa.string())),
        PARQUET,
    ),
    Attack(
        "lists in cells",
        "the item_id ['1'] cannot be read as string",
        parquet(row=pa.array([1]), rank=pa.array([1]), item_id=pa.array([["1"]])),
        PARQUET,
    ),
    Attack("and a model", "model and lists are both set", words=["--model", "run"]),
    Attack("name of a baseline", "name must not be 'random'", words=["--name", "random"]),
]


@each(LISTS)
def test_malformed_lists_are_refused(attack: Attack, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert_refused(attack, "evaluate", WORDS, folder, capsys)


def test_a_name_without_lists_is_refused(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    attack = Attack("name", "name has no effect without lists")
    assert_refused(attack, "evaluate", ["--dataset", "data", "--output_dir", "out", "--name", "x"], folder, capsys)


def test_two_evaluations_into_one_folder_are_refused(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with held(folder / "out"):
        attack = Attack("locked", "is writing to")
        assert_refused(attack, "evaluate", WORDS, folder, capsys)


def changed(name: str, **columns: pa.Array | None) -> Callable[[Path], object]:
    """Replaces columns of a Parquet file of the evaluation, or removes them (None). The metadata of the file stays."""

    def change(folder: Path) -> None:
        path = folder / "kept" / name
        table = pq.read_table(path)
        for column, values in columns.items():
            place = table.column_names.index(column)
            table = table.remove_column(place) if values is None else table.set_column(place, column, values)
        pq.write_table(table, path)

    return change


def metrics(text: str) -> Callable[[Path], object]:
    return lambda folder: (folder / "kept/metrics.json").write_text(text)


def edited_metrics(**values: object) -> Callable[[Path], object]:
    def change(folder: Path) -> None:
        path = folder / "kept/metrics.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), **values}))

    return change


def metrics_without(folder: Path, key: str) -> None:
    path = folder / "kept/metrics.json"
    values = json.loads(path.read_text())
    del values[key]
    path.write_text(json.dumps(values))


KEPT = [
    Attack("no metrics", "does not contain an evaluation", lambda folder: (folder / "kept/metrics.json").unlink()),
    Attack("no JSON", "metrics.json is damaged and cannot be read", metrics("{")),
    Attack("deep JSON", "metrics.json is damaged and cannot be read", metrics("[" * 100_000)),
    Attack("a list", "does not contain the results of an evaluation", metrics("[]")),
    Attack("old folder", "was written without values per user", edited_metrics(identity=None)),
    Attack("other results", "does not belong to the results", edited_metrics(results={})),
    Attack("no split", "is damaged", lambda folder: metrics_without(folder, "split")),
    *(
        Attack(f"no {name}", f"has no {name}", lambda folder, name=name: (folder / "kept" / name).unlink())
        for name in ("per_user.parquet", "rankings.parquet", "users.parquet")
    ),
    Attack(
        "cut file", "is damaged and cannot be read", lambda folder: (folder / "kept/users.parquet").write_bytes(b"P")
    ),
    Attack("other users", "is damaged", changed("users.parquet", row=pa.array(range(1, 13), pa.int32()))),
    Attack("no rows", "is damaged", changed("per_user.parquet", row=None)),
    Attack("no recommender", "is damaged", changed("per_user.parquet", recommender=None)),
    Attack("texts", "is damaged", changed("per_user.parquet", row=pa.array(["x"] * 36))),
]


def test_rankings_of_other_rows_are_refused(folder: Path) -> None:
    for column, value in (("row", 99), ("rank", 0)):
        rows = pq.read_metadata(folder / "kept/rankings.parquet").num_rows
        changed("rankings.parquet", **{column: pa.array([value] * rows, pa.int32())})(folder)
        with pytest.raises(ValueError, match="rankings.parquet is damaged: it has rankings for rows of the split"):
            read_evaluation(folder / "kept").rankings_of("transition")


@each(KEPT)
def test_a_damaged_evaluation_is_refused(attack: Attack, folder: Path) -> None:
    read_evaluation(folder / "kept")
    attack.damage(folder)
    with pytest.raises(ValueError) as refused:
        read_evaluation(folder / "kept")
    assert attack.says in str(refused.value) and "\n" not in str(refused.value)
