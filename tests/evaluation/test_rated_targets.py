"""Tests the metrics that are computed from the ratings of held-out items (`liked@k`, `disliked@k` and
`preference_accuracy`), and the scores that baselines give to these items."""

import logging

import numpy as np
import pyarrow as pa
import pytest
from datasets import Dataset
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.evaluation.logs import make_split, whole_rows
from tests.evaluation.test_results import make_dataset
from tests.oracles import baselines as baseline_oracle
from tests.oracles import metrics as oracle
from tests.programs import load_program
from trl_rec.evaluation.baselines import PopularityBaseline, RandomBaseline, TransitionBaseline
from trl_rec.evaluation.preferences import RatedTargets
from trl_rec.evaluation.results import evaluate_baselines, evaluate_split
from trl_rec.ragged import Ragged


NUM_ITEMS = 8
ITEMS = st.lists(st.integers(0, NUM_ITEMS - 1), min_size=1, max_size=6)
RATED = st.lists(st.tuples(st.integers(0, NUM_ITEMS - 1), st.sampled_from([1, 2, 2.5, 3, 4, 5])), max_size=6)


def rated_split(rows: list[list[tuple[int, float]]], histories: list[list[int]] | None = None) -> Dataset:
    histories = histories or [[] for _ in rows]
    split = make_split([(user, histories[user], [item for item, _ in row]) for user, row in enumerate(rows)], "test")
    ratings = pa.array([[rating for _, rating in row] for row in rows], pa.list_(pa.float32()))
    return Dataset(split.data.table.append_column("target_ratings", ratings), split=split.split)


@settings(max_examples=50)
@given(st.lists(RATED, min_size=1, max_size=5), st.data(), st.integers(1, 4))
def test_metrics_equal_those_of_loops(rows, data, k):
    rated = RatedTargets.from_split(rated_split(rows))
    lists = [data.draw(st.permutations(range(NUM_ITEMS)))[:5] for _ in rows]
    scores = [[data.draw(st.sampled_from([-2.0, -1.0, 0.0, -np.inf])) for _ in row] for row in rows]
    if not any(rows):
        assert rated is None  # all rows are empty, so the split has no ratings
        return

    kept = [
        [score for (_, rating), score in zip(row, values, strict=True) if not 2 < rating < 4]
        for row, values in zip(rows, scores, strict=True)
    ]
    kept = Ragged.from_lists(kept, np.float64)
    found = rated.found(np.array(lists), [k])
    ours = np.stack([found[f"liked@{k}"], found[f"disliked@{k}"], rated.accuracy(kept.values)], 1)
    expected = np.array(oracle.preferences(lists, scores, rows, k), float)  # None becomes NaN
    np.testing.assert_allclose(ours, expected)
    assert rated.num_users == dict(
        zip(["liked_users", "disliked_users", "preference_users"], (~np.isnan(expected)).sum(0).tolist(), strict=True)
    )

    some = np.flatnonzero(rated.has_pairs)
    np.testing.assert_allclose(rated.take(some).accuracy(kept.take(some).values), expected[some, 2])


@settings(max_examples=30)
@given(
    st.lists(st.lists(st.integers(0, NUM_ITEMS - 1), min_size=2, max_size=12), min_size=1, max_size=6),
    st.lists(ITEMS, min_size=1, max_size=4),
    st.data(),
)
def test_scores_of_baselines_order_items_as_their_rankings_do(sequences, histories, data):
    """The scored items may be anywhere in the ranking. Items with equal scores are equally popular, and are ranked by
    their index."""
    train = make_split(whole_rows(sequences))
    items = Ragged.from_lists([data.draw(ITEMS) for _ in histories])
    often = baseline_oracle.popularity(sequences, NUM_ITEMS)
    for baseline in (PopularityBaseline(), TransitionBaseline()):
        scores = baseline.fit(train, NUM_ITEMS).score(histories, items)
        full = baseline.rank(histories, NUM_ITEMS, False).items
        for row in range(len(histories)):
            part = scores[items.offsets[row] : items.offsets[row + 1]]
            place = {item: rank for rank, item in enumerate(full[row].tolist())}
            for a, high in zip(items[row], part, strict=True):
                for b, low in zip(items[row], part, strict=True):
                    if high > low:
                        assert place[a] < place[b]
                    elif high == low and a != b:
                        assert (place[a] < place[b]) == (a < b) and often[a] == often[b]
    assert not RandomBaseline().fit(train, NUM_ITEMS).score(histories, items).any()


