"""Tests LoRA adapters of ALRO, on base models in full precision and in nf4. If prompts need new tokens, the embeddings
of these tokens are trained as well."""

from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import BitsAndBytesConfig

from tests.conftest import make_model as make_family
from tests.conftest import make_tokenizer as make_bpe
from tests.trainer.alro.alro_runs import DEFAULTS
from trl_rec import AlroConfig, AlroTrainer, CandidateRanker, RecDataset, prepare
from trl_rec.models import RecModelConfig
from trl_rec.trainer import build_ranker


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> RecDataset:
    path = tmp_path_factory.mktemp("rated")
    return prepare("toy", path, toy_users=16, toy_items=60, split="leave_last", num_held_out=4)


@pytest.fixture(params=["tied", "untied"])
def base(request: pytest.FixtureRequest, dataset: RecDataset, tmp_path: Path) -> Path:
    """The folder of a pretrained model."""
    tokenizer = make_bpe(dataset.catalog.titles, vocab_size=300)
    model = make_family("llama", vocab_size=len(tokenizer))
    model.config.tie_word_embeddings = request.param == "tied"
    model.tie_weights()
    model.save_pretrained(tmp_path / "base"), tokenizer.save_pretrained(tmp_path / "base")
    return tmp_path / "base"


def make(base: Path, dataset: RecDataset, output: Path, **options) -> AlroTrainer:
    """Trains and saves an adapter as `trl-rec alro` does."""
    config = RecModelConfig(str(base), use_peft=True, lora_r=4, lora_target_modules="all-linear", **options)
    model, tokenizer, adapter = build_ranker(dataset.catalog, [1, 2, 3, 4, 5], config)
    settings = {**DEFAULTS, "learning_rate": 0.05, "max_length": 512, "max_history": 4, "optim": "adamw_torch"}
    trainer = AlroTrainer(
        model,
        AlroConfig(str(output), **settings),
        train_dataset=dataset.train,
        processing_class=tokenizer,
        catalog=dataset.catalog,
        peft_config=adapter,
    )
    before = {name: parameter.detach().clone() for name, parameter in trainer.model.named_parameters()}
    trainer.train()
    for name, parameter in trainer.model.named_parameters():
        assert torch.equal(parameter, before[name]) != parameter.requires_grad, name
    trainer.save_model()
    return trainer


def assert_ranks(trainer: AlroTrainer, folder: Path, dataset: RecDataset) -> None:
    """Asserts that the saved model orders candidates as the trainer does."""
    ranker, ids = CandidateRanker.from_pretrained(folder), dataset.catalog.ids
    rows, ranked = trainer.rows_of(dataset.test), trainer.rank(dataset.test)
    for number, row in enumerate(rows.select(range(4)).to_list()):
        count = len(row["candidates"])
        shown = [ids[row["candidates"][one]] for one in ranked.slots[number, 0, :count].argsort()]
        listed = ranker.rank([ids[item] for item in row["history"]], row["history_ratings"], shown)
        expected = [ids[row["candidates"][one]] for one in ranked.places[number, 0, :count].argsort()]
        assert [one.item_id for one in listed] == expected


@pytest.mark.parametrize("surface", ["title", "item_token"])
def test_lora_trains_new_tokens_and_is_loaded_again(
    base: Path, dataset: RecDataset, surface: str, tmp_path: Path
) -> None:
    dataset = dataset.with_surface(surface)
    trainer = make(base, dataset, tmp_path / "run")
    trained = {name for name, parameter in trainer.model.named_parameters() if parameter.requires_grad}
    untied = not trainer.model.config.tie_word_embeddings
    assert sum("trainable_tokens_delta" in name for name in trained) == (1 + untied if surface == "item_token" else 0)
    assert_ranks(trainer, tmp_path / "run", dataset)
    merged = trainer.model.merge_and_unload()
    merged.save_pretrained(tmp_path / "merged"), trainer.processing_class.save_pretrained(tmp_path / "merged")
    for name in ("catalog", "ranker.json"):
        (tmp_path / "run" / name).rename(tmp_path / "merged" / name)
    trainer.model = trainer.model_wrapped = merged
    assert_ranks(trainer, tmp_path / "merged", dataset)


@pytest.mark.parametrize("surface", ["title", "item_token"])
def test_nf4_bases_train_adapters_and_new_tokens(
    base: Path, dataset: RecDataset, surface: str, tmp_path: Path
) -> None:
    quantized = {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "use_bnb_nested_quant": True, "dtype": "bfloat16"}
    trainer = make(base, dataset.with_surface(surface), tmp_path / "run", **quantized)
    assert any(type(module).__name__ == "Linear4bit" for module in trainer.model.modules())
    assert isinstance(trainer.model.config.quantization_config, BitsAndBytesConfig)
    assert np.isfinite([entry["loss"] for entry in trainer.state.log_history if "loss" in entry]).all()


def test_the_seed_determines_the_new_embeddings(base: Path, dataset: RecDataset) -> None:
    """The seed determines the embeddings of all new tokens: the tokens of items, and other tokens that prompts need,
    such as those for ratings. The embeddings of the base model do not depend on the seed."""
    config, catalog = RecModelConfig(str(base)), dataset.with_surface("item_token").catalog
    models = []
    for seed in (0, 0, 1):
        torch.rand(1)  # earlier draws must not matter
        models.append(build_ranker(catalog, [1, 2, 3, 4, 5], config, seed=seed)[0].get_input_embeddings().weight)
    assert torch.equal(models[0], models[1])
    new = slice(300, None)
    assert (models[0][new] != models[2][new]).any(1).all() and torch.equal(models[0][:300], models[2][:300])
