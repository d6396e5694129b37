"""Compares the rewards of lists with slow loops. Also tests that equally good lists are tied exactly, and which input
is rejected."""

from math import log2

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.oracles import metrics as oracle
from trl_rec.evaluation import metrics
from trl_rec.evaluation.rewards import REWARDS, ListBatch, score_lists
from trl_rec.ragged import Ragged


NAMES = ("ndcg", "recall", "hit", "ild", "mgu")
NAMED_REWARDS = ", ".join(sorted(REWARDS))
NUM_ITEMS = 7


def batch_of(lists, targets, histories, shares=None):
    lists = np.array(lists)
    return ListBatch(lists, Ragged.from_lists(targets), Ragged.from_lists(histories), shares)


def parts_of(batch, names=NAMES):
    return score_lists(batch, dict.fromkeys(names, 1.0)).parts


def expected(batch):
    """Returns every reward, computed list by list."""
    values = {name: np.zeros(batch.lists.shape[:2]) for name in NAMES}
    shares = batch.shares.tolist()
    for row, lists in enumerate(batch.lists.tolist()):
        consumed = oracle.group_share(batch.histories[row].tolist(), shares)
        for place, items in enumerate(lists):
            recall, hit, ndcg, _ = oracle.accuracy([items], [batch.targets[row].tolist()], len(items))[0]
            ild = oracle.ild(items, shares)
            mgu = -oracle.mgu(oracle.group_share(items, shares), consumed)
            for name, value in zip(NAMES, (ndcg, recall, hit, ild, mgu), strict=True):
                values[name][row, place] = value
    return values


def random_batch(num_users=6, num_lists=5, num_ranks=4, num_items=30, num_groups=5, seed=0):
    rng = np.random.default_rng(seed)
    lists = rng.random((num_users, num_lists, num_items)).argsort(-1)[..., :num_ranks]
    targets = [rng.integers(0, num_items, rng.integers(1, 6)) for _ in range(num_users)]
    histories = [rng.integers(0, num_items, rng.integers(0, 9)) for _ in range(num_users)]
    shares = rng.random((num_items, num_groups)) * (rng.random((num_items, num_groups)) < 0.4)
    shares = shares / np.maximum(shares.sum(1, keepdims=True), 1e-9)
    return batch_of(lists, targets, histories, shares.astype(np.float32))


def test_worked_by_hand():
    """Items 0 and 1 are in the first group, item 2 in the second, item 3 in both and item 4 in none. User 0 chose
    items of the first group three times, and an item of the second once. User 1 has an empty history."""
    shares = np.array([[1, 0], [1, 0], [0, 1], [0.5, 0.5], [0, 0]])
    lists = [[[2, 0], [0, 1]], [[4, 3], [2, -1]]]
    batch = batch_of(lists, [[0, 4], [2]], [[0, 0, 1, 2], []], shares)
    parts = parts_of(batch)
    np.testing.assert_allclose(parts["ndcg"], [[(1 / log2(3)) / (1 + 1 / log2(3)), 1 / (1 + 1 / log2(3))], [0, 1]])
    np.testing.assert_allclose(parts["recall"], [[0.5, 0.5], [0, 1]])
    np.testing.assert_allclose(parts["hit"], [[1, 1], [0, 1]])
    np.testing.assert_allclose(parts["ild"], [[1, 0], [1, 0]], atol=1e-12)
    # The history of user 0 has the group shares (3/4, 1/4), and the empty history of user 1 has (0, 0). The lists have
    # the shares (1/2, 1/2), (1, 0), (1/2, 1/2) and (0, 1).
    np.testing.assert_allclose(parts["mgu"], [[-0.25, -0.25], [-0.5, -0.5]])


@st.composite
def batches(draw):
    """Draws lists in which items may be repeated and ranks may be missing (-1). Histories may be empty, and items may
    have no group."""
    num_users, num_lists, num_ranks = draw(st.integers(1, 3)), draw(st.integers(1, 3)), draw(st.integers(1, 4))
    rng = np.random.default_rng(draw(st.integers(0, 2**31)))
    lists = rng.integers(-1, NUM_ITEMS, (num_users, num_lists, num_ranks))
    targets = [rng.integers(0, NUM_ITEMS, rng.integers(1, 6)) for _ in range(num_users)]
    histories = [rng.integers(0, NUM_ITEMS, rng.integers(0, 5)) for _ in range(num_users)]
    shares = rng.integers(0, 3, (NUM_ITEMS, 3)) * (rng.random((NUM_ITEMS, 1)) < 0.8)
    return batch_of(lists, targets, histories, shares / np.maximum(shares.sum(1, keepdims=True), 1))


