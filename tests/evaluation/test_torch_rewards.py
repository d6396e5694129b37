"""Compares the rewards computed from tensors with those computed from arrays, for random lists in which some ranks
have no item, and some items are repeated."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from trl_rec.evaluation import torch_rewards
from trl_rec.evaluation.metrics import unit_vectors
from trl_rec.evaluation.rewards import REWARDS, ListBatch, score_lists
from trl_rec.evaluation.torch_rewards import TORCH_REWARDS, ListTensors, score_tensors
from trl_rec.ragged import Ragged


NUM_ITEMS = 9


def make_batch(seed: int, shape: tuple[int, int, int], dtype: str = "float32") -> tuple[ListBatch, ListTensors]:
    """Returns the same lists as arrays and as tensors. Some items have no group, and some histories are empty."""
    draw = np.random.default_rng(seed)
    num_users, _, num_ranks = shape
    lists = draw.integers(-1, NUM_ITEMS, shape)
    targets = Ragged.from_lists([draw.integers(0, NUM_ITEMS, draw.integers(1, 5)) for _ in range(num_users)])
    histories = Ragged.from_lists([draw.integers(0, NUM_ITEMS, draw.integers(0, 6)) for _ in range(num_users)])
    shares = draw.integers(0, 3, (NUM_ITEMS, 4)).astype(dtype)
    shares /= np.maximum(shares.sum(1, keepdims=True), 1)
    arrays = (lists, targets.padded(), histories.padded(), shares, unit_vectors(shares))
    tensors = [torch.from_numpy(values) for values in arrays]
    return ListBatch(lists, targets, histories, shares), ListTensors(*tensors)


shapes = st.tuples(st.integers(1, 4), st.integers(1, 3), st.integers(1, 6))


@given(st.integers(0, 1000), shapes, st.sampled_from(["float32", "float64"]))
def test_rewards_equal_those_of_arrays(seed: int, shape: tuple[int, int, int], dtype: str) -> None:
    """The group shares of the items are tested in float64 and in float32. Catalogues use float32."""
    arrays, tensors = make_batch(seed, shape, dtype)
    weights = {name: 1.0 + number for number, name in enumerate(REWARDS)}
    expected, found = score_lists(arrays, weights), score_tensors(tensors, weights)
    for name in REWARDS:
        assert found.parts[name].dtype == torch.float64
        np.testing.assert_allclose(found.parts[name].numpy(), expected.parts[name], rtol=0, atol=1e-12, err_msg=name)
    np.testing.assert_allclose(found.total.numpy(), expected.total, rtol=0, atol=3e-11)  # the weights sum to 15


def test_users_without_targets_have_no_accuracy() -> None:
    _, tensors = make_batch(1, (2, 3, 4))
    batch = tensors._replace(targets=torch.empty(2, 0, dtype=torch.long))
    for name in ("ndcg", "recall"):
        assert score_tensors(batch, {name: 1.0}).parts[name].isnan().all()


def test_every_named_reward_has_both_forms() -> None:
    assert TORCH_REWARDS.keys() == REWARDS.keys()


def test_equally_good_lists_are_tied() -> None:
    """The sums in `ild` and `mgu` follow the order of the list, so their rounding errors may differ. Lists with the
    same items in different orders must still have equal rewards."""
    _, tensors = make_batch(3, (2, 1, 6), "float64")
    orders = torch.stack([torch.randperm(6, generator=torch.Generator().manual_seed(seed)) for seed in range(20)])
    batch = tensors._replace(lists=tensors.lists[:, 0][:, orders])  # (2, 20, 6)
    for name in ("ild", "mgu"):
        values = score_tensors(batch, {name: 1.0}).total
        assert (values == values[:, :1]).all()


def test_without_float64_rewards_are_rounded_to_five_decimals(monkeypatch: pytest.MonkeyPatch) -> None:
    arrays, tensors = make_batch(0, (4, 3, 6))
    weights = dict.fromkeys(REWARDS, 1.0)
    monkeypatch.setattr(torch_rewards, "reward_dtype", lambda device: torch.float32)
    found, expected = score_tensors(tensors, weights), score_lists(arrays, weights)
    for name in REWARDS:
        assert found.parts[name].dtype == torch.float32
        np.testing.assert_allclose(found.parts[name].numpy(), expected.parts[name], rtol=0, atol=1e-5, err_msg=name)
        assert torch.equal(found.parts[name], found.parts[name].double().round(decimals=5).float())
