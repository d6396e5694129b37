"""Compares the metrics for orders of rated candidates with slow loops, and the baselines for rated lists with their
definitions."""

import numpy as np
import pytest
from datasets import Dataset
from hypothesis import given
from hypothesis import strategies as st

from tests.oracles import rated as oracle
from trl_rec import RecDataset, prepare
from trl_rec.data.dataset import split_rows
from trl_rec.evaluation import RankedLists, borda, evaluate_orders, evaluate_rated_baselines, slot_profile
from trl_rec.evaluation.graded.baselines import bias_places, item_mean_places, popularity_places
from trl_rec.evaluation.graded.measures import order_consistency, order_ndcg, rank_correlation, slot_correlation
from trl_rec.evaluation.graded.ranking import combine_orders
from trl_rec.trainer import held_out_rows


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> RecDataset:
    path = tmp_path_factory.mktemp("rated")
    return prepare("toy", path, toy_users=40, toy_items=50, split="leave_last", num_held_out=5)


def orders(counts: list[int], num_orders: int, draw: np.random.Generator) -> np.ndarray:
    """Returns random orders as the place of each candidate, or -1 beyond the end of a list. The shape is
    `(num_lists, num_orders, num_candidates)`."""
    places = np.full((len(counts), num_orders, max(counts)), -1)
    for row, count in enumerate(counts):
        for order in range(num_orders):
            places[row, order, :count] = draw.permutation(count)
    return places


def ratings_of(counts: list[int], draw: np.random.Generator) -> np.ndarray:
    ratings = np.full((len(counts), max(counts)), -1.0)
    for row, count in enumerate(counts):
        ratings[row, :count] = draw.integers(0, 6, count)
    return ratings


def test_consecutive_orders_are_combined() -> None:
    counts, draw = [4, 2, 5], np.random.default_rng(0)
    places = orders(counts, 6, draw)
    combined = combine_orders(RankedLists(places, places), 3)
    assert combined.slots is None and combined.places.shape == (3, 2, 5)
    np.testing.assert_array_equal(combined.places[:, 0], borda(places[:, :3]))
    np.testing.assert_array_equal(combined.places[:, 1], borda(places[:, 3:]))


@given(counts=st.lists(st.integers(1, 6), min_size=1, max_size=4), k=st.integers(1, 8), seed=st.integers(0, 99))
def test_measures_equal_those_of_loops(counts: list[int], k: int, seed: int) -> None:
    draw = np.random.default_rng(seed)
    places, slots, ratings = orders(counts, 3, draw), orders(counts, 3, draw), ratings_of(counts, draw)
    ndcg, tau = order_ndcg(places[:, 0], ratings, k), rank_correlation(places[:, 0], -ratings)
    consistency, bias = order_consistency(places), slot_correlation(places, slots)
    for row, count in enumerate(counts):
        by_order = [places[row, order, :count].tolist() for order in range(3)]
        rated = ratings[row, :count].tolist()
        assert ndcg[row] == pytest.approx(oracle.graded_ndcg(by_order[0], rated, k))
        assert tau[row] == pytest.approx(oracle.kendall(by_order[0], [-rating for rating in rated]))
        pair_taus = [oracle.kendall(by_order[a], by_order[b]) for a, b in ((0, 1), (0, 2), (1, 2))]
        assert consistency[row] == pytest.approx(np.mean(pair_taus))
        slot_taus = [oracle.kendall(by_order[order], slots[row, order, :count].tolist()) for order in range(3)]
        assert bias[row] == pytest.approx(np.mean(slot_taus))
        totals = [sum(order[item] for order in by_order) for item in range(count)]
        expected = sorted(range(count), key=lambda item: (totals[item], by_order[0][item]))
        assert borda(places)[row, :count].argsort().tolist() == expected
    assert (borda(places)[places[:, 0] < 0] == -1).all()


def test_the_best_order_has_ndcg_one_and_the_reverse_has_tau_minus_one() -> None:
    ratings = np.array([[5.0, 1, 3, 3]])
    best, worst = np.array([[0, 3, 1, 2]]), np.array([[3, 0, 2, 1]])
    assert order_ndcg(best, ratings, 10) == 1 and rank_correlation(best, -ratings) == 1
    assert order_ndcg(worst, ratings, 10) < 0.7 and rank_correlation(worst, -ratings) == -1
    expected = (1 / 1 + 7 / np.log2(3)) / (31 / 1 + 7 / np.log2(3))
    assert order_ndcg(worst, ratings, 2) == pytest.approx(expected)


