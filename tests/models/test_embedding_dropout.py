"""Tests the dropout on the input embeddings of models that are made from scratch."""

from __future__ import annotations

import copy
from pathlib import Path

import pyarrow as pa
import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerBase
from trl.trainer.utils import disable_dropout_in_model

from tests.conftest import make_model as make_family
from trl_rec import ItemCatalog
from trl_rec.models import RecModelConfig, build_model, load_model, load_policy, make_model, make_tokenizer
from trl_rec.models.embedding_dropout import add_embedding_dropout


TOKEN_IDS = torch.arange(3, 15).view(2, 6)


@pytest.fixture(scope="module")
def catalog() -> ItemCatalog:
    ids = [str(item) for item in range(20)]
    return ItemCatalog(pa.table({"item_id": ids, "title": ids}), surface="item_token")


@pytest.fixture(scope="module")
def tokenizer(catalog: ItemCatalog) -> PreTrainedTokenizerBase:
    return make_tokenizer(catalog)


@pytest.fixture
def model(tokenizer: PreTrainedTokenizerBase) -> PreTrainedModel:
    """A model whose only dropout is that of the input embeddings."""
    return make_model(tokenizer, hidden_size=16, dropout=0.0, embedding_dropout=0.5)


def read(model: nn.Module, seed: int = 0) -> Tensor:
    """Returns the input `(2, 6, hidden_size)` of the first layer: the embeddings of `TOKEN_IDS`, after any dropout."""
    layers = next(part for part in model.modules() if isinstance(part, nn.ModuleList))
    seen: list[Tensor] = []
    handle = layers[0].input_layernorm.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    torch.manual_seed(seed)
    model(input_ids=TOKEN_IDS)
    handle.remove()
    return seen[0].detach()


def drops(model: nn.Module) -> bool:
    """Returns whether the first layer of the model gets different inputs in training mode than in evaluation mode."""
    whole = read(model.eval())
    dropped = read(model.train())
    return not torch.equal(whole, dropped)


def test_training_drops_half_of_the_values_and_scales_the_others(model: PreTrainedModel) -> None:
    whole = model.get_input_embeddings()(TOKEN_IDS).detach()
    dropped = read(model.train())
    kept = dropped != 0
    assert 0.35 < kept.float().mean() < 0.65
    torch.testing.assert_close(dropped[kept], 2 * whole[kept])

    torch.testing.assert_close(read(model, seed=0), dropped, rtol=0, atol=0)
    assert not torch.equal(read(model, seed=1), dropped)


def test_evaluation_drops_nothing_and_draws_no_random_number(model: PreTrainedModel) -> None:
    assert torch.equal(read(model.eval()), model.get_input_embeddings()(TOKEN_IDS))
    torch.manual_seed(0)
    expected = torch.rand(1)
    read(model, seed=0)
    assert torch.equal(torch.rand(1), expected)


def test_the_weights_have_the_same_names_and_values_as_without_dropout(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    plain = make_model(tokenizer, hidden_size=16, dropout=0.0)
    torch.testing.assert_close(dict(model.state_dict()), dict(plain.state_dict()), rtol=0, atol=0)
    assert not drops(plain)

    model.save_pretrained(tmp_path)
    _, report = AutoModelForCausalLM.from_pretrained(tmp_path, output_loading_info=True)
    assert not report["missing_keys"] and not report["unexpected_keys"]


def test_the_dropout_is_loaded_with_the_model(model: PreTrainedModel, tmp_path: Path) -> None:
    model.save_pretrained(tmp_path)
    assert drops(load_model(tmp_path))
    assert drops(load_policy(tmp_path))
    assert not drops(AutoModelForCausalLM.from_pretrained(tmp_path))

    again = load_model(tmp_path).train()
    expected = read(model.train())
    for _ in range(2):
        torch.testing.assert_close(read(again), expected, rtol=0, atol=0)
        add_embedding_dropout(again)  # the model already has the dropout, so this changes nothing


@pytest.mark.parametrize("tokens", [None, [4, 5, 6]])
def test_the_dropout_works_below_an_adapter(model: PreTrainedModel, tmp_path: Path, tokens: list[int] | None) -> None:
    """With `trainable_token_indices`, PEFT bypasses the embedding module, so a hook of that module would not run."""
    model.save_pretrained(tmp_path / "base")
    config = LoraConfig(r=2, task_type="CAUSAL_LM", target_modules="all-linear", trainable_token_indices=tokens)
    adapted = get_peft_model(load_model(tmp_path / "base"), config)
    assert drops(adapted)
    adapted.save_pretrained(tmp_path / "adapter")
    assert drops(load_policy(tmp_path / "adapter"))


def test_activation_checkpointing_gives_the_same_gradients(model: PreTrainedModel) -> None:
    def gradients(one: PreTrainedModel) -> list[Tensor]:
        torch.manual_seed(0)
        one(input_ids=TOKEN_IDS, labels=TOKEN_IDS).loss.backward()
        return [weight.grad for weight in one.parameters()]

    other = copy.deepcopy(model).train()
    name = "activation_checkpointing_enable"  # the name since transformers 5.23
    enable = getattr(other, name) if hasattr(other, name) else other.gradient_checkpointing_enable
    enable()
    torch.testing.assert_close(gradients(other), gradients(model.train()))


def test_trl_turns_off_the_dropout_of_embeddings_too(model: PreTrainedModel) -> None:
    disable_dropout_in_model(model)
    assert not drops(model)


def test_build_model_adds_the_dropout_and_other_architectures_do_not_change(
    catalog: ItemCatalog, tokenizer: PreTrainedTokenizerBase
) -> None:
    config = RecModelConfig(hidden_size=16, dropout=0.0, embedding_dropout=0.25)
    model, _, _ = build_model(catalog, config)
    assert model.config.embd_pdrop == 0.25
    assert drops(model)

    llama = make_family("llama", vocab_size=len(tokenizer))
    add_embedding_dropout(llama)
    assert not drops(llama)


@pytest.mark.parametrize("value", [-0.1, 1.0, float("nan")])
def test_a_value_out_of_range_is_refused(value: float, tokenizer: PreTrainedTokenizerBase) -> None:
    with pytest.raises(ValueError, match="embedding_dropout must be from 0 to below 1"):
        make_model(tokenizer, embedding_dropout=value)
