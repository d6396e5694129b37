"""Lists that another library made are measured exactly as if a recommender of this package had made them."""

import csv
import gzip
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from trl_rec import RecDataset, prepare
from trl_rec.data.dataset import spread
from trl_rec.evaluation import TransitionBaseline, read_evaluation, read_lists
from trl_rec.scripts import evaluate


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> RecDataset:
    return prepare("toy", tmp_path_factory.mktemp("data") / "toy", toy_users=20, toy_items=50)


@pytest.fixture(scope="module")
def table(dataset: RecDataset) -> pa.Table:
    """The lists of the transition baseline as another library might write them: sorted by rank, then by user from last
    to first."""
    baseline = TransitionBaseline().fit(dataset.train, len(dataset.catalog))
    ranked = baseline.rank(dataset.test["history"][:], 12, True)
    lines = [
        {
            "user_id": dataset.users["user_id"][user].as_py(),
            "rank": rank + 1,
            "item_id": dataset.catalog.ids[ranked.items[row, rank]],
            "score": float(ranked.scores[row, rank]),
        }
        for rank in range(12)
        for row, user in reversed([*enumerate(dataset.test["user"])])
        if ranked.items[row, rank] >= 0
    ]
    return pa.Table.from_pylist(lines)


def write(path: Path, table: pa.Table) -> Path:
    """Writes the lists in the format that the name of the file implies."""
    if path.suffix == ".parquet":
        pq.write_table(table, path)
        return path
    opener = gzip.open if path.suffix == ".gz" else open
    with opener(path, "wt", newline="") as file:
        delimiter = ";" if "semicolon" in path.name else "\t" if "tsv" in path.name else ","
        writer = csv.writer(file, delimiter=delimiter)
        writer.writerow(table.column_names)
        writer.writerows(zip(*table.to_pydict().values(), strict=True))
    return path


@pytest.mark.parametrize(
    "name", ["lists.parquet", "lists.csv", "semicolon.csv", "lists.csv.gz", "lists.tsv", "lists.tsv.gz"]
)
def test_lists_are_read_from_every_file_format(
    name: str, dataset: RecDataset, table: pa.Table, tmp_path: Path
) -> None:
    baseline = TransitionBaseline().fit(dataset.train, len(dataset.catalog))
    expected = baseline.rank(dataset.test["history"][:], 10, True)
    ranked = read_lists(write(tmp_path / name, table), dataset)
    np.testing.assert_array_equal(ranked.items, expected.items)
    np.testing.assert_allclose(ranked.scores, expected.scores, rtol=1e-6)


def test_lists_may_name_rows_instead_of_users(dataset: RecDataset, table: pa.Table, tmp_path: Path) -> None:
    row_of = {dataset.users["user_id"][user].as_py(): row for row, user in enumerate(dataset.test["user"])}
    rows = pa.array([row_of[user] for user in table["user_id"].to_pylist()])
    by_row = table.drop_columns(["user_id", "score"]).append_column("row", rows)
    ranked = read_lists(write(tmp_path / "rows.parquet", by_row), dataset, rows=spread(7, 20))
    expected = read_lists(write(tmp_path / "users.parquet", table), dataset)
    np.testing.assert_array_equal(ranked.items, expected.items[spread(7, 20)])
    assert ranked.scores is None


def test_lists_must_name_rows_if_users_have_several(dataset: RecDataset, table: pa.Table, tmp_path: Path) -> None:
    twice = replace(dataset, test=dataset.test.select([*range(20), 0]))
    with pytest.raises(ValueError, match="users have several rows in the test split .* replace the column 'user_id'"):
        read_lists(write(tmp_path / "lists.csv", table), twice)


def test_the_missing_ranks_of_short_lists_are_empty(dataset: RecDataset, table: pa.Table, tmp_path: Path) -> None:
    user = dataset.users["user_id"][dataset.test["user"][3]].as_py()
    keep = [line["user_id"] != user or line["rank"] <= 4 for line in table.to_pylist()]
    ranked = read_lists(write(tmp_path / "lists.csv", table.filter(pa.array(keep))), dataset)
    assert (ranked.items[3] >= 0).tolist() == [True] * 4 + [False] * 6
    assert np.isneginf(ranked.scores[3, 4:]).all()


def test_the_verb_evaluate_measures_lists_beside_the_baselines(
    dataset: RecDataset, table: pa.Table, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lists = write(tmp_path / "sasrec.csv.gz", table)
    words = ["--dataset", str(dataset.path), "--output_dir", str(tmp_path / "out"), "--lists", str(lists)]
    evaluate.main([*words, "--slices", "true"])
    printed = capsys.readouterr().out
    assert "lists sasrec" in printed and "all users" in printed and "history of " in printed

    kept = read_evaluation(tmp_path / "out")
    assert kept.recommender == "lists sasrec" and kept.settings["lists"] == str(lists)
    mine, baseline = kept.results["lists sasrec"], kept.results["transition"]
    assert mine.metrics.items() <= baseline.metrics.items() and mine.intervals.items() <= baseline.intervals.items()
    # Preference accuracy needs scores of items outside the lists.
    assert baseline.metrics.keys() - mine.metrics.keys() <= {"preference_accuracy"}

    evaluate.main([*words, "--name", "SASRec", "--max_users", "7"])
    results = json.loads((tmp_path / "out/metrics.json").read_text())["results"]
    assert list(results) == ["random", "popularity", "transition", "SASRec"]
    assert results["SASRec"]["metrics"].items() <= results["transition"]["metrics"].items()
    assert results["SASRec"]["metrics"]["num_users"] == 7

    # Recall at a larger cutoff is measured if the lists are long enough.
    evaluate.main([*words, "--recall_at", "12"])
    kept = read_evaluation(tmp_path / "out")
    assert kept.results["lists sasrec"].metrics["recall@12"] == kept.results["transition"].metrics["recall@12"]
    evaluate.main([*words, "--recall_at", "13"])
    assert "recall@13" not in read_evaluation(tmp_path / "out").results["lists sasrec"].metrics


def test_history_items_are_measured_if_histories_are_not_excluded(dataset: RecDataset, tmp_path: Path) -> None:
    baseline = TransitionBaseline().fit(dataset.train, len(dataset.catalog))
    ranked = baseline.rank(dataset.test["history"][:], 10, False)
    lines = {
        "row": np.repeat(np.arange(20), 10),
        "rank": np.tile(np.arange(1, 11), 20),
        "item_id": [dataset.catalog.ids[item] for item in ranked.items.flatten()],
    }
    path = write(tmp_path / "lists.parquet", pa.table(lines))
    np.testing.assert_array_equal(read_lists(path, dataset, exclude_history=False).items, ranked.items)
    with pytest.raises(ValueError, match="is in the user's history; leave such items out"):
        read_lists(path, dataset)
