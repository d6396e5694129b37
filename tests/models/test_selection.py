"""Tests `logits_at`, which makes a model compute logits only at chosen positions. These logits must equal those of an
ordinary forward pass."""

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from tests.conftest import FAMILIES, make_model
from trl_rec.models import logits_at


@pytest.mark.parametrize("family", [*FAMILIES, "gpt2"])
def test_chosen_logits_and_their_gradients_equal_those_of_a_whole_pass(family: str) -> None:
    model = make_model(family, attention="eager" if family == "gemma2" else "sdpa")
    ids = torch.randint(3, 40, (3, 7), generator=torch.Generator().manual_seed(0))
    positions = torch.rand(3, 7, generator=torch.Generator().manual_seed(1)) < 0.4
    expected = model(input_ids=ids, use_cache=False).logits[positions]
    with logits_at(model, positions):
        chosen = model(input_ids=ids, use_cache=False).logits
    assert chosen.shape == (1, int(positions.sum()), 40)
    assert torch.allclose(chosen[0], expected, atol=1e-6)
    parameters = list(model.parameters())
    ours = torch.autograd.grad(chosen.square().sum(), parameters)
    for one, other in zip(ours, torch.autograd.grad(expected.square().sum(), parameters), strict=True):
        assert torch.allclose(one, other, atol=1e-4, rtol=1e-4)


def test_without_positions_the_empty_logits_have_a_gradient() -> None:
    model = make_model("llama")
    with logits_at(model, torch.zeros(2, 5, dtype=torch.bool)):
        logits = model(input_ids=torch.ones(2, 5, dtype=torch.int64)).logits
    assert logits.shape == (1, 0, 40)
    logits.sum().backward()
    assert not model.lm_head.weight.grad.any()


def test_the_model_is_restored_after_the_block() -> None:
    model, ids = make_model("llama"), torch.ones(2, 5, dtype=torch.int64)
    with pytest.raises(RuntimeError, match="inside"), logits_at(model, torch.zeros(2, 5, dtype=torch.bool)):
        raise RuntimeError("inside")
    assert model(input_ids=ids).logits.shape == (2, 5, 40)


def test_threads_that_share_a_model_get_the_logits_of_their_own_positions() -> None:
    model = make_model("llama")
    ids = torch.randint(3, 40, (3, 7), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        whole = model(input_ids=ids, use_cache=False).logits.flatten(0, 1)

    @torch.no_grad()
    def compute(number: int) -> bool:
        places = torch.tensor([number % 21, number * 5 % 21])
        tokens = torch.tensor([number % 40, 7])
        with logits_at(model, places, tokens=tokens):
            chosen = model(input_ids=ids, use_cache=False).logits
        return torch.allclose(chosen[0], whole[places][:, tokens], atol=1e-6)

    with ThreadPoolExecutor(8) as threads:
        assert all(threads.map(compute, range(400)))
    assert torch.equal(model(input_ids=ids, use_cache=False).logits.flatten(0, 1), whole)
