"""Tests how baselines are evaluated on a split, and which splits are rejected."""

from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pytest

from tests.evaluation.logs import make_split, whole_rows
from trl_rec.evaluation.baselines import TransitionBaseline
from trl_rec.evaluation.evaluator import evaluate_rankings, per_user_metrics
from trl_rec.evaluation.intervals import bootstrap_interval
from trl_rec.evaluation.results import evaluate_baselines, evaluate_split
from trl_rec.items.catalog import ItemCatalog


def make_dataset(num_users=60, num_items=25, **changes):
    rng = np.random.default_rng(0)
    sequences = [rng.permutation(num_items)[:length].tolist() for length in rng.integers(4, 12, num_users)]
    ids = [str(index) for index in range(num_items)]
    catalog = ItemCatalog(
        pa.table({"item_id": ids, "title": ids, "genre": [id_[0] for id_ in ids]}), group_column="genre"
    )
    parts = {
        "catalog": catalog,
        "train": make_split(whole_rows([items[:-2] for items in sequences])),
        "validation": make_split(
            [(user, items[:-2], items[-2:-1]) for user, items in enumerate(sequences)], "validation"
        ),
        "test": make_split([(user, items[:-1], items[-1:]) for user, items in enumerate(sequences)], "test"),
    }
    return SimpleNamespace(**(parts | changes))


@pytest.mark.parametrize("split", ["validation", "test"])
def test_baselines_are_fitted_on_train_and_evaluated_on_the_split(split):
    dataset = make_dataset()
    rows = vars(dataset)[split]
    results = evaluate_baselines(dataset, split=split, ks=(2, 5))
    assert list(results) == ["random", "popularity", "transition"]
    ranked = TransitionBaseline().fit(dataset.train, 25).rank(rows["history"], 5, True).items
    popularity = np.bincount(np.concatenate([row["history"] + row["targets"] for row in dataset.train]), minlength=25)
    expected = evaluate_rankings(
        ranked, rows["targets"], ks=(2, 5), catalog=dataset.catalog, histories=rows["history"], popularity=popularity
    )
    assert results["transition"].metrics == expected
    per_user = per_user_metrics(ranked, rows["targets"], ks=(2, 5))
    np.testing.assert_array_equal(results["transition"].per_user["ndcg@5"], per_user["ndcg@5"])
    assert results["transition"].intervals["ndcg@5"] == bootstrap_interval(per_user["ndcg@5"])
    assert {"mgu@5", "ild@5", "popularity@5", "coverage@5"} <= set(expected)


def test_excluding_the_history_changes_the_metrics():
    dataset = make_dataset()
    kept = evaluate_baselines(dataset, ks=(10,), exclude_history=False)["popularity"].metrics["recall@10"]
    assert evaluate_baselines(dataset, ks=(10,))["popularity"].metrics["recall@10"] > kept


def test_equal_seeds_give_equal_results():
    dataset = make_dataset()
    one, same, other = (evaluate_baselines(dataset, ks=(10,), seed=seed)["random"].metrics for seed in (0, 0, 1))
    assert one == same != other


def test_targets_that_are_excluded_with_their_histories_are_reported(caplog):
    evaluate_baselines(make_dataset(), ks=(10,))
    assert not caplog.records
    repeated = make_split([(user, [user % 25, 3], [user % 25]) for user in range(40)], "test")
    evaluate_baselines(make_dataset(test=repeated), ks=(10,), exclude_history=False)
    assert not caplog.records
    evaluate_baselines(make_dataset(test=repeated), ks=(10,))
    assert "40 of 40 targets are in their user's history" in caplog.text


def test_a_planted_leak_is_an_error():
    dataset = make_dataset()
    with pytest.raises(ValueError, match="only the training split"):
        evaluate_baselines(make_dataset(train=dataset.test))


def test_unknown_and_empty_splits_are_errors():
    with pytest.raises(ValueError, match="split 'train'; choose validation or test"):
        evaluate_baselines(make_dataset(), split="train")
    with pytest.raises(ValueError, match="the test split has no rows"):
        evaluate_split(np.zeros((0, 10), int), make_dataset(test=make_split([], "test")))
