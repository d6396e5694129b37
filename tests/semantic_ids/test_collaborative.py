"""Tests collaborative item vectors, which a small sequence model learns from the training split."""

import math

import numpy as np
import pyarrow as pa
import pytest
import torch
from datasets import Dataset

from trl_rec.ragged import Ragged
from trl_rec.semantic_ids import collaborative, collaborative_vectors


def train_split(sequences, split="train"):
    history = Ragged.from_lists([sequence[:1] for sequence in sequences]).to_arrow()
    targets = Ragged.from_lists([sequence[1:] for sequence in sequences]).to_arrow()
    columns = {"user": pa.array(range(len(sequences))), "history": history, "targets": targets}
    return Dataset(pa.table(columns), split=split)


@pytest.fixture(scope="module")
def circles():
    """Makes the sequences of 200 users. There are two groups of ten items, and a user chooses items of only one group.
    Item 20 is never chosen."""
    rng = np.random.default_rng(0)
    return [(rng.choice(10, 8, replace=False) + 10 * (user % 2)).tolist() for user in range(200)]


def test_items_of_one_group_are_near_each_other(circles):
    vectors = collaborative_vectors(train_split(circles), 21, width=16, max_epochs=20)
    assert vectors.shape == (21, 16) and (vectors[20] == 0).all()
    near = torch.nn.functional.normalize(vectors[:20] - vectors[:20].mean(0))
    likeness = near @ near.T
    same = torch.arange(20)[:, None] // 10 == torch.arange(20) // 10
    assert likeness[same & ~torch.eye(20, dtype=torch.bool)].mean() > likeness[~same].mean() + 0.2


def test_the_seed_determines_the_vectors_and_the_global_random_state_is_unchanged(circles):
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    one, other = (collaborative_vectors(train_split(circles), 21, width=8, max_epochs=2) for _ in range(2))
    assert torch.equal(one, other) and torch.equal(torch.rand(1), expected)
    assert not torch.equal(one, collaborative_vectors(train_split(circles), 21, width=8, max_epochs=2, seed=1))


def test_vectors_are_cached_by_their_inputs(circles, tmp_path, monkeypatch):
    made = collaborative_vectors(train_split(circles), 21, width=8, max_epochs=2, cache=tmp_path)
    with monkeypatch.context() as patched:
        patched.setattr(collaborative, "_train", lambda *given: 1 / 0)
        assert torch.equal(
            collaborative_vectors(train_split(circles), 21, width=8, max_epochs=2, cache=tmp_path), made
        )
        with pytest.raises(ZeroDivisionError):
            collaborative_vectors(train_split(circles[1:]), 21, width=8, max_epochs=2, cache=tmp_path)
    assert [path.suffix for path in tmp_path.iterdir()] == [".safetensors"]


def test_sampled_negatives_approximate_the_full_softmax(monkeypatch):
    """With fewer drawn negatives than items, the loss averaged over many draws is close to the loss over all items,
    even if items differ in score and popularity."""
    torch.manual_seed(0)
    encoder = collaborative._Encoder(torch.randn(300), 8).eval()
    torch.nn.init.normal_(encoder.items.weight, std=0.5)
    items = torch.randint(300, (40, 9))
    mask = torch.ones(40, 9, dtype=torch.bool)
    exact = float(collaborative._next_item_loss(encoder, items, mask))
    monkeypatch.setattr(collaborative, "NEGATIVES", 100)
    sampled = torch.stack([collaborative._next_item_loss(encoder, items, mask) for _ in range(60)])
    # The terms of the 100 drawn items approximate those of the 299 items that are not the target, so the softmax
    # multiplies them by 299 / 100. Without this factor, the error would be about log(299 / 100).
    assert abs(float(sampled.mean()) - exact) < 0.1 < math.log(299 / 100)


def test_every_item_of_a_long_sequence_is_predicted_once():
    """Long sequences are cut into windows. Every item of a sequence is still predicted exactly once, except the first
    item of the sequence."""
    sequences = [list(range(120)), [3, 4], [5], list(range(50)), list(range(51))]
    windows, learned = collaborative._windows(train_split(sequences))
    assert windows.lengths.max() <= collaborative.LENGTH
    predicted = [item for row in range(len(windows)) for item in windows[row][1:]]
    assert sorted(predicted) == sorted(item for sequence in sequences for item in sequence[1:])


def test_later_splits_are_refused(circles):
    with pytest.raises(ValueError, match="must use only the training split"):
        collaborative_vectors(train_split(circles, "test"), 21)


def test_a_log_of_users_with_one_item_is_refused():
    with pytest.raises(ValueError, match="no user of the training split has chosen two items"):
        collaborative_vectors(train_split([[1], [2]]), 5)
