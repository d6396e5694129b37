"""Tests that the scores of models in low precision equal those that an output layer in float64 computes from the same
hidden states."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor
from torch.nn import functional as F
from transformers import (
    CohereConfig,
    CohereForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    PhiConfig,
    PhiForCausalLM,
    PreTrainedModel,
)

from tests.conftest import make_model
from trl_rec import TokenTrie, rank_candidates, rank_items
from trl_rec.decoding import greedy_list, list_logps, list_tokens, sample_item_lists
from trl_rec.decoding.lists.beams import beam_list
from trl_rec.losses import bear_loss, list_policy_loss, softmax_dpo_loss
from trl_rec.models import completion_logps, legal_completion_logps, logits_at, precision, read_completions


VOCABULARY, HIDDEN = 400, 32
SIZE = {"vocab_size": VOCABULARY, "hidden_size": HIDDEN, "intermediate_size": 64, "num_hidden_layers": 2}
SIZE |= {"num_attention_heads": 4, "pad_token_id": 0, "eos_token_id": 1, "bos_token_id": 2, "initializer_range": 0.2}


def tied() -> PreTrainedModel:
    return LlamaForCausalLM(LlamaConfig(**SIZE, tie_word_embeddings=True))


def scaled() -> PreTrainedModel:
    """Returns a model that scales its logits."""
    return CohereForCausalLM(CohereConfig(**SIZE, logit_scale=0.7, tie_word_embeddings=False))


def biased() -> PreTrainedModel:
    """Returns a model whose output layer has a bias."""
    model = PhiForCausalLM(PhiConfig(**SIZE))
    torch.nn.init.normal_(model.lm_head.bias)
    return model


def capped() -> PreTrainedModel:
    """Returns a model that soft-caps its logits at 30."""
    return make_model("gemma2", vocab_size=VOCABULARY, attention="eager")


def with_lora(**options: Any) -> PreTrainedModel:
    model = get_peft_model(tied(), LoraConfig(task_type="CAUSAL_LM", r=4, **options))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name or "trainable_tokens_delta" in name:
                parameter.add_(0.1 * torch.randn_like(parameter))
    return model


MODELS: dict[str, Callable[[], Any]] = {
    "plain": lambda: make_model("llama", vocab_size=VOCABULARY),
    "tied": tied,
    "capped": capped,
    "scaled": scaled,
    "biased": biased,
    "LoRA": lambda: with_lora(target_modules="all-linear"),
    "trained tokens": lambda: with_lora(target_modules=["q_proj"], trainable_token_indices=[5, 6, 7, 8]),
    "LoRA on the output embedding": lambda: with_lora(target_modules=["q_proj", "lm_head"]),
    "saved output embedding": lambda: with_lora(target_modules=["q_proj"], modules_to_save=["lm_head"]),
}


def low_precision(name: str, dtype: torch.dtype = torch.bfloat16) -> Any:
    torch.manual_seed(0)
    return MODELS[name]().to(dtype).eval()


def exact_linear(hidden_states: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Returns the output of a linear layer that is computed in float64."""
    return F.linear(hidden_states.double(), weight.double(), None if bias is None else bias.double())


