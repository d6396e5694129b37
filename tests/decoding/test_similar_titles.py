"""Compares the result of `similar_titles` with a dense computation. For each item, the result contains the items with
similar titles, and a share for each of them. The weight of a similar item grows with the similarity of the titles and
with its popularity. Its share is this weight, divided by the sum of the weights of all similar items."""

import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.evaluation.logs import make_split, whole_rows
from trl_rec.decoding import MixturePrior
from trl_rec.decoding.priors import similar_titles as module
from trl_rec.decoding.priors.similar_titles import similar_titles
from trl_rec.ragged import Ragged


TITLES = ["red nail lacquer", "Red lacquer!", "hair clay", "clay for hair", "", "nail clay", "hair clay"]


def dense_shares(titles: list[str], popularity: np.ndarray, most: int = 10) -> np.ndarray:
    found = [set(re.findall(r"\w+", title.lower())) for title in titles]
    words = sorted(set().union(*found))
    vectors = np.zeros((len(titles), len(words)))
    for item, own in enumerate(found):
        for word in own:
            vectors[item, words.index(word)] = np.log(len(titles) / sum(word in one for one in found))
    norms = np.sqrt((vectors**2).sum(1, keepdims=True))
    vectors = np.divide(vectors, norms, out=np.zeros_like(vectors), where=norms > 0)
    similarity = vectors @ vectors.T
    np.fill_diagonal(similarity, 0)
    weights = np.where(similarity >= 0.1 - 1e-12, similarity, 0) ** 2 * (popularity + 1) ** 0.25
    for row in weights:
        row[np.argsort(-row, kind="stable")[most:]] = 0
    totals = weights.sum(1, keepdims=True)
    return np.divide(weights, totals, out=np.zeros_like(weights), where=totals > 0)


def as_dense(counts, num_items: int) -> np.ndarray:
    shares = np.zeros((num_items, num_items))
    shares[counts.targets.row_ids, counts.targets.values] = counts.shares
    return shares


@pytest.mark.parametrize("block", [2, 1000])
def test_shares_equal_the_dense_computation(block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "BLOCK", block)
    popularity = np.array([3, 0, 1, 7, 2, 2, 0])
    counts = similar_titles(TITLES, popularity, 10)
    np.testing.assert_allclose(as_dense(counts, len(TITLES)), dense_shares(TITLES, popularity), atol=1e-12)
    assert counts.targets.lengths.tolist()[4] == 0  # this title has no words


def test_each_item_keeps_the_largest_shares(monkeypatch: pytest.MonkeyPatch) -> None:
    popularity = np.array([3, 0, 1, 7, 2, 2, 5])
    expected = dense_shares(TITLES, popularity, 2)
    np.testing.assert_allclose(as_dense(similar_titles(TITLES, popularity, 2), len(TITLES)), expected, atol=1e-12)
    monkeypatch.setattr(module, "MOST_SHARES", 2 * len(TITLES) + 1)
    np.testing.assert_allclose(as_dense(similar_titles(TITLES, popularity, 10), len(TITLES)), expected, atol=1e-12)


@settings(deadline=None, max_examples=50)
@given(st.lists(st.text("ab c", max_size=12), max_size=8))
def test_shares_of_random_titles_equal_the_dense_computation(titles: list[str]) -> None:
    popularity = np.arange(len(titles))
    counts = similar_titles(titles, popularity, 10)
    counts.check(len(titles))
    np.testing.assert_allclose(as_dense(counts, len(titles)), dense_shares(titles, popularity), atol=1e-12)


def test_the_most_frequent_words_are_left_out_of_a_large_catalogue(monkeypatch: pytest.MonkeyPatch) -> None:
    """To bound the time, frequent words are left out. Items that share a rare word are still paired."""
    titles = [f"common pair{number // 2}" for number in range(20)] + ["other"]
    full = similar_titles(titles, np.zeros(21), 30)
    monkeypatch.setattr(module, "MOST_PAIRS", 100)
    bounded = similar_titles(titles, np.zeros(21), 30)
    assert bounded.targets.lengths.tolist() == [1] * 20 + [0]
    assert bounded.targets.values[:20].tolist() == [number ^ 1 for number in range(20)]
    assert set(bounded.targets.values) <= set(full.targets.values)


def test_a_mixture_uses_titles_if_they_predict_the_next_item() -> None:
    """No user chose item 4 in the training split, but its title contains the title of item 1."""
    titles = ["blue lamp", "red chair", "green desk", "white sofa", "red chair large"]
    train = make_split(whole_rows([[0, 2], [2, 3], [3, 1], [1, 0]]))
    validation = make_split([(0, [2, 1], [4]), (1, [3, 1], [4])], "validation")
    plain = MixturePrior.fit(train, validation, 5)
    prior = MixturePrior.fit(train, validation, 5, titles=titles)
    assert "similar titles" not in plain.shares and prior.shares["similar titles"] > 0.5
    history = Ragged.from_lists([[0, 1]])
    assert int(prior.weights(history).items[0][prior.weights(history).values[0].argmax()]) == 4
    with pytest.raises(ValueError, match="there are 4 titles for a catalogue of 5 items"):
        MixturePrior.fit(train, validation, 5, titles=titles[:4])
