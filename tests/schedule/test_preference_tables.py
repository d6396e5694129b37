"""Checks prefixes (each training target with the history before it), self-play negatives and random negatives against
slow loops. Also tests how prefixes and random negatives are sampled, and which inputs raise errors.

Self-play negatives are items that the model's own beam search found (beams). Each beam belongs to a bucket of
difficulty: 0 (easy), 1 (medium) or 2 (hard). The bucket is -1 if the beam cannot be a negative.
"""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.oracles import preferences as oracle
from tests.schedule.tables import NUM_ITEMS, items, make_catalog, make_split, rows_of, training_rows
from trl_rec.schedule import (
    bucket_report,
    random_preferences,
    self_play_buckets,
    self_play_preferences,
    training_prefixes,
)
from trl_rec.schedule.draws import draw_below
from trl_rec.schedule.prefixes import even_sample


ROWS = [(0, [0], [1, 2]), (1, [3], [4])]


@given(training_rows, st.sampled_from([None, 1, 2, 4]))
def test_every_target_has_its_prefix(rows, max_history) -> None:
    built = training_prefixes(make_split(rows), max_history=max_history)
    assert rows_of(built, "user", "history", "target") == oracle.prefixes(rows, max_history)
    assert built.split == "train" and "rating" not in built.column_names


@given(training_rows)
def test_each_prefix_has_the_rating_of_its_target(rows) -> None:
    scores = [[float(10 * row + place) for place in range(len(h) + len(t))] for row, (_, h, t) in enumerate(rows)]
    built = training_prefixes(make_split(rows, scores))
    expected = [scores[row][len(h) + place] for row, (_, h, t) in enumerate(rows) for place in range(len(t))]
    assert built[:]["rating"] == expected


@settings(max_examples=15)
@given(training_rows, st.integers(1, 8), st.integers(0, 5))
def test_a_sample_is_a_subsequence_of_all_prefixes_and_depends_on_the_seed(rows, most, seed) -> None:
    train = make_split(rows)
    whole = rows_of(training_prefixes(train), "user", "history", "target")
    sample = rows_of(training_prefixes(train, max_prompts=most, seed=seed), "user", "history", "target")
    assert len(sample) == min(most, len(whole))
    left = iter(whole)
    # `in` advances the iterator, so the sample must be in the order of the split, and must not use a prefix twice.
    assert all(row in left for row in sample)
    again = training_prefixes(train, max_prompts=most, seed=seed)
    assert sample == rows_of(again, "user", "history", "target")


def test_all_prefixes_are_equally_likely() -> None:
    counts = np.zeros(8)
    for seed in range(2000):
        counts[even_sample(8, 2, seed)] += 1
    assert (np.abs(counts - 500) < 95).all()  # 4.9 standard deviations


@pytest.mark.parametrize("options", [{"max_prompts": 0}, {"max_history": 0}])
def test_limits_below_one_are_an_error(options) -> None:
    with pytest.raises(ValueError, match=f"{next(iter(options))} must be at least 1, not 0"):
        training_prefixes(make_split(ROWS), **options)


@pytest.mark.parametrize("split", ["validation", "test"])
def test_held_out_rows_are_an_error(split) -> None:
    rows = make_split(ROWS, split=split)
    train = make_split(ROWS)
    prefixes, beams, catalog = training_prefixes(train), np.zeros((3, 2), int), make_catalog("item_token")
    with pytest.raises(ValueError, match="must use only the training split"):
        training_prefixes(rows)
    with pytest.raises(ValueError, match="must use only the training split"):
        self_play_preferences(prefixes, beams, catalog, train=rows)
    with pytest.raises(ValueError, match="must use only the training split"):
        random_preferences(prefixes, NUM_ITEMS, train=rows)
    with pytest.raises(ValueError, match="not training prefixes"):
        self_play_preferences(rows, beams, catalog, train=train)
    with pytest.raises(ValueError, match="'target' is missing"):
        random_preferences(train, NUM_ITEMS, train=train)


@st.composite
def beams_of(draw, rows):
    """Draws the beams of each prefix: a ranking without repeated items, as a beam search returns it. Short rankings
    are padded with -1."""
    count = len(oracle.prefixes(rows))
    width = draw(st.integers(1, NUM_ITEMS))
    ranked = st.lists(items, max_size=width, unique=True).map(lambda row: row + [-1] * (width - len(row)))
    return draw(st.lists(ranked, min_size=count, max_size=count))


