"""Tests Softmax-DPO with adapters that also train the embeddings of new tokens. The reference of a new adapter is its
base model. The reference of an existing adapter is its initial state."""

from copy import deepcopy
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import torch
from datasets import Dataset
from peft import PeftModel, get_peft_model
from torch import Tensor
from transformers import BitsAndBytesConfig

from tests.conftest import make_model as make_family
from tests.conftest import make_tokenizer as make_bpe
from tests.trainer.runs import losses
from tests.trainer.softmax_dpo.preference_runs import DEFAULTS, first_loss, loss_of_equals
from trl_rec import ItemCatalog, Recommender
from trl_rec.models import add_item_tokens, load_model, load_tokenizer, lora_config
from trl_rec.trainer import SoftmaxDPOConfig, SoftmaxDPOTrainer


NUM_ITEMS = 12
TIES = ["tied", "untied"]


@pytest.fixture(scope="module")
def catalog() -> ItemCatalog:
    ids = [str(item) for item in range(NUM_ITEMS)]
    return ItemCatalog(pa.table({"item_id": ids, "title": [f"Thing {item}" for item in ids]}), surface="item_token")


@pytest.fixture(scope="module")
def table() -> Dataset:
    rows = [
        ([row, (row + 1) % NUM_ITEMS], (row + 2) % NUM_ITEMS, [(row + 3 + k) % NUM_ITEMS for k in range(1 + row % 3)])
        for row in range(8)
    ]
    return Dataset.from_list(
        [{"history": history, "chosen": chosen, "rejected": rejected} for history, chosen, rejected in rows]
    )


@pytest.fixture(scope="module")
def bases(catalog: ItemCatalog, tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, list[int]]]:
    """The folders of saved models whose vocabulary was extended by the item tokens, and the ids of these tokens."""
    found = {}
    for kind in TIES:
        folder, tokenizer = tmp_path_factory.mktemp(kind), make_bpe(["a b"], vocab_size=280)
        model = make_family("llama", vocab_size=len(tokenizer))
        model.config.tie_word_embeddings = kind == "tied"
        model.tie_weights()
        found[kind] = folder, add_item_tokens(model, tokenizer, catalog)
        model.save_pretrained(folder), tokenizer.save_pretrained(folder)
    return found


def adapted(base: tuple[Path, list[int]], model: Any = None) -> PeftModel:
    """Returns the base with an adapter that looks trained: no tensor of the adapter has its initial value."""
    folder, new = base
    model = load_model(folder) if model is None else model
    torch.manual_seed(0)
    model = get_peft_model(model, lora_config(model, new, r=4))
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter += 0.2 * torch.randn(parameter.shape, generator=generator)
    return model


def make(
    model: Any, base: tuple[Path, list[int]], catalog: ItemCatalog, table: Dataset, output: Path, **options: Any
) -> SoftmaxDPOTrainer:
    passed = {
        name: options.pop(name) for name in ("ref_model", "peft_config", "quantization_config") if name in options
    }
    settings = {**DEFAULTS, "per_device_train_batch_size": 8, "max_length": 64, "eval_ks": [5], "learning_rate": 0.02}
    settings |= {"optim": "adamw_torch", "max_steps": 3, **options}
    config = SoftmaxDPOConfig(str(output), **settings)
    return SoftmaxDPOTrainer(
        model, args=config, train_dataset=table, processing_class=load_tokenizer(base[0]), catalog=catalog, **passed
    )


def state(model: torch.nn.Module, adapter: str) -> dict[str, Tensor]:
    """Returns the tensors of one adapter, under names that do not contain the adapter's name."""
    found = {}
    for name, parameter in model.named_parameters():
        if f".{adapter}." in f"{name}.":
            found[f"{name}.".replace(f".{adapter}.", ".")] = parameter.detach().clone()
    return found


