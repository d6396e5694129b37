"""Tests that `trl-rec report` refuses damaged folders and wrong command lines with one sentence, and writes no
page."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.evaluation.report.hostile import hostile_run
from tests.robustness.attacks import Attack, assert_refused, each
from trl_rec.data import prepare


def write(name: str, content: str | bytes) -> Callable[[Path], object]:
    """Returns a function that writes or replaces a file of the run folder."""
    data = content.encode() if isinstance(content, str) else content
    return lambda folder: (folder / "run" / name).write_bytes(data)


def study(**changes: object) -> Callable[[Path], object]:
    """Returns a function that adds a study of one baseline. `changes` replace keys of its `study.json`."""
    runs = {"none": {"test": "../run", "row": "popularity"}}
    content = {"primary": "ndcg@10", "comparisons": [], "arms": {"counter": {"kind": "baseline", "runs": runs}}}

    def damage(folder: Path) -> None:
        (folder / "study").mkdir()
        (folder / "study" / "study.json").write_text(json.dumps({**content, **changes}))

    return damage


def rank_unknown_items(folder: Path) -> None:
    path = folder / "run" / "rankings.parquet"
    table = pq.read_table(path)
    items = pa.array([10_000] * table.num_rows, table.schema.field("item").type)
    table = table.set_column(table.column_names.index("item"), "item", items)
    pq.write_table(table, path)


def use_other_catalog(folder: Path) -> None:
    shutil.copytree(folder / "other" / "catalog", folder / "run" / "catalog", dirs_exist_ok=True)


ATTACKS = [
    Attack("no-folder", "missing does not contain an evaluation", words=["missing"]),
    Attack("no-evaluation", "data does not contain an evaluation", words=["data"]),
    Attack("old-evaluation", "without values per user", write("metrics.json", '{"results": {}}'), ["run"]),
    Attack("log-is-binary", "eval.jsonl is damaged", write("eval.jsonl", b"\xff\xfe\0"), ["run"]),
    Attack("log-is-cut", "eval.jsonl is damaged", write("eval.jsonl", '{"loss": 1}\n{"lo'), ["run"]),
    Attack("log-of-lists", "eval.jsonl is damaged", write("eval.jsonl", "[1]\n"), ["run"]),
    Attack("environment-is-cut", "environment.json is damaged", write("environment.json", "{"), ["run"]),
    Attack("environment-is-a-list", "environment.json is damaged", write("environment.json", "[]"), ["run"]),
    Attack("deep-environment", "environment.json is damaged", write("environment.json", '{"a":' * 5000), ["run"]),
    Attack("other-catalogue", "is not the catalogue that was evaluated", use_other_catalog, ["run"]),
    Attack("unknown-items", "ranks items that the catalogue does not have", rank_unknown_items, ["run"]),
    Attack("other-dataset", "differ from those of the evaluation in", words=["run", "--dataset", "other"]),
    Attack("no-dataset", "not a dataset folder", words=["run", "--dataset", "run"]),
    Attack("twice", "given twice", words=["run", "./run"]),
    Attack("names", "the number of names (2) differs from the number of runs (1)", words=["run", "--names", "a", "b"]),
    Attack("name-of-a-baseline", "is the name of another recommender", words=["run", "--names", "popularity"]),
    Attack("names-of-a-study", "leave out the names", study(), ["study", "--names", "a"]),
    Attack("beam-gap", "beam_gap.json is damaged", write("beam_gap.json", '{"a": {}}'), ["run"]),
    Attack("nothing", "RUN_OR_STUDY", words=[]),
    Attack("unknown-option", "unrecognized arguments: --shows", words=["run", "--shows"]),
    Attack("study-and-run", "is a study", study(), ["study", "run"]),
    Attack("study-without-arms", "has no measured arm", study(arms={}), ["study"]),
    Attack("study-of-text", "study.json is damaged", study(arms="none"), ["study"]),
    Attack("study-of-other-comparisons", "study.json is damaged", study(comparisons=[{"name": "a"}]), ["study"]),
    Attack("study-of-other-measure", "no arm has the metric", study(primary="beauty@10"), ["study"]),
    Attack(
        "study-moved",
        "does not contain an evaluation",
        study(arms={"a": {"kind": "lists", "runs": {"0": {"test": "gone", "row": "a"}}}}),
        ["study"],
    ),
    Attack(
        "study-of-other-row",
        "no results of 'a'",
        study(arms={"a": {"kind": "lists", "runs": {"0": {"test": "../run", "row": "a"}}}}),
        ["study"],
    ),
    Attack("page-is-a-folder", "data", words=["run", "--output", "data"]),
]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Makes a folder with a run in `run/`, its dataset in `data/`, and another dataset in `other/`."""
    folder = tmp_path_factory.mktemp("world")
    hostile_run(folder).rename(folder / "run")
    prepare("toy", folder / "other", toy_users=20, toy_items=60)
    return folder


@each(ATTACKS)
def test_a_damaged_folder_is_refused(
    attack: Attack, world: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    folder = shutil.copytree(world, tmp_path / "copy")
    assert_refused(attack, "report", [], folder, capsys)