@given(batches())
def test_rewards_equal_loops(batch):
    wanted, found = expected(batch), parts_of(batch)
    assert list(found) == list(NAMES)
    for name in NAMES:
        np.testing.assert_allclose(found[name], wanted[name], atol=2e-12, err_msg=name)


def test_group_shares_are_the_same_in_several_blocks(monkeypatch):
    batch = random_batch()
    wanted = parts_of(batch)["mgu"]
    monkeypatch.setattr(metrics, "GATHERED_VALUES", 50)
    np.testing.assert_array_equal(parts_of(batch)["mgu"], wanted)
    np.testing.assert_allclose(wanted, expected(batch)["mgu"], atol=2e-12)


def test_mgu_compares_a_list_with_the_history_of_its_user():
    batch = random_batch()
    histories = [*map(batch.histories.__getitem__, range(5)), np.array([7])]
    other = ListBatch(batch.lists, batch.targets, Ragged.from_lists(histories), batch.shares)
    changed = (parts_of(other)["mgu"] != parts_of(batch)["mgu"]).any(1)
    assert changed.tolist() == [False] * 5 + [True]


def test_total_is_the_weighted_sum_of_the_parts():
    batch = random_batch()
    parts = parts_of(batch)
    total, found = score_lists(batch, {"ndcg": 1, "mgu": 4, "ild": 0})
    np.testing.assert_allclose(total, parts["ndcg"] + 4 * parts["mgu"], atol=1e-11)
    assert list(found) == ["ndcg", "mgu", "ild"]
    for name, values in found.items():
        np.testing.assert_array_equal(values, parts[name])
        assert values.dtype == np.float64
    assert (found["ild"] > 0).any()


def test_any_function_can_be_a_reward():
    batch = random_batch()
    popularity = np.arange(30.0)
    functions = {"novelty": lambda batch: -popularity[batch.lists].mean(-1), "one": lambda batch: [[1] * 5] * 6}
    total, parts = score_lists(batch, {"novelty": 0.5, "hit": 2, "one": 1}, functions)
    np.testing.assert_allclose(parts["novelty"], -batch.lists.mean(-1))
    np.testing.assert_allclose(total, 0.5 * -batch.lists.mean(-1) + 2 * parts["hit"] + 1)
    assert parts["one"].dtype == np.float64


@pytest.mark.parametrize("seed", range(5))
def test_the_rewards_of_a_list_are_bitwise_equal_in_every_batch(seed):
    """BLADE counts the reference lists whose reward is at most that of a rollout. Reference lists and rollouts are
    scored in separate calls, so equal lists must have bitwise equal rewards in every call."""
    batch = random_batch(40, 8, 10, 60, 7, seed=seed)
    weights = {"ndcg": 1.0, "recall": 0.1, "ild": 0.3, "mgu": 0.7}
    whole = score_lists(batch, weights)
    for rows, places in ((slice(0, 1), slice(0, 1)), (slice(3, 8), slice(2, 5)), (slice(5, 26), slice(0, 7))):
        chosen = np.arange(40)[rows]
        part = ListBatch(
            batch.lists[rows, places], batch.targets.take(chosen), batch.histories.take(chosen), batch.shares
        )
        found = score_lists(part, weights)
        np.testing.assert_array_equal(found.total, whole.total[rows, places])
        for name in weights:
            np.testing.assert_array_equal(found.parts[name], whole.parts[name][rows, places])


def test_diversity_and_fairness_do_not_depend_on_the_order_of_items():
    batch = random_batch(40, 8, 10, 60, 7)
    reversed_lists = ListBatch(batch.lists[..., ::-1], batch.targets, batch.histories, batch.shares)
    for name in ("recall", "hit", "ild", "mgu"):
        np.testing.assert_array_equal(parts_of(reversed_lists)[name], parts_of(batch)[name])
    assert (parts_of(reversed_lists)["ndcg"] != parts_of(batch)["ndcg"]).any()