def assert_trains(trainer: SoftmaxDPOTrainer) -> None:
    """Trains, and asserts that the loss falls, and that all trainable tensors and no others change."""
    trained = {name for name, parameter in trainer.model.named_parameters() if parameter.requires_grad}
    before = {name: parameter.detach().clone() for name, parameter in trainer.model.named_parameters()}
    trainer.train()
    assert losses(trainer)[-1] < losses(trainer)[0]
    for name, parameter in trainer.model.named_parameters():
        assert torch.equal(parameter, before[name]) != (name in trained), name
        assert parameter.requires_grad == (name in trained), name
    assert trained and not any(".ref" in name for name in trained)


def assert_recommends(trainer: SoftmaxDPOTrainer, folder: Path) -> None:
    split = Dataset.from_dict({"history": [[item] for item in range(8)], "targets": [[0]] * 8})
    ranked, recommender = trainer.rank(split).items, Recommender.from_pretrained(folder)
    for row in range(8):
        assert [int(one.item_id) for one in recommender.recommend([str(row)], k=5)] == ranked[row].tolist()


@pytest.mark.parametrize("tie", TIES)
def test_the_reference_of_a_new_adapter_is_its_base(
    bases: Any, catalog: ItemCatalog, table: Dataset, tie: str, tmp_path: Path
) -> None:
    base = bases[tie]
    model = load_model(base[0])
    trainer = make(model, base, catalog, table, tmp_path / "run", peft_config=lora_config(model, base[1], r=4))
    trained = {name for name, parameter in trainer.model.named_parameters() if parameter.requires_grad}
    assert sum("trainable_tokens_delta" in name for name in trained) == (1 if tie == "tied" else 2)
    assert first_loss(trainer) == pytest.approx(loss_of_equals(trainer), abs=1e-5)
    assert_trains(trainer)
    trainer.save_model()
    assert_recommends(trainer, tmp_path / "run")
    merged = trainer.model.merge_and_unload()
    merged.save_pretrained(tmp_path / "merged"), trainer.processing_class.save_pretrained(tmp_path / "merged")
    for name in ("catalog", "recommender.json"):
        (tmp_path / "run" / name).rename(tmp_path / "merged" / name)
    trainer.model = trainer.model_wrapped = merged
    assert_recommends(trainer, tmp_path / "merged")


@pytest.mark.parametrize("tie", TIES)
def test_the_reference_of_an_existing_adapter_is_its_initial_state(
    bases: Any, catalog: ItemCatalog, table: Dataset, tie: str, tmp_path: Path
) -> None:
    model = adapted(bases[tie])
    trainer = make(model, bases[tie], catalog, table, tmp_path)
    began, reference = state(trainer.model, "default"), state(trainer.model, "ref")
    assert began.keys() == reference.keys() and all(torch.equal(began[name], reference[name]) for name in began)
    assert first_loss(trainer) == pytest.approx(loss_of_equals(trainer), abs=1e-5)
    batch = next(iter(trainer.get_train_dataloader()))
    at_first = trainer._logps(trainer.model, batch)
    assert_trains(trainer)
    assert torch.allclose(trainer.compute_ref_log_probs(trainer.model, batch), at_first, atol=1e-5)
    assert not torch.allclose(trainer._logps(trainer.model, batch), at_first, atol=1e-2)
    assert all(torch.equal(tensor, reference[name]) for name, tensor in state(trainer.model, "ref").items())
    trainer.save_model()
    assert_recommends(trainer, tmp_path)
    next_stage = make(load_model(tmp_path, is_trainable=True), bases[tie], catalog, table, tmp_path / "next")
    assert first_loss(next_stage) == pytest.approx(loss_of_equals(next_stage), abs=1e-5)
    assert_trains(next_stage)


