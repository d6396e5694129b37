"""Tests adapters that also train the embeddings of new tokens, on base models in full precision and in nf4."""

from pathlib import Path

import pyarrow as pa
import pytest
import torch
from datasets import Dataset
from transformers import BitsAndBytesConfig, PreTrainedModel, PreTrainedTokenizerBase

from tests.conftest import make_model as make_family
from tests.conftest import make_tokenizer as make_bpe
from tests.trainer.runs import QUIET
from trl_rec import BearConfig, BearTrainer, ItemCatalog, Recommender
from trl_rec.models import add_item_tokens, load_model, load_tokenizer, lora_config
from trl_rec.serving.exports import export_merged


NUM_ITEMS = 12


@pytest.fixture(scope="module")
def catalog() -> ItemCatalog:
    ids = [str(item) for item in range(NUM_ITEMS)]
    return ItemCatalog(pa.table({"item_id": ids, "title": [f"Thing {item}" for item in ids]}), surface="item_token")


@pytest.fixture(scope="module")
def split() -> Dataset:
    sequences = [[(user + step) % NUM_ITEMS for step in range(5)] for user in range(8)]
    columns = {"user": pa.array(range(8), pa.int32()), "history": [row[:1] for row in sequences]}
    return Dataset(pa.table({**columns, "targets": [row[1:] for row in sequences]}), split="train")


@pytest.fixture(params=["tied", "untied"])
def base(request: pytest.FixtureRequest, catalog: ItemCatalog, tmp_path: Path) -> tuple[Path, list[int]]:
    """The folder of a base model with random weights, whose vocabulary was extended by the item tokens, and the ids of
    these tokens."""
    tokenizer = make_bpe(["a b"], vocab_size=280)
    model = make_family("llama", vocab_size=len(tokenizer))
    model.config.tie_word_embeddings = request.param == "tied"
    model.tie_weights()
    new = add_item_tokens(model, tokenizer, catalog)
    assert len(new) == NUM_ITEMS and model.get_input_embeddings().weight.shape[0] == len(tokenizer)
    model.save_pretrained(tmp_path / "base"), tokenizer.save_pretrained(tmp_path / "base")
    return tmp_path / "base", new


def train(
    model: PreTrainedModel | str, tokenizer: PreTrainedTokenizerBase, catalog, split, output: Path, **options
) -> BearTrainer:
    arguments = {
        "max_steps": 3,
        "learning_rate": 0.05,
        "max_length": 64,
        "save_strategy": "no",
        "per_device_train_batch_size": 8,
    }
    config = BearConfig(str(output), eval_ks=[5], **arguments, **QUIET)
    trainer = BearTrainer(model, config, train_dataset=split, processing_class=tokenizer, catalog=catalog, **options)
    before = {name: parameter.detach().clone() for name, parameter in trainer.model.named_parameters()}
    trainer.train()
    for name, parameter in trainer.model.named_parameters():
        assert torch.equal(parameter, before[name]) != parameter.requires_grad, name
    trainer.save_model()
    return trainer


def assert_recommends(trainer: BearTrainer, folder: Path, split: Dataset) -> None:
    ranked, recommender = trainer.rank(split).items, Recommender.from_pretrained(folder)
    for row, history in enumerate(split["history"]):
        listed = recommender.recommend([str(item) for item in history], k=5)
        assert [int(one.item_id) for one in listed] == ranked[row].tolist()


def test_lora_trains_new_tokens_and_is_loaded_again(
    base, catalog: ItemCatalog, split: Dataset, tmp_path: Path
) -> None:
    folder, new = base
    model, tokenizer = load_model(folder), load_tokenizer(folder)
    trainer = train(model, tokenizer, catalog, split, tmp_path / "run", peft_config=lora_config(model, new, r=4))
    trained = {name for name, parameter in trainer.model.named_parameters() if parameter.requires_grad}
    untied = not model.config.tie_word_embeddings
    assert sum("trainable_tokens_delta" in name for name in trained) == 1 + untied
    assert_recommends(trainer, tmp_path / "run", split)
    merged = trainer.model.merge_and_unload()
    merged.save_pretrained(tmp_path / "merged"), tokenizer.save_pretrained(tmp_path / "merged")
    for name in ("catalog", "recommender.json"):
        (tmp_path / "run" / name).rename(tmp_path / "merged" / name)
    trainer.model = trainer.model_wrapped = merged
    assert_recommends(trainer, tmp_path / "merged", split)


def test_nf4_bases_train_adapters_and_new_tokens(base, catalog: ItemCatalog, split: Dataset, tmp_path: Path) -> None:
    folder, new = base
    quantized = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.bfloat16,
    )
    config = lora_config(load_model(folder), new, r=4)
    train(
        str(folder),
        load_tokenizer(folder),
        catalog,
        split,
        tmp_path / "run",
        peft_config=config,
        quantization_config=quantized,
    )
    export_merged(tmp_path / "run", tmp_path / "merged")
    recommenders = [Recommender.from_pretrained(tmp_path / name) for name in ("run", "merged")]
    for history in split["history"]:
        one, other = (recommender.recommend([str(item) for item in history], k=5) for recommender in recommenders)
        assert [item.item_id for item in one] == [item.item_id for item in other]
        assert [item.score for item in one] == pytest.approx([item.score for item in other], abs=1e-5)
