"""Tests BLADE with adapters that also train the embeddings of new tokens: which policy is the reference, and which
model draws the reference lists (the lists that are sampled for each prompt before training)."""

from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import torch
from datasets import Dataset
from peft import PeftModel
from transformers import BitsAndBytesConfig

from tests.conftest import make_model as make_family
from tests.conftest import make_tokenizer as make_bpe
from tests.data.test_rows import make_split
from tests.trainer.blade.blade_runs import DEFAULTS, drawn, first_batch, logged
from tests.trainer.softmax_dpo.test_softmax_dpo_adapters import adapted, state
from trl_rec import ItemCatalog, Recommender
from trl_rec.models import add_item_tokens, load_model, load_policy, load_tokenizer, lora_config
from trl_rec.trainer import BladeConfig, BladeTrainer


NUM_ITEMS = 12
TIES = ["tied", "untied"]
Base = tuple[Path, list[int]]


@pytest.fixture(scope="module")
def catalog() -> ItemCatalog:
    ids = [str(item) for item in range(NUM_ITEMS)]
    return ItemCatalog(pa.table({"item_id": ids, "title": [f"Thing {item}" for item in ids]}), surface="item_token")


@pytest.fixture(scope="module")
def bases(catalog: ItemCatalog, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Base]:
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


def make(model: Any, base: Base, catalog: ItemCatalog, output: Path, **options: Any) -> BladeTrainer:
    passed = {
        name: options.pop(name) for name in ("ref_model", "peft_config", "quantization_config") if name in options
    }
    settings = {**DEFAULTS, "list_length": 2, "eval_ks": [2], "per_device_train_batch_size": 8, "max_length": 64}
    settings |= {"optim": "adamw_torch", "learning_rate": 0.02, "max_steps": 3, **options}
    rows = [([row, (row + 1) % NUM_ITEMS], [(row + 2) % NUM_ITEMS, (row + 5) % NUM_ITEMS]) for row in range(8)]
    return BladeTrainer(
        model,
        args=BladeConfig(str(output), **settings),
        train_dataset=make_split(rows),
        processing_class=load_tokenizer(base[0]),
        catalog=catalog,
        **passed,
    )


def assert_trains(trainer: BladeTrainer) -> None:
    """Asserts that training changes all trainable tensors and no others, and that policy and reference are equal at
    the first step."""
    trained = {name for name, parameter in trainer.model.named_parameters() if parameter.requires_grad}
    before = {name: parameter.detach().clone() for name, parameter in trainer.model.named_parameters()}
    trainer.train()
    kl = logged(trainer, "kl")
    assert kl[0] == pytest.approx(0, abs=1e-4) and abs(kl[-1]) > 1e-3 and logged(trainer, "blade/ratio") == [1.0] * 3
    for name, parameter in trainer.model.named_parameters():
        assert torch.equal(parameter, before[name]) != (name in trained), name
        assert parameter.requires_grad == (name in trained), name
    assert trained and not any(".ref" in name for name in trained)


def assert_recommends(trainer: BladeTrainer, folder: Path) -> None:
    split = Dataset.from_dict({"history": [[item] for item in range(8)], "targets": [[0]] * 8})
    ranked, recommender = trainer.rank(split).items, Recommender.from_pretrained(folder)
    for row in range(8):
        assert [int(one.item_id) for one in recommender.recommend([str(row)], k=2)] == ranked[row].tolist()


@pytest.mark.parametrize("tie", ["tied", pytest.param("untied", marks=pytest.mark.slow)])
def test_the_reference_of_a_new_adapter_is_its_base(
    bases: Any, catalog: ItemCatalog, tie: str, tmp_path: Path
) -> None:
    base = bases[tie]
    model = load_model(base[0])
    trainer = make(model, base, catalog, tmp_path / "run", peft_config=lora_config(model, base[1], r=4))
    trained = {name for name, parameter in trainer.model.named_parameters() if parameter.requires_grad}
    assert sum("trainable_tokens_delta" in name for name in trained) == (1 if tie == "tied" else 2)
    assert_trains(trainer)
    trainer.save_model()
    assert_recommends(trainer, tmp_path / "run")
    merged = trainer.model.merge_and_unload()
    merged.save_pretrained(tmp_path / "merged"), trainer.processing_class.save_pretrained(tmp_path / "merged")
    for name in ("catalog", "recommender.json"):
        (tmp_path / "run" / name).rename(tmp_path / "merged" / name)
    trainer.model = trainer.model_wrapped = merged
    assert_recommends(trainer, tmp_path / "merged")