@settings(max_examples=15)
@given(st.data(), training_rows, st.sampled_from(["title", "item_token", "semantic_id"]), st.integers(1, 4))
def test_self_play_equals_a_loop(data, rows, surface, most) -> None:
    beams, catalog, train = data.draw(beams_of(rows)), make_catalog(surface), make_split(rows)
    ids = [row.tolist() for row in catalog.semantic_ids] if surface == "semantic_id" else None
    prompts = oracle.prefixes(rows)
    expected = oracle.buckets(rows, prompts, beams, catalog.surfaces, ids)
    prefixes = training_prefixes(train)
    buckets = self_play_buckets(prefixes, np.array(beams), catalog, train=train)
    assert buckets.tolist() == expected
    for number, difficulty in enumerate(["easy", "medium", "hard", "any"]):
        options = {"train": train, "difficulty": difficulty, "num_negatives": most}
        table = self_play_preferences(prefixes, np.array(beams), catalog, **options)
        kept = [
            [item for item, level in zip(*row, strict=True) if level == number or (number == 3 and level >= 0)][:most]
            for row in zip(beams, expected, strict=True)
        ]
        expected_rows = [(*prompt, negatives) for prompt, negatives in zip(prompts, kept, strict=True)]
        assert rows_of(table, "user", "history", "chosen", "rejected") == expected_rows
    assert table.column_names == ["user", "history", "chosen", "rejected"]
    assert {name: str(kind.type) for name, kind in zip(table.column_names, table.data.schema, strict=True)} == {
        "user": "int32",
        "history": "list<item: int32>",
        "chosen": "int32",
        "rejected": "list<item: int32>",
    }


def test_a_users_later_training_items_are_not_negatives_but_held_out_items_may_be() -> None:
    """User 0 chooses item 2 later in the training split. Item 5 may be the user's test item, but the training split
    does not show that."""
    train = make_split([(0, [0], [1, 2])])
    prefixes = training_prefixes(train).select([0])
    table = self_play_preferences(prefixes, np.array([[2, 1, 5, 0]]), make_catalog("item_token"), train=train)
    assert table[:]["rejected"] == [[5]]


def test_items_with_the_text_of_the_target_or_of_a_better_beam_are_not_negatives() -> None:
    """Items 0 (the target), 3 and 6 have the same title. Items 1 (the second beam), 4 and 7 share another title.
    Item 8 has the title of item 2, which is in the history."""
    train = make_split([(0, [2], [0])])
    prefixes, beams = training_prefixes(train), np.array([[3, 1, 4, 6, 7, -1, 8]])
    assert self_play_buckets(prefixes, beams, make_catalog("title"), train=train).tolist() == [
        [-1, 2, -1, -1, -1, -1, -1]
    ]
    buckets = self_play_buckets(prefixes, beams, make_catalog("item_token"), train=train)
    assert buckets.tolist() == [[2, 2, 1, 1, 0, -1, 0]]


def test_a_shared_token_counts_only_if_all_tokens_before_it_are_shared() -> None:
    """With semantic IDs, a negative is harder if its ID shares more leading tokens with that of the target. The target
    has the ID a_0 b_0. The IDs of items 1, 2, 3 and 5 are a_1 b_0 c_0, a_0 b_1, a_1 b_1 c_1 and a_1 b_0 c_2."""
    train = make_split([(0, [8], [0])])
    buckets = self_play_buckets(
        training_prefixes(train), np.array([[1, 2, 3, 5]]), make_catalog("semantic_id"), train=train
    )
    assert buckets.tolist() == [[0, 1, 0, 0]]


def test_invalid_beams_and_options_are_an_error() -> None:
    train = make_split(ROWS)
    prefixes, catalog = training_prefixes(train), make_catalog("item_token")
    with pytest.raises(ValueError, match=r"shape \(2, 4\), but there are 3 prefixes"):
        self_play_preferences(prefixes, np.zeros((2, 4), int), catalog, train=train)
    with pytest.raises(ValueError, match="beams of row 1 contain item 9, but the catalogue has 9 items"):
        self_play_preferences(prefixes, np.array([[0], [9], [0]]), catalog, train=train)
    with pytest.raises(ValueError, match="difficulty must be"):
        self_play_preferences(prefixes, np.zeros((3, 1), int), catalog, train=train, difficulty="harder")
    with pytest.raises(ValueError, match="num_negatives must be at least 1, not 0"):
        self_play_preferences(prefixes, np.zeros((3, 1), int), catalog, train=train, num_negatives=0)


