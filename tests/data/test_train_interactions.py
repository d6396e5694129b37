"""Tests `TrainInteractions`, which collects the interactions of training rows, and `count_pairs`, which counts pairs
of items in them. The rows contain either a user's whole sequence, or overlapping windows of it. Both kinds of rows
must give the same interactions."""

from unittest import mock

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.evaluation.logs import make_split, whole_rows, windowed_rows
from tests.oracles import baselines as oracle
from trl_rec.data.train_interactions import TrainInteractions
from trl_rec.data.transitions import PairRule, count_pairs


SEQUENCES = st.lists(st.lists(st.integers(0, 5), min_size=2, max_size=9), min_size=1, max_size=5)


@settings(max_examples=60, deadline=None)
@given(SEQUENCES, st.integers(3, 5), st.sampled_from([1, 5, 1000]))
def test_windowed_and_whole_rows_give_the_same_interactions(sequences, width, num_pairs):
    kinds = np.array([1, 2, 3, -1, -2])
    for rows in (whole_rows(sequences), windowed_rows(sequences, width)):
        log = TrainInteractions.from_split(make_split(rows), 6)
        np.testing.assert_array_equal(log.popularity, oracle.popularity(sequences, 6))
        got = []
        with mock.patch("trl_rec.data.train_interactions.PAIRS", num_pairs):
            for items, pairs in log.pair_blocks(kinds):
                first, second = np.divmod(pairs.keys, 6)
                found = zip(first + items.start, second, kinds[pairs.kinds], strict=True)
                got += [tuple(map(int, pair)) for pair in found]
        pairs = [(s[i], s[i + d], d) for s in sequences for d in (1, 2, 3) for i in range(len(s) - d)]
        backward = [(second, first, -d) for first, second, d in pairs if d < 3]
        assert sorted(got) == sorted([*pairs, *backward])


RULES = [
    PairRule(),
    PairRule(2, 2),
    PairRule(1, 3, forward=False, backward=True),
    PairRule(1, 4, backward=True, far=0.0, rare=0.5),
]


@settings(max_examples=60, deadline=None)
@given(SEQUENCES, st.sampled_from([1, 5, 1000]), st.sampled_from([None, 1, 2]))
def test_counted_pairs_equal_those_of_a_loop(sequences, num_pairs, most):
    log = TrainInteractions.from_split(make_split(whole_rows(sequences)), 6)
    with mock.patch("trl_rec.data.train_interactions.PAIRS", num_pairs):
        counted = count_pairs(log, RULES, most=most)
    for rule, (targets, shares) in zip(RULES, counted, strict=True):
        assert len(targets) == 6
        sums = [dict.fromkeys(range(6), 0.0) for _ in range(6)]
        for s in sequences:
            for later in range(len(s)):
                for earlier in range(later):
                    if rule.nearest <= later - earlier <= rule.farthest:
                        pairs = [(s[earlier], s[later])] * rule.forward + [(s[later], s[earlier])] * rule.backward
                        for source, target in pairs:
                            rarity = (log.popularity[target] + 1) ** rule.rare
                            sums[source][target] += 1 / (later - earlier) ** rule.far / rarity
        for item, row in enumerate(sums):
            total = sum(row.values()) or 1
            best = sorted((target for target in row if row[target]), key=lambda t: (round(-row[t], 9), t))
            expected = {target: row[target] / total for target in sorted(best[:most])}
            part = slice(targets.offsets[item], targets.offsets[item + 1])
            if most is None:
                assert targets.values[part].tolist() == list(expected)
            # With `most`, rounding decides which items with equal shares are kept. So compare only the shares.
            np.testing.assert_allclose(sorted(shares[part]), sorted(expected.values()), rtol=1e-12)


def test_only_the_selected_rows_are_used():
    train = make_split([(0, [0], [1]), (1, [2], [3]), (2, [4], [5])])
    np.testing.assert_array_equal(TrainInteractions.from_split(train.select([2, 0])).popularity, [1, 1, 0, 0, 1, 1])


def test_the_number_of_items_is_one_more_than_the_largest_index():
    train = make_split([(0, [7], [2])])
    assert TrainInteractions.from_split(train).num_items == 8
    assert TrainInteractions.from_split(train, 20).num_items == 20
    assert TrainInteractions.from_split(make_split([])).num_items == 0
    with pytest.raises(ValueError, match="train, row 0: 7 is not an item index; give whole numbers from 0 to 6"):
        TrainInteractions.from_split(train, 7)


@pytest.mark.parametrize("name", ["validation", "test", "test[:50%]"])
def test_held_out_splits_are_refused(name):
    with pytest.raises(ValueError, match="must use only the training split, not the " + name.split("[")[0]):
        TrainInteractions.from_split(make_split([(0, [1], [2])], name))