@pytest.mark.parametrize("tie", ["tied", pytest.param("untied", marks=pytest.mark.slow)])
def test_the_reference_of_an_existing_adapter_is_its_initial_state(
    bases: Any, catalog: ItemCatalog, tie: str, tmp_path: Path
) -> None:
    trainer = make(adapted(bases[tie]), bases[tie], catalog, tmp_path, num_generations=16, num_references=16)
    began, reference = state(trainer.model, "default"), state(trainer.model, "ref")
    assert began.keys() == reference.keys() and all(torch.equal(began[name], reference[name]) for name in began)
    inputs = first_batch(trainer)
    rollouts = drawn(trainer, inputs)
    assert torch.equal(rollouts.ref_logps, rollouts.old_logps)
    lists = trainer.train_dataset["references"]
    assert_trains(trainer)
    assert all(torch.equal(tensor, reference[name]) for name, tensor in state(trainer.model, "ref").items())
    with trainer.computing_reference(trainer.model):
        ref_logps = trainer._logps(trainer.model, inputs, rollouts.items)
    assert torch.allclose(ref_logps, rollouts.ref_logps, atol=1e-5)
    assert not torch.allclose(trainer._logps(trainer.model, inputs, rollouts.items), rollouts.ref_logps, atol=1e-2)
    trainer.train_dataset = trainer.train_dataset.remove_columns("references")
    trainer.draw_references()
    assert trainer.train_dataset["references"] == lists  # drawn by the reference, which training has not changed
    trainer.save_model()
    assert_recommends(trainer, tmp_path)
    next_stage = make(load_policy(tmp_path), bases[tie], catalog, tmp_path / "next")
    assert state(next_stage.model, "ref").keys() == reference.keys()
    assert_trains(next_stage)


def test_the_base_draws_the_reference_lists_of_a_new_adapter(bases: Any, catalog: ItemCatalog, tmp_path: Path) -> None:
    base = bases["untied"]
    plain = make(load_model(base[0]), base, catalog, tmp_path / "plain")
    model = load_model(base[0])
    trainer = make(model, base, catalog, tmp_path / "run", peft_config=lora_config(model, base[1], r=4))
    with torch.no_grad():
        for parameter in trainer.model.parameters():
            if parameter.requires_grad:
                parameter += 0.5
    plain.draw_references(), trainer.draw_references()
    assert trainer.train_dataset["references"] == plain.train_dataset["references"]


def test_a_given_reference_model_is_not_replaced_by_an_adapter(
    bases: Any, catalog: ItemCatalog, tmp_path: Path
) -> None:
    model = adapted(bases["tied"])
    trainer = make(model, bases["tied"], catalog, tmp_path, ref_model=adapted(bases["tied"]))
    assert "ref" not in trainer.model.peft_config
    assert_trains(trainer)


@pytest.mark.slow
def test_checkpointing_changes_nothing(bases: Any, catalog: ItemCatalog, tmp_path: Path) -> None:
    plain, other = (
        make(adapted(bases["tied"]), bases["tied"], catalog, tmp_path, optim="sgd", activation_checkpointing=on)
        for on in (False, True)
    )
    plain.train(), other.train()
    for name in ("reward", "kl", "blade/quantile"):
        assert logged(other, name) == pytest.approx(logged(plain, name), abs=1e-5)
    ours, theirs = state(other.model, "default"), state(plain.model, "default")
    assert all(torch.allclose(ours[name], theirs[name], atol=1e-5) for name in theirs)


@pytest.mark.slow
def test_a_resumed_run_ends_with_the_same_weights(bases: Any, catalog: ItemCatalog, tmp_path: Path) -> None:
    """A checkpoint contains the adapters of policy and reference. A resumed run reuses the reference lists."""
    options = {"max_steps": 4, "per_device_train_batch_size": 2}
    whole = make(adapted(bases["untied"]), bases["untied"], catalog, tmp_path / "whole", **options)
    whole.train()
    options |= {"save_strategy": "steps", "save_steps": 2}
    make(adapted(bases["untied"]), bases["untied"], catalog, tmp_path / "cut", **options).train()
    (tmp_path / "cut" / "checkpoint-4" / "complete").unlink()
    resumed = make(adapted(bases["untied"]), bases["untied"], catalog, tmp_path / "cut", **options)
    resumed.train(resume_from_checkpoint=True)
    assert len(list((tmp_path / "cut").glob("references-*"))) == 1
    for name in ("reward", "kl", "grad_norm"):
        assert logged(resumed, name) == logged(whole, name)
    for adapter in ("default", "ref"):
        ours, theirs = state(resumed.model, adapter), state(whole.model, adapter)
        assert ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in theirs)


@pytest.mark.parametrize("kind", ["new adapter", "ref adapter"])
def test_nf4_bases_train_adapters_and_new_tokens(bases: Any, catalog: ItemCatalog, kind: str, tmp_path: Path) -> None:
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
            str(folder), bases["untied"], catalog, tmp_path, peft_config=config, quantization_config=quantized
        )
    else:
        model: PeftModel = adapted(bases["untied"], load_model(folder, quantization_config=quantized))
        trainer = make(model, bases["untied"], catalog, tmp_path)
    assert_trains(trainer)