@settings(max_examples=15)
@given(training_rows, st.integers(1, NUM_ITEMS), st.integers(0, 9))
def test_random_negatives_are_distinct_and_never_items_of_the_user(rows, count, seed) -> None:
    train = make_split(rows)
    prefixes = training_prefixes(train)
    table = random_preferences(prefixes, NUM_ITEMS, train=train, num_negatives=count, seed=seed)
    assert rows_of(table, "user", "history", "chosen") == oracle.prefixes(rows)
    for user, rejected in rows_of(table, "user", "rejected"):
        free = set(range(NUM_ITEMS)) - oracle.chosen_by(rows, user)
        assert set(rejected) <= free and len(set(rejected)) == len(rejected) == min(count, len(free))
    again = random_preferences(prefixes, NUM_ITEMS, train=train, num_negatives=count, seed=seed)
    assert table[:]["rejected"] == again[:]["rejected"]


@settings(max_examples=15)
@given(training_rows, st.sampled_from(["title", "item_token", "semantic_id"]), st.integers(1, NUM_ITEMS))
def test_random_negatives_have_distinct_texts(rows, surface, count) -> None:
    catalog, train = make_catalog(surface), make_split(rows)
    prefixes = training_prefixes(train)
    table = random_preferences(prefixes, NUM_ITEMS, train=train, num_negatives=count, catalog=catalog)
    for user, rejected in rows_of(table, "user", "rejected"):
        free = set(catalog.surfaces) - {catalog.surfaces[item] for item in oracle.chosen_by(rows, user)}
        written = [catalog.surfaces[item] for item in rejected]
        assert set(written) <= free and len(set(written)) == len(written) == min(count, len(free))
    if surface == "item_token":
        assert table[:] == random_preferences(prefixes, NUM_ITEMS, train=train, num_negatives=count)[:]


def test_a_catalogue_of_another_size_is_an_error() -> None:
    train = make_split(ROWS)
    with pytest.raises(ValueError, match="num_items=9, but the catalogue has 6 items"):
        random_preferences(training_prefixes(train), NUM_ITEMS, train=train, catalog=make_catalog("title", 6))


def test_random_negatives_are_equally_likely() -> None:
    train = make_split([(user, [0], [1]) for user in range(3000)])
    table = random_preferences(training_prefixes(train), NUM_ITEMS, train=train, num_negatives=3)
    counts = np.bincount(np.concatenate(table[:]["rejected"]), minlength=NUM_ITEMS)
    assert counts[:2].tolist() == [0, 0]
    assert (np.abs(counts[2:] - 3000 * 3 / 7) < 130).all()  # 4.8 standard deviations


@given(st.lists(st.integers(0, 40), min_size=1, max_size=20), st.integers(1, 8), st.integers(0, 3))
def test_numbers_below_a_size_are_distinct_and_do_not_depend_on_other_rows(sizes, count, seed) -> None:
    drawn = draw_below(np.arange(len(sizes)), count, np.array(sizes), seed)
    for row, size in zip(drawn.tolist(), sizes, strict=True):
        numbers = [number for number in row if number >= 0]
        assert len(set(numbers)) == len(numbers) == min(size, count) and all(number < size for number in numbers)
    alone = draw_below(np.arange(len(sizes))[-1:], count, np.array(sizes[-1:]), seed)
    assert alone[0].tolist() == drawn[-1].tolist()


def test_numbers_below_a_size_are_equally_likely() -> None:
    drawn = draw_below(np.arange(4000), 2, np.full(4000, 5), seed=1)
    assert (np.abs(np.bincount(drawn.ravel(), minlength=5) - 1600) < 150).all()  # 4.8 standard deviations


def test_the_report_of_a_table() -> None:
    train, catalog = make_split(ROWS), make_catalog("item_token")
    prefixes, beams = training_prefixes(train), np.array([[3, 4, 5, 6], [1, 2, 3, -1], [3, 4, -1, -1]])
    table = self_play_preferences(prefixes, beams, catalog, train=train, difficulty="hard")
    report = bucket_report(table, self_play_buckets(prefixes, beams, catalog, train=train))
    assert report == {
        "num_prompts": 3,
        "without_negatives": pytest.approx(1 / 3),
        "mean_negatives": 1.0,
        "buckets": {
            "easy": {"items": 1, "without": pytest.approx(2 / 3), "mean": pytest.approx(1 / 3)},
            "medium": {"items": 1, "without": pytest.approx(2 / 3), "mean": pytest.approx(1 / 3)},
            "hard": {"items": 3, "without": pytest.approx(1 / 3), "mean": 1.0},
        },
    }
    assert "buckets" not in bucket_report(table)
