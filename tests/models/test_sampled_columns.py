"""Compares the logits of a few tokens, and their gradients, with those of a full forward pass. The tokens are one
target per position and some negatives per row.

`collect_rows` prepares a model so that autograd collects the gradients of the embeddings as sparse tensors. Hooks then
make these gradients dense.
"""

from __future__ import annotations

import copy

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn
from torch.testing import assert_close
from transformers import PreTrainedModel

from tests.conftest import make_model as make_family
from trl_rec.models import logits_at
from trl_rec.models.sampled_columns import SampledColumns, collect_rows, collecting_rows


TOKENS = torch.randint(3, 60, (3, 7), generator=torch.Generator().manual_seed(0))
LEARNED = torch.tensor([[0, 1, 1, 0, 1, 1, 0], [0, 0, 0, 0, 0, 0, 0], [1, 0, 0, 0, 0, 0, 0]], dtype=torch.bool)
OWNERS = LEARNED.nonzero()[:, 0]
COLUMNS = SampledColumns(
    OWNERS, torch.tensor([5, 9, 9, 30, 7]), torch.tensor([[9, 4, 9, 8], [3, 3, 3, 3], [5, 7, 8, 7]])
)
# (N, 1 + L) for N positions and L negatives per row
WANTED = torch.cat([COLUMNS.targets.unsqueeze(1), COLUMNS.negatives[OWNERS]], 1)


def tied_or_not(family: str, tied: bool) -> PreTrainedModel:
    """Returns a model whose output embedding is the input embedding if `tied`, and a separate weight otherwise."""
    model = make_family(family, vocab_size=64, attention="eager")
    embedding = model.get_input_embeddings().weight
    model.config.tie_word_embeddings = tied
    model.get_output_embeddings().weight = embedding if tied else nn.Parameter(embedding.detach().flip(0))
    return model


def sampled(model: nn.Module, base: nn.Module | None = None) -> Tensor:
    with logits_at(base or model, LEARNED, tokens=COLUMNS), collecting_rows(base or model):
        return model(input_ids=TOKENS, use_cache=False).logits[0]


def full(model: nn.Module) -> Tensor:
    with logits_at(model, LEARNED):
        return model(input_ids=TOKENS, use_cache=False).logits[0].gather(1, WANTED)


def gradients(model: nn.Module, logits: Tensor) -> dict[str, Tensor]:
    model.zero_grad()
    weights = torch.linspace(-1, 1, logits.numel()).view_as(logits)
    (logits * weights).sum().backward()
    found = {name: weight.grad for name, weight in model.named_parameters() if weight.grad is not None}
    assert not any(gradient.is_sparse for gradient in found.values())
    return {name: gradient.clone() for name, gradient in found.items()}


@pytest.mark.parametrize("family", ["llama", "gemma2"])
@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("collects", [False, True])
def test_sampled_logits_are_columns_of_all_logits(family: str, tied: bool, collects: bool) -> None:
    model = tied_or_not(family, tied)
    expected = full(model)
    expected_gradients = gradients(model, expected)
    if collects:
        collect_rows(model)
        collect_rows(model)  # a second call has no effect
    for _ in range(2):  # after `collect_rows`, the second round reuses the memory of the first round's gradient
        found = sampled(model)
        assert_close(found, expected, rtol=1e-5, atol=1e-6)
        assert_close(gradients(model, found), expected_gradients, rtol=1e-4, atol=1e-5)


def test_gradients_accumulate() -> None:
    model = tied_or_not("llama", True)
    expected = gradients(model, full(model))
    collect_rows(model)
    model.zero_grad()
    weights = torch.linspace(-1, 1, WANTED.numel()).view_as(WANTED)
    for _ in range(2):
        (sampled(model) * weights).sum().backward()
    assert_close({name: weight.grad / 2 for name, weight in model.named_parameters()}, expected, rtol=1e-4, atol=1e-5)


def test_a_copy_of_the_model_has_dense_gradients() -> None:
    model = tied_or_not("llama", True)
    collect_rows(model)
    other = copy.deepcopy(model)
    assert_close(gradients(other, sampled(other)), gradients(model, sampled(model)), rtol=1e-4, atol=1e-5)


def test_a_batch_without_positions_is_allowed() -> None:
    model = tied_or_not("llama", True)
    collect_rows(model)
    nothing = SampledColumns(OWNERS[:0], COLUMNS.targets[:0], COLUMNS.negatives)
    with logits_at(model, torch.zeros_like(LEARNED), tokens=nothing), collecting_rows(model):
        logits = model(input_ids=TOKENS, use_cache=False).logits
    assert logits.shape == (1, 0, 5)
    logits.sum().backward()
    assert all(not weight.grad.any() for weight in model.parameters())


@pytest.mark.parametrize("options", [{"target_modules": ["lm_head"]}, {"trainable_token_indices": [5, 7, 9]}])
def test_adapters_of_the_embeddings_get_the_same_gradients(options: dict) -> None:
    torch.manual_seed(0)
    model = get_peft_model(
        tied_or_not("llama", True),
        LoraConfig(r=2, task_type="CAUSAL_LM", init_lora_weights=False, **options),
    )
    base = model.get_base_model()
    expected = full(base)
    expected_gradients = gradients(model, expected)
    collect_rows(base)
    found = sampled(model, base)
    assert_close(found, expected, rtol=1e-5, atol=1e-6)
    assert_close(gradients(model, found), expected_gradients, rtol=1e-4, atol=1e-5)


def test_half_precision_is_computed_in_float32() -> None:
    model = tied_or_not("llama", True).to(torch.bfloat16)
    found = sampled(model)
    assert found.dtype == torch.float32
    assert_close(found, full(model), rtol=1e-5, atol=1e-5)

    model = tied_or_not("llama", True)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert_close(sampled(model), full(model), rtol=1e-4, atol=1e-4)