@pytest.mark.parametrize("tie", TIES)
def test_trls_own_copy_of_an_adapter_is_incomplete(
    bases: Any, catalog: ItemCatalog, table: Dataset, tie: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If this test fails, TRL has fixed huggingface/trl#6975, and `complete_ref_adapter` can be removed."""
    monkeypatch.setattr("trl_rec.trainer.softmax_dpo.trainer.complete_ref_adapter", lambda model: None)
    trainer = make(adapted(bases[tie]), bases[tie], catalog, table, tmp_path)
    assert abs(first_loss(trainer) - loss_of_equals(trainer)) > 0.003


def test_a_precomputed_reference_is_the_adapter_before_training(
    bases: Any, catalog: ItemCatalog, table: Dataset, tmp_path: Path
) -> None:
    """An evaluation after training must not use the trained adapter as the reference."""
    at_once = make(adapted(bases["tied"]), bases["tied"], catalog, table, tmp_path)
    before = make(adapted(bases["tied"]), bases["tied"], catalog, table, tmp_path, precompute_ref_log_probs=True)
    reference = state(before.model, "ref")
    at_once.train(), before.train()
    assert losses(before) == pytest.approx(losses(at_once), abs=1e-5)
    other = table.select(range(3, 8))
    assert before.evaluate(other)["eval_loss"] == pytest.approx(at_once.evaluate(other)["eval_loss"], abs=1e-5)
    assert all(torch.equal(tensor, reference[name]) for name, tensor in state(before.model, "ref").items())


def test_a_reference_with_an_adapter_of_its_own_keeps_it(
    bases: Any, catalog: ItemCatalog, table: Dataset, tmp_path: Path
) -> None:
    model = adapted(bases["tied"])
    trainer = make(model, bases["tied"], catalog, table, tmp_path, ref_model=deepcopy(model))
    assert "ref" not in trainer.model.peft_config
    assert first_loss(trainer) == pytest.approx(loss_of_equals(trainer), abs=1e-5)


def test_checkpointing_changes_nothing(bases: Any, catalog: ItemCatalog, table: Dataset, tmp_path: Path) -> None:
    plain, other = (
        make(adapted(bases["tied"]), bases["tied"], catalog, table, tmp_path, optim="sgd", activation_checkpointing=on)
        for on in (False, True)
    )
    plain.train(), other.train()
    assert losses(other) == pytest.approx(losses(plain), abs=1e-5)
    ours, theirs = state(other.model, "default"), state(plain.model, "default")
    assert all(torch.allclose(ours[name], theirs[name], atol=1e-5) for name in theirs)


def test_a_resumed_run_ends_with_the_same_weights(
    bases: Any, catalog: ItemCatalog, table: Dataset, tmp_path: Path
) -> None:
    """A checkpoint contains the adapters of the policy and of its reference. The resumed run starts with the initial
    policy, and loads both adapters from the checkpoint."""
    options = {"max_steps": 4, "per_device_train_batch_size": 4}
    whole = make(adapted(bases["untied"]), bases["untied"], catalog, table, tmp_path / "whole", **options)
    whole.train()
    options |= {"save_strategy": "steps", "save_steps": 2}
    make(adapted(bases["untied"]), bases["untied"], catalog, table, tmp_path / "cut", **options).train()
    (tmp_path / "cut" / "checkpoint-4" / "complete").unlink()
    resumed = make(adapted(bases["untied"]), bases["untied"], catalog, table, tmp_path / "cut", **options)
    resumed.train(resume_from_checkpoint=True)
    assert losses(resumed) == losses(whole)
    for adapter in ("default", "ref"):
        ours, theirs = state(resumed.model, adapter), state(whole.model, adapter)
        assert ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in theirs)


@pytest.mark.parametrize("kind", ["new adapter", "ref adapter"])
def test_nf4_bases_train_adapters_and_new_tokens(
    bases: Any, catalog: ItemCatalog, table: Dataset, kind: str, tmp_path: Path
) -> None:
    folder, new = bases["untied"]
    quantized = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.bfloat16,
    )
    if kind == "new adapter":
        config = lora_config(load_model(folder), new, r=4)
        trainer = make(
            str(folder), bases["untied"], catalog, table, tmp_path, peft_config=config, quantization_config=quantized
        )
    else:
        model = adapted(bases["untied"], load_model(folder, quantization_config=quantized))
        trainer = make(model, bases["untied"], catalog, table, tmp_path)
    assert first_loss(trainer) == pytest.approx(loss_of_equals(trainer), abs=1e-3)
    assert_trains(trainer)
