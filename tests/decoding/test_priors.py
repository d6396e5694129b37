"""Compares the weights of priors with those of slow loops, also for histories that contain no item of the training
split. Also tests saved priors."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.evaluation.logs import make_split, whole_rows
from tests.oracles import baselines as oracle
from trl_rec.data.transitions import TransitionCounts
from trl_rec.decoding import (
    ArrayPrior,
    FunctionPrior,
    ItemWeights,
    MixturePrior,
    PopularityPrior,
    Prior,
    TransitionPrior,
    as_prior,
    load_prior,
    rank_scores,
)
from trl_rec.decoding.priors.mixture_counts import COUNTS, partial_shares
from trl_rec.decoding.priors.mixture_fit import fit_mixture, target_shares
from trl_rec.evaluation.baselines import TransitionBaseline
from trl_rec.items import TokenTrie
from trl_rec.ragged import Ragged


NUM_ITEMS = 8
ITEM = st.integers(0, NUM_ITEMS - 1)
SEQUENCES = st.lists(st.lists(ITEM, min_size=2, max_size=12), min_size=1, max_size=6)
HISTORIES = st.lists(st.lists(ITEM, max_size=14), min_size=1, max_size=4)


def dense(weights: ItemWeights, num_rows: int, num_items: int = NUM_ITEMS) -> np.ndarray:
    """Returns the weight of every item, `(num_rows, num_items)`, computed in loops."""
    found = np.zeros((num_rows, num_items))
    if weights.shared is not None:
        found += weights.shared.numpy()
    if weights.items is not None and weights.values is not None:
        for row in range(num_rows):
            for item, value in zip(weights.items[row].tolist(), weights.values[row].tolist(), strict=True):
                if item >= 0:
                    found[row, item] += value
    return found


@settings(max_examples=60, deadline=None)
@given(SEQUENCES, HISTORIES, st.sampled_from([0.1, 0.5, 3.0]))
def test_the_transition_prior_equals_loops(sequences: list[list[int]], histories: list[list[int]], eps: float) -> None:
    prior = TransitionPrior.fit(make_split(whole_rows(sequences)), NUM_ITEMS, eps=eps, strength=0.7)
    weights = prior.weights(Ragged.from_lists(histories))
    table = oracle.transitions(sequences, 3)
    counts = oracle.popularity(sequences, NUM_ITEMS)
    shared = eps * (np.array(counts) + 1) / (sum(counts) + NUM_ITEMS)
    for row, history in enumerate(histories):
        scores = np.zeros(NUM_ITEMS)
        for age, item in enumerate(reversed(history[-10:])):
            for target, share in table.get(item, {}).items():
                scores[target] += float(share) / (1 + age)
        expected = shared + (scores / scores.sum() if scores.any() else 0)
        np.testing.assert_allclose(dense(weights, len(histories))[row], expected, rtol=1e-5)
    assert weights.strength == 0.7


def test_after_a_history_without_known_items_the_weights_are_those_of_popularity() -> None:
    prior = TransitionPrior.fit(make_split([(0, [0], [1]), (1, [2], [1])]), 5)
    weights = dense(prior.weights(Ragged.from_lists([[], [4], [0]])), 3, 5)
    popularity = dense(
        PopularityPrior.fit(make_split([(0, [0], [1]), (1, [2], [1])]), 5).weights(Ragged.from_lists([[], [], []])),
        3,
        5,
    )
    np.testing.assert_allclose(popularity.sum(1), 1)
    np.testing.assert_allclose(popularity[0], np.array([2, 3, 2, 1, 1]) / 9)
    np.testing.assert_allclose(weights, 0.5 * popularity + [[0] * 5, [0] * 5, [0, 1, 0, 0, 0]])
    assert prior.weights(Ragged.from_lists([])).items.shape[0] == 0


def test_only_the_largest_shares_are_kept() -> None:
    train = make_split([(0, [0], [1]), (1, [0], [1]), (2, [0], [2]), (3, [0], [3])])
    weights = TransitionPrior.fit(train, 5, prior_items=2).weights(Ragged.from_lists([[0]]))
    assert weights.items.tolist() == [[1, 2]]
    np.testing.assert_allclose(weights.values, [[0.5, 0.25]])


def test_with_a_small_eps_the_transition_prior_ranks_like_the_baseline() -> None:
    rng = np.random.default_rng(0)
    sequences = [rng.integers(0, 30, 9).tolist() for _ in range(40)]
    train = make_split(whole_rows(sequences))
    histories = Ragged.from_lists([rng.integers(0, 30, 6).tolist() for _ in range(20)])
    weights = dense(TransitionPrior.fit(train, 30, eps=1e-5).weights(histories), 20, 30)
    expected = TransitionBaseline().fit(train, 30).rank(histories, 5, False).items
    chosen = np.take_along_axis(weights, expected, 1)
    np.testing.assert_allclose(chosen, -np.sort(-weights, 1)[:, :5], rtol=1e-5)


def test_arrays_and_functions_of_the_user_can_be_priors() -> None:
    histories = Ragged.from_lists([[0], [1, 2]])
    margin = ArrayPrior(np.array([0.5, 0, 2]), strength=0.3)
    np.testing.assert_allclose(dense(margin.weights(histories), 2, 3), [[0.5, 0, 2]] * 2)
    stock = as_prior(torch.tensor([True, False, True]))
    assert isinstance(stock, ArrayPrior)
    np.testing.assert_allclose(dense(stock.weights(histories), 2, 3), [[1, 0, 1]] * 2)
    fresh = as_prior(lambda histories: np.ones((len(histories), 3)) * histories.lengths[:, None])
    assert isinstance(fresh, FunctionPrior) and isinstance(fresh, Prior)
    np.testing.assert_allclose(dense(fresh.weights(histories), 2, 3), [[1] * 3, [2] * 3])
    assert as_prior(None) is None and as_prior(margin) is margin


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: as_prior(3), "3 is not a prior; give an object with a method weights"),
        (lambda: ArrayPrior(np.array([1.0, -1.0])), "the array of the prior contains a negative, infinite or NaN"),
        (lambda: ArrayPrior(np.array([1.0, np.nan])), "the array of the prior contains a negative, infinite or NaN"),
        (lambda: ArrayPrior(np.ones((2, 2))), "the array of the prior must have 1 dimension"),
        (lambda: ArrayPrior(np.ones(2), strength=-1), "strength must be at least 0"),
        (lambda: FunctionPrior(lambda _: np.ones(3)).weights(Ragged.from_lists([[0]])), "must return one row per"),
        (lambda: FunctionPrior(lambda _: -np.ones((1, 3))).weights(Ragged.from_lists([[0]])),
         "the result of the prior's function contains a negative"),
        (lambda: transition(eps=0), "eps must be above 0"),
        (lambda: transition(strength=np.inf), "strength must be at least 0"),
        (lambda: transition(prior_items=0), "prior_items must be at least 1"),
        (lambda: transition().weights(Ragged.from_lists([[9]])), "histories, row 0: 9 is not an item index"),
        (lambda: TransitionPrior.fit(make_split([(0, [0], [1])], "test"), 5), "must use only the training split"),
    ],
)  # fmt: skip
def test_invalid_priors_are_refused(make, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


def transition(**options) -> TransitionPrior:
    return TransitionPrior.fit(make_split([(0, [0, 3], [1, 2]), (1, [0], [2])]), 5, **options)


def mixture(**options) -> MixturePrior:
    rng = np.random.default_rng(1)
    sequences = [rng.integers(0, NUM_ITEMS, 8).tolist() for _ in range(12)]
    held_out = [(user, sequence[:-1], sequence[-1:]) for user, sequence in enumerate(sequences)]
    train = make_split(whole_rows([sequence[:-1] for sequence in sequences]))
    return MixturePrior.fit(train, make_split(held_out, "validation"), NUM_ITEMS, **options)


PRIORS = {
    "popularity": PopularityPrior(np.array([3, 0, 1, 1, 0]), strength=0.4),
    "transition": transition(strength=1.3, eps=0.2, prior_items=3, max_history=2),
    "transition, decay 0": TransitionPrior(
        TransitionCounts(Ragged.from_lists([[2], [3], [], [], []]), np.ones(2), max_history=5, decay=0.0),
        np.ones(5, np.int64),
    ),
    "mixture": mixture(strength=0.9, prior_items=4, exclude_history=False),
    "array": ArrayPrior(np.array([0.25, 1, 0, 2, 1]), strength=2.0),
}


@pytest.mark.parametrize("kind", PRIORS)
def test_a_loaded_prior_gives_the_same_weights(kind: str, tmp_path: Path) -> None:
    prior = PRIORS[kind]
    prior.save(tmp_path / "prior.safetensors")
    histories = Ragged.from_lists([[0, 1], [], [3, 0, 2]])
    expected = prior.weights(histories)
    for loaded in (load_prior(tmp_path), type(prior).load(tmp_path / "prior.safetensors")):
        got = loaded.weights(histories)
        assert type(loaded) is type(prior) and got.strength == expected.strength
        for name in ("shared", "items", "values"):
            assert (getattr(got, name) is None) == (getattr(expected, name) is None)
            if getattr(got, name) is not None:
                assert torch.equal(getattr(got, name), getattr(expected, name))
    with pytest.raises(ValueError, match="but the catalogue has 99; use a prior that was fitted"):
        load_prior(tmp_path, num_items=99)


def test_counts_whose_shares_are_all_zero_give_no_shares() -> None:
    counts = TransitionCounts(Ragged.from_lists([[2], [], []]), np.zeros(1), max_history=5)
    rows, items, values = partial_shares(counts, Ragged.from_lists([[0], [1]]), 3, exclude_history=False)
    assert (rows.tolist(), items.tolist(), values.tolist()) == ([0], [2], [0.0])


@pytest.mark.parametrize("dtype", [np.int8, np.int32, np.uint16])
def test_counts_of_any_integer_type_are_saved(dtype: type, tmp_path: Path) -> None:
    """Counts of small integer types are saved, and adding to them does not overflow."""
    counts = np.array([127, 0, 1])
    expected = PopularityPrior(counts).weights(Ragged.from_lists([])).shared
    prior = PopularityPrior(counts.astype(dtype))
    prior.save(tmp_path / "prior.safetensors")
    for one in (prior, load_prior(tmp_path)):
        assert torch.equal(one.weights(Ragged.from_lists([])).shared, expected)


@pytest.mark.parametrize("columns", [2, 4])
def test_a_function_must_weigh_all_items(columns: int) -> None:
    """The returned array must have one column per item. With fewer columns, the missing items would have weight 0."""
    trie = TokenTrie.from_sequences([[4], [5], [6]])
    weights = FunctionPrior(lambda histories: np.ones((len(histories), columns))).weights(Ragged.from_lists([[0]]))
    with pytest.raises(
        ValueError, match=f"the result of the prior's function has {columns} items, but the trie has 3"
    ):
        rank_scores(torch.zeros(1, 3), trie, 2, weights=weights)


def test_a_mixture_equals_the_weighted_shares_of_its_counts() -> None:
    prior = mixture()
    histories = Ragged.from_lists([[0, 1, 2, 3], [], [5], [7, 7, 6]])
    expected = np.zeros((4, NUM_ITEMS))
    for row in range(4):
        history = histories[row].tolist()
        for name, counts in prior.counts.items():
            scores = np.zeros(NUM_ITEMS)
            for age, item in enumerate(reversed(history[-counts.max_history :])):
                start, stop = counts.targets.offsets[item : item + 2]
                for target, share in zip(counts.targets.values[start:stop], counts.shares[start:stop], strict=True):
                    scores[target] += share / (1 + age) ** counts.decay
            scores[history] = 0
            expected[row] += prior.shares[name] * (scores / scores.sum() if scores.any() else 0)
        expected[row] += prior.eps * (prior.popularity + 1) / (prior.popularity.sum() + NUM_ITEMS)
    np.testing.assert_allclose(dense(prior.weights(histories), 4), expected, rtol=1e-5)
    assert sum(prior.shares.values()) == pytest.approx(1, abs=0.01) and set(prior.shares) <= set(COUNTS)


def test_a_mixture_needs_a_validation_target_outside_of_the_history() -> None:
    train = make_split(whole_rows([[0, 1, 2], [2, 1, 3]]))
    for rows in ([], [(0, [0, 1], [1])]):
        with pytest.raises(ValueError, match="has no target outside of its history; choose another prior"):
            MixturePrior.fit(train, make_split(rows, "validation"), NUM_ITEMS)
    fitted = MixturePrior.fit(train, make_split([(0, [0], [7])], "validation"), NUM_ITEMS)  # item 7 is not in `train`
    nothing = dataclasses.replace(fitted, shares=dict.fromkeys(fitted.shares, 0.0))
    assert dense(nothing.weights(Ragged.from_lists([[0]])), 1).tolist() == [
        pytest.approx(dense(fitted.weights(Ragged.from_lists([[]])), 1)[0])
    ]
    assert np.isfinite(fitted.eps) and dense(fitted.weights(Ragged.from_lists([[0]])), 1).min() > 0


def test_the_mixture_weights_maximise_the_likelihood() -> None:
    rng = np.random.default_rng(2)
    likelihoods = rng.dirichlet(np.ones(20), (3, 20))[:, :, 0].T.repeat(5, 0) + 1e-3
    fitted = fit_mixture(likelihoods)
    best = np.log(likelihoods @ fitted).mean()
    others = rng.dirichlet(np.ones(3), 3000)
    assert fitted.sum() == pytest.approx(1) and fitted.min() >= 0
    assert best >= np.log(likelihoods @ others.T).mean(0).max() - 1e-6


def test_the_share_of_a_target_is_its_weight() -> None:
    """The share of a target is the probability that one table of counts gives to it after a history, among the items
    outside the history. The last column of `shares` is the share by popularity. With a tiny `eps` (the weight of the
    popularity), the weight of a target is the sum of its shares in the tables of counts, each multiplied by the
    mixture weight of the table."""
    prior = mixture()
    histories = Ragged.from_lists([[0, 1, 2], [4, 3], [6]])
    targets = Ragged.from_lists([[5], [1, 7], [6]])  # the last target is in its history, so it is left out
    shares = target_shares(prior.counts, prior.popularity, histories, targets)
    assert shares.shape == (3, len(prior.counts) + 1)
    of_items = (prior.popularity + 1) / (prior.popularity.sum() + NUM_ITEMS)
    assert shares[0, -1] == pytest.approx(of_items[5] / (1 - of_items[[0, 1, 2]].sum()))
    without = dataclasses.replace(prior, eps=1e-9)
    weights = dense(without.weights(histories), 3)
    mixed = shares[:, :-1] @ np.array(list(prior.shares.values()))
    np.testing.assert_allclose(mixed, [weights[0, 5], weights[1, 1], weights[1, 7]], atol=1e-6)
