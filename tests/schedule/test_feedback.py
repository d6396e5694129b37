"""Tests preference tables that are made from ratings or other scores. They must equal the tables of slow loops.
Invalid scores, and invalid ranges of liked, neutral and disliked scores, must raise errors."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.oracles import preferences as oracle
from tests.schedule.tables import make_catalog, make_split, rows_of, training_rows
from trl_rec.ragged import Ragged
from trl_rec.schedule import feedback_preferences


RANGES = {"easy": (1, 2), "hard": (3, 4)}
ROWS = [(0, [0], [1, 2, 3]), (1, [4], [5, 6])]
SCORES = [[1.0, 5.0, 3.0, 2.0], [2.0, 5.0, 4.0]]


def scores_of(rows):
    """Returns a strategy that draws one rating per item of each row. Some ratings are NaN."""
    ratings = st.sampled_from([1.0, 2.0, 2.5, 3.0, 4.0, 5.0, float("nan")])
    lengths = [len(history) + len(targets) for _, history, targets in rows]
    return st.tuples(*(st.lists(ratings, min_size=length, max_size=length) for length in lengths)).map(list)


@given(st.data(), training_rows, st.sampled_from(["easy", "hard"]), st.integers(1, 3), st.sampled_from([None, 1, 2]))
def test_feedback_equals_a_loop(data, rows, difficulty, count, max_prompts) -> None:
    scores = data.draw(scores_of(rows))
    expected_rows = oracle.feedback(rows, scores, (5, 5), RANGES[difficulty])
    all_scores = sum(scores, [])
    if not expected_rows or not any(RANGES[difficulty][0] <= score <= RANGES[difficulty][1] for score in all_scores):
        with pytest.raises(ValueError, match="liked=|disliked=|neutral="):
            feedback_preferences(make_split(rows, scores), difficulty=difficulty)
        return
    options = {"difficulty": difficulty, "num_negatives": count, "seed": 3}
    table = feedback_preferences(make_split(rows, scores), **options)
    assert rows_of(table, "user", "history", "chosen") == [row[:3] for row in expected_rows]
    for rejected, (_, _, chosen, possible) in zip(table[:]["rejected"], expected_rows, strict=True):
        assert set(rejected) <= possible and len(set(rejected)) == len(rejected) == min(count, len(possible))
        assert chosen not in rejected
    sample = feedback_preferences(make_split(rows, scores), max_prompts=max_prompts, **options)
    whole = rows_of(table, "user", "history", "chosen", "rejected")
    assert len(sample) == min(max_prompts or len(whole), len(whole))
    assert all(row in whole for row in rows_of(sample, "user", "history", "chosen", "rejected"))


@settings(max_examples=20)
@given(st.data(), training_rows, st.sampled_from(["title", "semantic_id"]), st.integers(1, 3))
def test_items_with_the_same_text_count_as_one(data, rows, surface, count) -> None:
    """A slow loop gets rows in which each item is replaced by the first item with the same text. Every rejected item
    must have the text of an item that the loop may reject."""
    surfaces = make_catalog(surface).surfaces
    rows = [*rows, (0, [0], [1])]
    scores = [*data.draw(scores_of(rows[:-1])), [1.0, 5.0]]
    merged = [(user, *([surfaces.index(surfaces[item]) for item in part] for part in parts)) for user, *parts in rows]
    expected_rows = oracle.feedback(merged, scores, (5, 5), RANGES["easy"])
    options = {"difficulty": "easy", "num_negatives": count, "catalog": make_catalog(surface)}
    table = feedback_preferences(make_split(rows, scores), **options)
    scored = [possible for *_, possible in oracle.feedback(rows, scores, (5, 5), RANGES["easy"])]
    for rejected, (*_, possible), whole in zip(table[:]["rejected"], expected_rows, scored, strict=True):
        written = [surfaces.index(surfaces[item]) for item in rejected]
        assert set(written) <= possible and len(set(written)) == len(written) == min(count, len(possible))
        # Each rejected item is one that the user rated, not another item with the same text.
        assert set(rejected) <= whole


def test_the_drawn_negatives_depend_on_seed_and_target() -> None:
    train = make_split([(0, [0], list(range(1, 9)))], [[5.0, 5, 5, 1, 1, 1, 1, 1, 1]])
    drawn = {
        seed: feedback_preferences(train, difficulty="easy", num_negatives=2, seed=seed)[:]["rejected"]
        for seed in range(20)
    }
    assert len({str(rejected) for rejected in drawn.values()}) > 5
    assert any(first != second for first, second in drawn.values())
    assert set(np.ravel(list(drawn.values()))) == set(range(3, 9))


@pytest.mark.parametrize("kind", ["column", "ragged", "callable"])
def test_scores_from_elsewhere_replace_ratings(kind) -> None:
    expected = feedback_preferences(make_split(ROWS, SCORES), difficulty="easy")[:]["rejected"]
    assert expected == [[0, 3], [4]]
    train = make_split(ROWS)
    scores = {"column": "sentiment", "ragged": Ragged.from_lists(SCORES, float)}
    scores["callable"] = lambda split: Ragged.from_lists([SCORES[user] for user in split["user"]], float)
    if kind == "column":
        train = train.add_column("sentiment", SCORES)
        train.info.splits = None
    assert feedback_preferences(train, difficulty="easy", scores=scores[kind])[:]["rejected"] == expected


def test_missing_and_misaligned_scores_are_an_error() -> None:
    train = make_split(ROWS)
    with pytest.raises(ValueError, match="no ratings that distinguish liked from disliked"):
        feedback_preferences(train, difficulty="easy")
    with pytest.raises(ValueError, match="no column 'mood' of scores; it has user, history"):
        feedback_preferences(train, difficulty="easy", scores="mood")
    with pytest.raises(ValueError, match="there are 1 rows of scores, but the training split has 2"):
        feedback_preferences(train, difficulty="easy", scores=Ragged.from_lists(SCORES[:1]))
    with pytest.raises(ValueError, match="scores, row 1: there are 2 scores for 3 items"):
        feedback_preferences(train, difficulty="easy", scores=Ragged.from_lists([SCORES[0], SCORES[1][:2]]))
    with pytest.raises(ValueError, match="difficulty must be 'easy' .disliked items. or 'hard'"):
        feedback_preferences(train, difficulty="medium")
    with pytest.raises(ValueError, match="must use only the training split"):
        feedback_preferences(make_split(ROWS, SCORES, split="validation"), difficulty="easy")


@pytest.mark.parametrize(
    ("ranges", "message"),
    [
        ({"neutral": (2, 4)}, "must not overlap"),
        ({"liked": (4, 5)}, "must not overlap"),
        ({"liked": (1, 2), "disliked": (5, 5)}, "must not overlap"),
        ({"neutral": (4, 3)}, "a lowest and a highest"),
        ({"liked": (5, float("nan"))}, "a lowest and a highest"),
        ({"liked": (6, 9)}, r"in the range liked=\(6, 9\) \(the scores are from 1 to 5\)"),
        ({"disliked": (-9, -8)}, r"in the range disliked=\(-9, -8\) \(the scores are from 1 to 5\)"),
    ],
)
def test_invalid_ranges_are_an_error(ranges, message) -> None:
    with pytest.raises(ValueError, match=message):
        feedback_preferences(make_split(ROWS, SCORES), difficulty="easy", **ranges)


def test_scores_that_are_all_nan_are_an_error() -> None:
    unknown = Ragged.from_lists([[float("nan")] * 4, [float("nan")] * 3], float)
    with pytest.raises(ValueError, match="there are no scores"):
        feedback_preferences(make_split(ROWS), difficulty="easy", scores=unknown)


def test_scores_above_the_liked_range_are_an_error() -> None:
    """If ratings go from 1 to 10, the default ranges would treat 5 as the best rating."""
    split = make_split(ROWS, [[1.0, 5.0, 3.0, 10.0], [2.0, 5.0, float("nan")]])
    with pytest.raises(ValueError, match=r"scores up to 10, above liked=\(5, 5\)"):
        feedback_preferences(split, difficulty="easy")
    table = feedback_preferences(split, difficulty="easy", liked=(9, 10), neutral=(5, 8), disliked=(1, 4))
    assert rows_of(table, "user", "chosen", "rejected") == [(0, 3, [0, 2])]