@contextmanager
def product(linear: Callable[..., Tensor]) -> Iterator[None]:
    """Inside the `with` block, logits are computed by `linear`, from the hidden states and the output embedding."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(precision, "precise_linear", linear)
        yield


def catalogue(seed: int = 0) -> TokenTrie:
    """Returns a trie of up to 200 items with three tokens each."""
    tokens = torch.randint(3, VOCABULARY, (200, 3), generator=torch.Generator().manual_seed(seed))
    tokens[:, 0] = tokens[:, 0] % 12 + 3
    return TokenTrie.from_sequences(tokens.unique(dim=0).tolist())


def prompts(count: int = 12, seed: int = 0) -> dict[str, Tensor]:
    ids = torch.randint(3, VOCABULARY, (count, 6), generator=torch.Generator().manual_seed(seed))
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


RANKINGS: dict[str, Callable[[Any], tuple[Tensor, Tensor]]] = {
    "beam search": lambda model: rank_items(model, prompts(), catalogue(), num_beams=20),
    "whole vocabulary": lambda model: rank_items(model, prompts(), catalogue(), num_beams=20, renormalize=False),
    "greedy list": lambda model: greedy_list(model, prompts(), catalogue(), list_length=8),
    "beams of lists": lambda model: beam_list(model, prompts(), catalogue(), list_length=4, num_beams=4),
    "sampled lists": lambda model: sample_item_lists(model, prompts(), catalogue(), num_lists=2, list_length=4)[::3],
    "candidates": lambda model: rank_candidates(model, prompts(), *candidates()),
}


def candidates() -> tuple[Tensor, Tensor]:
    """Returns the tokens that name the 30 candidates of each prompt, and their mask."""
    generator = torch.Generator().manual_seed(0)
    names = torch.stack([torch.randperm(300, generator=generator)[:30] + 3 for _ in range(12)])
    return names, torch.ones_like(names, dtype=torch.bool)


@pytest.mark.parametrize("ranking", RANKINGS)
@pytest.mark.parametrize("name", MODELS)
def test_rankings_equal_those_of_an_output_layer_in_float64(name: str, ranking: str) -> None:
    model = low_precision(name)
    items, scores = RANKINGS[ranking](model)
    with product(exact_linear):
        expected_items, expected_scores = RANKINGS[ranking](model)
    assert scores.dtype == torch.float32
    assert torch.equal(items, expected_items)
    torch.testing.assert_close(scores, expected_scores.float(), atol=2e-5, rtol=1e-5)


@pytest.mark.parametrize("name", ["plain", "capped", "scaled"])
def test_rounded_logits_would_change_the_order(name: str) -> None:
    """Rounding the logits of these models changes the order of items, so the test above can detect rounded logits."""
    model = low_precision(name)
    items = rank_items(model, prompts(), catalogue(), num_beams=20).items
    with product(F.linear):
        rounded = rank_items(model, prompts(), catalogue(), num_beams=20).items
    assert (items != rounded).any(1).float().mean() > 0.3


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
@pytest.mark.parametrize("name", MODELS)
def test_logits_of_some_tokens_are_columns_of_all_logits(name: str, dtype: torch.dtype) -> None:
    model = low_precision(name, dtype)
    tokens = torch.tensor([3, 5, 6, 17, 399])
    with logits_at(model):
        everything = model(**prompts()).logits
    with logits_at(model, tokens=tokens):
        some = model(**prompts()).logits
    assert everything.dtype == some.dtype == torch.promote_types(dtype, torch.float32)
    torch.testing.assert_close(some, everything[..., tokens], atol=1e-5, rtol=1e-5)
    assert model(**prompts()).logits.dtype == dtype


def losses(model: Any) -> dict[str, Tensor]:
    """Returns the losses of BEAR, BLADE and Softmax-DPO. That of BEAR is computed from logits at one position per row.
    The others are computed from the logits of completions, with all completions of a prompt in one row. Softmax-DPO is
    computed twice: over the whole vocabulary, and over the legal tokens ("catalogue")."""
    trie = catalogue()
    items = torch.arange(48).view(12, 2, 2) * 4
    lists = list_tokens(trie, items)
    inputs = (prompts()["input_ids"], prompts()["attention_mask"].bool(), lists.token_ids, lists.mask)
    whole = read_completions(model, *inputs)
    some = read_completions(model, *inputs, scored=lists.branches, tokens=trie.tokens)
    legal = legal_completion_logps(some, lists.token_ids, lists.branches, trie, lists.nodes).sum(-1)
    ratios = completion_logps(whole, lists.token_ids, lists.mask).sum(-1) / 10
    advantages = torch.tensor([[1.0, -1.0]]).expand(12, 2)
    positions = torch.zeros(12, 6, dtype=torch.bool)
    positions[:, 2] = True
    with logits_at(model, positions):
        logits = model(**prompts(), use_cache=False).logits[0]
    target = prompts()["input_ids"][:, 3]
    return {
        "BEAR": bear_loss(logits, target, None, num_beams=5, weight=1.0, sharpness=2.0).loss.sum(),
        "BLADE": list_policy_loss(list_logps(some, items, trie).sum(-1), None, advantages).loss.sum(),
        "Softmax-DPO": softmax_dpo_loss(ratios[:, 0], ratios[:, 1:], None, beta=1.0).loss.sum(),
        "Softmax-DPO, catalogue": softmax_dpo_loss(legal[:, 0], legal[:, 1:], None, beta=0.1).loss.sum(),
    }


@pytest.mark.parametrize("name", MODELS)
def test_losses_and_gradients_equal_those_of_an_output_layer_in_float64(name: str) -> None:
    """`precise_linear`, which the trainers use, rounds the gradient of the logits to the dtype of the model. The
    output layer in float64 does not, so the gradients agree only up to this rounding."""
    model = low_precision(name)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    for method, loss in losses(model).items():
        with product(exact_linear):
            expected = losses(model)[method]
        torch.testing.assert_close(loss, expected.to(loss.dtype), atol=1e-4, rtol=1e-5, msg=method)
        ours = torch.autograd.grad(loss, trained, retain_graph=True, materialize_grads=True)
        theirs = torch.autograd.grad(expected, trained, materialize_grads=True)
        for one, other in zip(ours, theirs, strict=True):
            error = (one.double() - other.double()).norm()
            assert error <= 0.05 * other.double().norm() + 1e-6, method


def test_under_autocast_logits_equal_those_of_rounded_operands() -> None:
    model = low_precision("plain", torch.float32)
    seen: list[Tensor] = []
    model.lm_head.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    with torch.autocast("cpu", torch.bfloat16), logits_at(model):
        logits = model(**prompts()).logits
    operands = seen[0].bfloat16(), model.lm_head.weight.bfloat16()
    torch.testing.assert_close(logits.double(), exact_linear(*operands, None), atol=1e-5, rtol=1e-5)


def test_no_copy_of_the_output_embedding_is_made(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only the rows of one part of the output embedding are converted to float32 at a time."""
    monkeypatch.setattr(precision, "PART_ROWS", 64)
    converted: list[int] = []
    real = Tensor.float

    def counted(tensor: Tensor) -> Tensor:
        converted.append(len(tensor))
        return real(tensor)

    monkeypatch.setattr(Tensor, "float", counted)
    hidden_states, weight = torch.randn(7, 32).bfloat16(), torch.randn(200, 32).bfloat16()
    product = precision.precise_linear(hidden_states, weight, None)
    assert converted == [7, 64, 64, 64, 8]
    torch.testing.assert_close(product.double(), exact_linear(hidden_states, weight, None), atol=1e-5, rtol=1e-5)


def test_without_positions_the_gradient_of_the_output_embedding_is_zero() -> None:
    hidden_states = torch.zeros(0, 32, dtype=torch.bfloat16, requires_grad=True)
    weight = torch.randn(200, 32).bfloat16().requires_grad_()
    precision.precise_linear(hidden_states, weight, None).sum().backward()
    assert weight.grad is not None
    assert not weight.grad.any()
