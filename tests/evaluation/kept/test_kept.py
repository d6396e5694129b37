"""A saved evaluation is complete and is read back unchanged. Evaluations cannot be compared if they differ in the
catalogue, the split, the users or `exclude_history`."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from trl_rec.data import RecDataset, prepare
from trl_rec.data.dataset import at_most, spread
from trl_rec.evaluation import (
    Evaluation,
    check_comparable,
    evaluate_baselines,
    read_evaluation,
    slices,
    slices_table,
    write_evaluation,
)
from trl_rec.evaluation.kept.files import KEPT_FILES


KS = [1, 5]


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> RecDataset:
    return prepare("toy", tmp_path_factory.mktemp("data") / "toy", toy_users=30, toy_items=50)


@pytest.fixture(scope="module")
def results(dataset: RecDataset) -> dict[str, Evaluation]:
    """The evaluations of the baselines, and of a recommender that has another metric and no rankings."""
    baselines = evaluate_baselines(dataset, ks=KS)
    values = {"reward": np.arange(30.0)}
    return {**baselines, "drawn": Evaluation({"reward": 14.5, "num_users": 30}, {"reward": (1.0, 20.0)}, values)}


def write(folder: Path, results: dict[str, Evaluation], dataset: RecDataset, **changes: Any) -> Path:
    options = {"dataset": dataset, "split": "test", "ks": KS, "exclude_history": True, **changes}
    write_evaluation(folder, results, **options)
    return folder


@pytest.fixture(scope="module")
def folder(dataset: RecDataset, results: dict[str, Evaluation], tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("kept") / "run"
    return write(path, results, dataset, settings={"beams": 3}, recommender="transition", seed=7)


def test_an_evaluation_is_read_back_as_it_was_written(folder, dataset, results) -> None:
    kept = read_evaluation(folder)
    assert (kept.folder, kept.split, kept.ks, kept.exclude_history, kept.num_users) == (folder, "test", KS, True, 30)
    assert (kept.recommender, kept.seed) == ("transition", 7)
    assert kept.settings == {"beams": 3, "dataset": str(dataset.path)}
    assert kept.identity["catalog"] == dataset.catalog.fingerprint
    assert list(kept.results) == list(results)

    for name, one in results.items():
        mine = kept.results[name]
        assert mine.metrics == one.metrics and mine.intervals == one.intervals
        assert mine.per_user.keys() == one.per_user.keys()
        for metric, values in one.per_user.items():
            np.testing.assert_array_equal(mine.per_user[metric], values)


def test_rankings_are_read_back_with_their_scores_if_they_have_scores(folder, results) -> None:
    kept = read_evaluation(folder)
    for name in ("random", "popularity", "transition"):
        rankings = kept.rankings_of(name)
        np.testing.assert_array_equal(rankings.items, results[name].rankings.items)
        if name == "random":
            assert rankings.scores is None
        else:
            np.testing.assert_array_equal(rankings.scores, results[name].rankings.scores)
    assert kept.rankings_of("drawn") is None
    with pytest.raises(ValueError, match="has no results of 'sasrec', only of random, popularity, transition, drawn"):
        kept.rankings_of("sasrec")


def test_missing_ranks_are_read_back_as_missing(dataset, results, tmp_path) -> None:
    rankings = results["transition"].rankings
    items, scores = rankings.items.copy(), rankings.scores.copy()
    items[3, 1:] = -1
    scores[3, 1:] = -np.inf
    changed = replace(results["transition"], rankings=rankings._replace(items=items, scores=scores))
    kept = read_evaluation(write(tmp_path / "run", {"transition": changed}, dataset))
    np.testing.assert_array_equal(kept.rankings_of("transition").items, items)
    np.testing.assert_array_equal(kept.rankings_of("transition").scores, scores)


def test_files_contain_row_numbers_and_no_user_ids(folder, dataset) -> None:
    columns = {name: pq.read_schema(folder / name).names for name in KEPT_FILES}
    assert columns["rankings.parquet"] == ["recommender", "row", "rank", "item", "score"]
    assert columns["users.parquet"] == ["row", "target_count", "history_length", "group"]
    assert columns["per_user.parquet"][:3] == ["recommender", "row", "recall@1"]
    assert sorted(path.name for path in folder.iterdir()) == sorted(["metrics.json", *KEPT_FILES])
    for name in KEPT_FILES:
        content = (folder / name).read_bytes()
        assert not any(user.encode() in content for user in dataset.users["user_id"].to_pylist() if len(user) > 2)


def test_users_are_described_by_their_target_history_and_group(folder, dataset) -> None:
    users = read_evaluation(folder).users
    chosen = [item for row in dataset.train for item in row["history"] + row["targets"]]
    groups = dataset.catalog.items[dataset.catalog.group_column].to_pylist()
    for place, row in enumerate(dataset.test):
        assert users["row"][place] == place
        assert users["target_count"][place] == min(chosen.count(item) for item in row["targets"])
        assert users["history_length"][place] == len(row["history"])
        group = groups[row["targets"][0]]
        assert users["group"][place] == (group[0] if isinstance(group, list) else group)


def test_rows_of_a_part_of_the_split_keep_their_numbers(dataset, tmp_path) -> None:
    part = replace(dataset, test=at_most(7, dataset.test))
    results = evaluate_baselines(part, ks=KS)
    with pytest.raises(ValueError, match="the results are over 7 users, but 'rows' selects 30 rows of the test split"):
        write(tmp_path / "run", results, dataset)
    assert not (tmp_path / "run").exists()

    rows = spread(7, 30)
    kept = read_evaluation(write(tmp_path / "run", results, dataset, rows=rows))
    assert kept.users["row"].tolist() == rows.tolist()
    np.testing.assert_array_equal(kept.rankings_of("random").items, results["random"].rankings.items)
    assert kept.users["history_length"].tolist() == [len(part.test[row]["history"]) for row in range(7)]


def test_slices_contain_the_users_that_their_names_describe(folder) -> None:
    kept = read_evaluation(folder)
    parts = slices(kept)
    for start in ("target ", "history of ", "first target in "):
        members = np.sum([mask for name, mask in parts.items() if name.startswith(start)], 0)
        assert (members == 1).all(), start  # each user is in one slice of each kind
    if "target never in training" in parts:
        assert not kept.users["target_count"][parts["target never in training"]].any()
    for name, mask in parts.items():
        if name.startswith("history of "):
            low, *high = [int(word) for word in name.split() if word.isdigit()]
            lengths = kept.users["history_length"][mask]
            assert (lengths.min(), lengths.max()) == (low, high[0] if high else low)


def test_the_table_of_slices_shows_their_means(folder) -> None:
    kept = read_evaluation(folder)
    lines = slices_table(kept, "ndcg@5").splitlines()
    assert lines[0].split() == ["ndcg@5", "users", "random", "popularity", "transition"]
    assert lines[2].split()[-1] == f"{kept.results['transition'].metrics['ndcg@5']:.4f}"
    name, mask = next(iter(slices(kept).items()))
    line = next(line for line in lines if line.startswith(name))
    assert line.split()[-1] == f"{kept.results['transition'].per_user['ndcg@5'][mask].mean():.4f}"
    liked = slices_table(kept, "liked@5").splitlines()  # liked@5 is defined only for users who liked their target
    assert liked[2].split()[-1] == f"{kept.results['transition'].metrics['liked@5']:.4f}"
    assert "nan" not in "\n".join(liked)
    with pytest.raises(ValueError, match="has no values of ndcg@7 per user; choose one of recall@1, "):
        slices_table(kept, "ndcg@7")


def test_a_catalogue_without_groups_has_no_slices_by_group(dataset, results, tmp_path) -> None:
    plain = replace(dataset, catalog=replace(dataset.catalog, group_column=None))
    kept = read_evaluation(write(tmp_path / "run", results, plain))
    assert not any(name.startswith("first target") for name in slices(kept))


def test_evaluations_that_cannot_be_compared_are_refused(folder, dataset, results, tmp_path) -> None:
    first = read_evaluation(folder)
    check_comparable(first, first)
    other_title = dataset.catalog.items.set_column(1, "title", [[f"T{row}" for row in range(len(dataset.catalog))]])
    part = replace(dataset, test=at_most(7, dataset.test))
    few = evaluate_baselines(part, ks=KS)
    cases = {
        "recommend from different catalogues": (
            results,
            {"dataset": replace(dataset, catalog=replace(dataset.catalog, items=other_title))},
        ),
        "different splits, test and validation": (results, {"split": "validation"}),
        "different numbers of users, 30 and 7": (few, {"rows": spread(7, 30)}),
        "users whose histories or targets differ": (
            results,
            {"dataset": replace(dataset, test=dataset.test.select(range(29, -1, -1)))},
        ),
        "excludes the items of a user's history and": (results, {"exclude_history": False}),
    }
    for number, (message, (measured, changes)) in enumerate(cases.items()):
        second = read_evaluation(write(tmp_path / str(number), measured, **{"dataset": dataset, **changes}))
        with pytest.raises(ValueError, match=message):
            check_comparable(first, second)


def test_a_failed_write_leaves_the_old_evaluation(dataset, results, tmp_path, monkeypatch) -> None:
    write(tmp_path / "run", results, dataset)
    before = {path.name: path.read_bytes() for path in (tmp_path / "run").iterdir()}
    bad = {"bear": Evaluation({"recall@1": float("nan"), "num_users": 30})}
    with pytest.raises(ValueError, match="recall@1 of bear is nan"):
        write(tmp_path / "run", bad, dataset)
    monkeypatch.setattr(pq.ParquetWriter, "write_table", lambda *_: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        write(tmp_path / "run", evaluate_baselines(dataset, ks=KS, seed=3), dataset)
    assert {path.name: path.read_bytes() for path in (tmp_path / "run").iterdir()} == before
    assert json.loads(before["metrics.json"])["results"].keys() == results.keys()