def test_sums_that_differ_only_by_rounding_are_tied():
    """In float64, 0.1 + 0.2 + 0.3 differs from 0.3 + 0.2 + 0.1."""
    batch = batch_of([[[0], [1]]], [[0]], [[]])
    functions = {
        name: lambda batch, pair=pair: [pair]
        for name, pair in (("a", (0.1, 0.3)), ("b", (0.2, 0.2)), ("c", (0.3, 0.1)))
    }
    total = score_lists(batch, {"a": 1, "b": 1, "c": 1}, functions).total
    assert total[0, 0] == total[0, 1] == 0.6


def test_permuting_users_and_lists_permutes_the_rewards():
    batch = random_batch()
    users, places = np.array([4, 0, 5, 2, 1, 3]), np.array([2, 4, 0, 1, 3])
    moved = ListBatch(
        batch.lists[users][:, places], batch.targets.take(users), batch.histories.take(users), batch.shares
    )
    for name, values in parts_of(moved).items():
        np.testing.assert_array_equal(values, parts_of(batch)[name][users][:, places])


def test_no_users_give_no_rewards():
    batch = batch_of(np.zeros((0, 4, 3), int), [], [], np.ones((5, 2)) / 2)
    total, parts = score_lists(batch, dict.fromkeys(NAMES, 1.0))
    assert total.shape == (0, 4)
    assert {values.shape for values in parts.values()} == {(0, 4)}


def test_accuracy_needs_no_groups_and_fairness_needs_no_targets():
    batch = batch_of([[[1, 2], [2, 9]]], [[9]], [[]])
    np.testing.assert_array_equal(parts_of(batch, ["hit"])["hit"], [[0, 1]])
    for name in ("ild", "mgu"):
        with pytest.raises(ValueError, match="ild and mgu need groups of items; set group_column"):
            parts_of(batch, [name])
    batch = batch_of([[[1, 0]], [[0, 1]]], [[1], []], [[0], [0]], np.eye(2))
    np.testing.assert_allclose(parts_of(batch, ["mgu"])["mgu"], -0.5)
    for name in ("ndcg", "recall", "hit"):
        with pytest.raises(ValueError, match="targets, row 1: the user has no targets"):
            parts_of(batch, [name])


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"lists": [[0, 1]]}, r"lists has the dtype int64 and the shape \(1, 2\); give integer item indices"),
        ({"lists": [[[0.0, np.nan]], [[0, 1]]]}, "lists has the dtype float64 and the shape"),
        ({"lists": [[[0, 1]], [[1, 5]]]}, "lists, row 1, list 0: item 5 is not in the catalogue of 5 items"),
        ({"targets": [[1]]}, "targets has 1 rows, but lists has 2"),
        ({"histories": [[1], [2], [3]]}, "histories has 3 rows, but lists has 2"),
        ({"targets": [[1], [5]]}, "targets, row 1: 5 is not an item index"),
        ({"histories": [[1], [2, -1]]}, "histories, row 1: -1 is not an item index"),
    ],
)
def test_inconsistent_batches_are_an_error(changed, message):
    fields = {"lists": [[[0, 1]], [[1, 2]]], "targets": [[1], [4]], "histories": [[1], []], "shares": np.ones((5, 1))}
    batch_of(**fields)
    with pytest.raises(ValueError, match=message):
        batch_of(**{**fields, **changed})


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_reward_that_is_not_finite_is_an_error_that_names_the_row(value):
    batch = random_batch()
    values = np.zeros((6, 5))
    values[3, 2] = value
    with pytest.raises(ValueError, match=f"reward 'mine' returned {value} for list 2 of row 3; return finite numbers"):
        score_lists(batch, {"hit": 1.0, "mine": 0.0}, {"mine": lambda batch: values})


@pytest.mark.parametrize("shape", [(6,), (6, 1), (5, 6), (6, 5, 4), ()])
def test_a_reward_of_another_shape_is_an_error(shape):
    with pytest.raises(
        ValueError,
        match=r"reward 'mine' returned values of the shape .*; return one value per list, of the shape \(6, 5\)",
    ):
        score_lists(random_batch(), {"mine": 1.0}, {"mine": lambda batch: np.zeros(shape)})


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ({}, f"rewards is empty; give a weight to at least one of {NAMED_REWARDS}"),
        ({"ndgc": 1.0}, f"there is no reward 'ndgc'; choose from {NAMED_REWARDS}, or pass your own function"),
        ({"hit": np.nan}, "the weight of reward 'hit' must be a finite number, not nan"),
    ],
)
def test_missing_or_invalid_weights_are_an_error(weights, message):
    with pytest.raises(ValueError, match=message):
        score_lists(random_batch(), weights)
