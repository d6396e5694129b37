"""Tests that the load-balancing loss of a mixture of experts is computed only on request, and counts each token
once."""

from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor
from transformers import PreTrainedModel

from tests.conftest import make_model
from tests.oracles.experts import balancing_loss
from trl_rec.decoding import rank_items
from trl_rec.items import TokenTrie
from trl_rec.models import attention, completion_logps, read_completions
from trl_rec.models import completions as reading
from trl_rec.ragged import Ragged


PROMPTS = [[5, 6, 7, 8], [9, 10]]
COMPLETIONS = [[[11, 12], [13], [14, 15, 16]], [[17, 18, 19]]]


@pytest.fixture(params=["sdpa", "eager"])
def model(request: pytest.FixtureRequest) -> PreTrainedModel:
    return make_model("qwen3_moe", attention=request.param)


@pytest.fixture
def texts() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The two prompts and their completions, padded, with their masks."""
    prompts = torch.from_numpy(Ragged.from_lists(PROMPTS).padded(fill=-1, left=True))
    completions = torch.full((2, 3, 3), -1)
    for row, of_row in enumerate(COMPLETIONS):
        for number, completion in enumerate(of_row):
            completions[row, number, : len(completion)] = torch.tensor(completion)
    return prompts.clamp(min=0), prompts >= 0, completions.clamp(min=0), completions >= 0


def read(model: PreTrainedModel, texts: tuple[Tensor, ...], **options: Any) -> Any:
    return read_completions(model, *texts, **options)


def apart(monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes `read_completions` put every completion into a separate row."""
    attention.warn_once.cache_clear()
    monkeypatch.setattr(reading, "why_separate", lambda *given: "the test wants it")


def one_by_one(model: PreTrainedModel) -> Tensor:
    """Returns the load-balancing loss over the tokens of all prompts and completions. The model reads each completion
    after its prompt, in a forward pass of its own and without padding. The tokens of a prompt are counted once."""
    layers: list[list[Tensor]] = [[] for _ in model.model.layers]
    for prompt, of_prompt in zip(PROMPTS, COMPLETIONS, strict=True):
        for number, completion in enumerate(of_prompt):
            row = torch.tensor([[*prompt, *completion]])
            found = model.model(row, output_router_logits=True).router_logits
            for layer, logits in zip(layers, found, strict=True):
                layer.extend(logits[len(prompt) if number else 0 :])
    return balancing_loss(layers, model.config.num_experts_per_tok)


@pytest.mark.parametrize("shared", [True, False])
def test_each_token_counts_once(
    model: PreTrainedModel, texts: tuple[Tensor, ...], shared: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The value and the gradient equal those of `one_by_one`, whether all completions of a prompt share a row or each
    completion has a separate row."""
    if not shared:
        apart(monkeypatch)
    expected = one_by_one(model)
    loss = read(model, texts, balanced=True).aux_loss
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)

    parameters = [parameter for parameter in model.model.parameters() if parameter.requires_grad]
    ours = torch.autograd.grad(loss, parameters, allow_unused=True)
    theirs = torch.autograd.grad(expected, parameters, allow_unused=True)
    for mine, other in zip(ours, theirs, strict=True):
        assert (mine is None) == (other is None)
        assert mine is None or torch.allclose(mine, other, atol=1e-5)
    assert any(gradient is not None and gradient.any() for gradient in ours)


def test_the_loss_changes_no_logits(model: PreTrainedModel, texts: tuple[Tensor, ...]) -> None:
    plain = read(model, texts)
    balanced = read(model, texts, balanced=True)
    assert plain.aux_loss is None
    assert torch.equal(plain.logits, balanced.logits)


def test_the_loss_is_the_same_with_an_adapter(model: PreTrainedModel, texts: tuple[Tensor, ...]) -> None:
    expected = read(model, texts, balanced=True).aux_loss
    adapted = get_peft_model(model, LoraConfig(r=2, target_modules=["q_proj"]))
    loss = read(adapted, texts, balanced=True).aux_loss
    assert loss.item() == pytest.approx(expected.item(), rel=1e-6)
    loss.backward()
    assert any(parameter.grad is not None for parameter in adapted.parameters())


@pytest.mark.parametrize("shared", [True, False])
def test_output_router_logits_of_the_configuration_has_no_effect(
    model: PreTrainedModel, texts: tuple[Tensor, ...], shared: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If `output_router_logits` of the model's configuration had an effect, transformers would apply a mask of the
    wrong shape to the router logits."""
    if not shared:
        apart(monkeypatch)
    trie = TokenTrie.from_sequences([[3, 4], [3, 5], [6, 7]])
    found = []
    for asked in (False, True):
        model.config.output_router_logits = asked
        logps = completion_logps(read(model, texts), texts[2], texts[3])
        prompts = {"input_ids": texts[0], "attention_mask": texts[1].long()}
        found.append((logps, rank_items(model, prompts, trie, num_beams=3, top_k=3)))
    assert torch.equal(found[0][0], found[1][0])
    assert torch.equal(found[0][1].items, found[1][1].items)


def test_a_model_without_a_load_balancing_loss_is_refused(model: PreTrainedModel, texts: tuple[Tensor, ...]) -> None:
    forward = model.forward
    model.forward = lambda *given, **options: forward(*given, **{**options, "output_router_logits": False})
    with pytest.raises(ValueError, match="Qwen3MoeForCausalLM does not return a .* loss; set router_aux_loss_coef"):
        read(model, texts, balanced=True)