def test_the_slot_profile_is_flat_for_an_order_that_ignores_the_slots() -> None:
    """A slot is the position of a candidate in the prompt. The slot profile contains, for each slot, how often the
    candidate in this slot is ranked first, relative to chance."""
    draw = np.random.default_rng(0)
    counts = [3, 4] * 2000
    places = np.repeat(orders(counts, 1, draw), 2, 1)
    slots = orders(counts, 2, draw)
    assert slot_profile(places, slots) == pytest.approx(np.ones(4), abs=0.12)
    assert abs(slot_correlation(places, slots).mean()) < 0.02
    # An order that always follows the slots ranks the candidate in the first slot first. In lists of 3 and 4
    # candidates, this is 3 and 4 times as often as by chance, so 3.5 times on average.
    assert slot_profile(slots, slots)[:2].tolist() == [pytest.approx(3.5), 0.0]
    assert (slot_correlation(slots, slots) == 1).all()


def test_a_single_order_is_consistent() -> None:
    assert order_consistency(orders([3, 4], 1, np.random.default_rng(0))).tolist() == [1, 1]


def test_a_perfect_order_has_the_best_metrics(dataset: RecDataset) -> None:
    rows = held_out_rows(dataset.test, num_candidates=5)
    ratings = split_rows(rows, "ratings").padded(fill=-1)
    best = np.argsort(np.argsort(-ratings, 1, kind="stable"), 1)[:, None]
    best = np.where(ratings[:, None] < 0, -1, best)
    evaluation = evaluate_orders(RankedLists(best, best), rows, ks=(1, 5))
    assert evaluation.metrics == {"graded_ndcg@1": 1.0, "graded_ndcg@5": 1.0, "tau": 1.0, "num_users": len(rows)}
    twice = np.repeat(best, 2, 1)
    assert evaluate_orders(RankedLists(twice, twice), rows, ks=(1,)).metrics["consistency"] == 1


def test_baselines_order_by_popularity_and_by_mean_rating(dataset: RecDataset) -> None:
    rows, train = held_out_rows(dataset.test, num_candidates=5), dataset.train.to_list()
    pairs = [
        (item, rating)
        for row in train
        for item, rating in zip(
            row["history"] + row["targets"], row["history_ratings"] + row["target_ratings"], strict=True
        )
    ]
    overall = np.mean([rating for _, rating in pairs])
    ratings_of_item = {item: [rating for other, rating in pairs if other == item] for item in range(50)}
    counts = np.array([len(ratings_of_item[item]) for item in range(50)])
    means = np.array([np.mean(ratings_of_item[item]) if ratings_of_item[item] else overall for item in range(50)])
    for places, scores in ((popularity_places, counts), (item_mean_places, means)):
        found = places(dataset.train, rows, 50)
        for row, candidates in zip(found, rows["candidates"], strict=True):
            ordered = scores[np.array(candidates)[row[: len(candidates)].argsort()]]
            assert (np.diff(ordered) <= 1e-12).all()


def test_the_bias_baseline_removes_users_rating_habits(dataset: RecDataset) -> None:
    """Item 1 has a higher mean than item 0 only because the users who rated item 1 give high ratings."""
    rows = [([0, 2, 3], [2, 1, 1])] * 5 + [([1, 2, 3], [4, 5, 5])] * 5
    table = {
        "user": list(range(10)),
        "history": [items[:1] for items, _ in rows],
        "targets": [items[1:] for items, _ in rows],
        "history_ratings": [ratings[:1] for _, ratings in rows],
        "target_ratings": [ratings[1:] for _, ratings in rows],
    }
    train = Dataset.from_dict(table, split="train")
    lists = Dataset.from_dict({"candidates": [[0, 1]], "ratings": [[1.0, 2.0]], "row": [0]})
    assert item_mean_places(train, lists, 4).tolist() == [[1, 0]]
    assert bias_places(train, lists, 4, damping=0.1).tolist() == [[0, 1]]


def test_baselines_are_evaluated_on_the_same_rows_and_fitted_on_train_only(dataset: RecDataset) -> None:
    rows = held_out_rows(dataset.test, num_candidates=5)
    baselines = evaluate_rated_baselines(dataset.train, rows, 50, ks=(5,))
    assert list(baselines) == ["random", "popularity", "item mean", "bias"]
    assert {one.metrics["num_users"] for one in baselines.values()} == {len(rows)}
    with pytest.raises(ValueError, match="baselines must use only the training split"):
        evaluate_rated_baselines(dataset.test, rows, 50)