def test_values_worked_out_by_hand():
    """User 0 likes items 1 and 2, and dislikes item 3. User 1 has no disliked item. User 2 has neither liked nor
    disliked items."""
    split = rated_split([[(1, 5), (2, 4), (3, 2)], [(4, 5)], [(5, 3)]])
    rated = RatedTargets.from_split(split)
    found = rated.found(np.array([[3, 1], [4, 0], [5, 0]]), [1, 2])
    np.testing.assert_array_equal(found["liked@1"], [0, 1, np.nan])
    np.testing.assert_array_equal(found["liked@2"], [0.5, 1, np.nan])
    np.testing.assert_array_equal(found["disliked@1"], [1, np.nan, np.nan])
    np.testing.assert_array_equal(rated.accuracy(np.array([2.0, 1.0, 1.0, 0.0])), [0.75, np.nan, np.nan])
    assert rated.num_users == {"liked_users": 2, "disliked_users": 1, "preference_users": 1}

    dataset = make_dataset(num_users=3, test=split)
    evaluation = evaluate_split(np.array([[3, 1], [4, 0], [5, 0]]), dataset, ks=[1, 2])
    assert evaluation.metrics["liked@2"] == 0.75 and evaluation.metrics["disliked@1"] == 1
    assert evaluation.metrics["preference_users"] == 1 and evaluation.intervals["disliked@1"] == (1, 1)
    assert np.isnan(evaluation.per_user["disliked@1"][1:]).all()
    baselines = evaluate_baselines(dataset, ks=[1, 2])
    assert baselines["random"].metrics["preference_accuracy"] == 0.5
    assert set(baselines["transition"].metrics) == set(evaluation.metrics) | {"preference_accuracy"}


def test_the_headroom_is_that_of_the_items_mean_ratings() -> None:
    """The headroom is the best `preference_accuracy` of the simple baselines that `benchmarks/preference_headroom.py`
    measures. Here, the best baseline is `item mean`, which scores items by their mean rating.

    In the training split, item 0 has one high rating, item 1 has several low ratings, and item 2 has one low rating.
    The only user who has both liked and disliked items likes item 0 and dislikes items 1 and 2. Items 0 and 2 are
    equally popular, so popularity keeps them in their order in the held-out row, where item 0 comes before item 2.
    """
    program = load_program("benchmarks/preference_headroom.py")
    train = make_split([(0, [1, 1], [0]), (1, [1], [2])])
    table = train.data.table
    for name, ratings in (("history_ratings", [[1.0, 1.0], [1.0]]), ("target_ratings", [[5.0], [1.5]])):
        table = table.append_column(name, pa.array(ratings, pa.list_(pa.float32())))
    rows = rated_split([[(1, 1), (0, 5), (2, 2)], [(1, 5)]])
    expected = {"item mean": 1.0, "popularity": 0.5}
    for name, value in expected.items():
        accuracy = program.preference_accuracy(name, Dataset(table, split="train"), rows, 3)
        np.testing.assert_array_equal(accuracy, [value])
    with pytest.raises(SystemExit, match="no ratings up to 5"):
        program.preference_accuracy("random", train, make_split([(0, [1], [2])], "test"), 3)
    with pytest.raises(SystemExit, match="no user of a split has both liked and disliked"):
        program.preference_accuracy("popularity", Dataset(table, split="train"), rated_split([[(1, 5)]]), 3)


def test_without_users_who_like_and_dislike_items_there_is_no_preference_accuracy():
    baselines = evaluate_baselines(make_dataset(num_users=2, test=rated_split([[(1, 5)], [(2, 1)]])), ks=[1])
    assert "preference_accuracy" not in baselines["popularity"].metrics
    assert baselines["popularity"].metrics["preference_users"] == 0


def test_ratings_on_another_scale_are_left_out(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        assert RatedTargets.from_split(rated_split([[(1, 9), (2, 1)]])) is None
    assert "ratings go up to 9" in caplog.text
