"""Tests how models and tokenizers are loaded or made from scratch, and how tokens are added to them."""

from pathlib import Path

import pyarrow as pa
import pytest
import torch
from trl import ModelConfig

from tests.conftest import make_model as make_family
from trl_rec import ItemCatalog
from trl_rec.compat import keep_differentiable
from trl_rec.items.changes import match_items
from trl_rec.models import add_item_tokens, load_model, load_tokenizer, lora_config, make_model, make_tokenizer
from trl_rec.models.building import build_policy
from trl_rec.ragged import Ragged


@pytest.fixture
def catalog() -> ItemCatalog:
    return ItemCatalog(pa.table({"item_id": ["a", "b", "c"], "title": ["A", "B", "C"]}), surface="item_token")


def test_a_model_from_scratch_has_a_token_per_item(catalog: ItemCatalog) -> None:
    tokenizer = make_tokenizer(catalog)
    assert tokenizer("<item_2><item_0>")["input_ids"] == [5, 3] and len(tokenizer) == 6
    model = make_model(tokenizer, hidden_size=16, num_layers=1, max_length=32)
    assert model.config.vocab_size == 6 and model.config.max_position_embeddings == 32
    assert torch.equal(
        model.lm_head.weight, make_model(tokenizer, hidden_size=16, num_layers=1, max_length=32).lm_head.weight
    )
    with pytest.raises(ValueError, match="the surface 'title' needs a pretrained tokenizer"):
        make_tokenizer(catalog.with_surface("title"))


def test_adding_tokens_twice_adds_them_once(catalog: ItemCatalog, tokenizer_copy) -> None:
    model, size = make_family("llama", vocab_size=len(tokenizer_copy)), len(tokenizer_copy)
    assert add_item_tokens(model, tokenizer_copy, catalog) == [size, size + 1, size + 2]
    assert add_item_tokens(model, tokenizer_copy, catalog) == [size, size + 1, size + 2]
    assert model.config.vocab_size == size + 3


def test_spare_embeddings_are_used_before_resizing(catalog: ItemCatalog, tokenizer_copy) -> None:
    model = make_family("llama", vocab_size=len(tokenizer_copy) + 10)
    add_item_tokens(model, tokenizer_copy, catalog)
    assert model.config.vocab_size == len(tokenizer_copy) + 7


def test_padding_is_on_the_left_and_eos_replaces_a_missing_padding_token(tokenizer_copy, tmp_path: Path) -> None:
    tokenizer_copy.pad_token, tokenizer_copy.padding_side = None, "right"
    tokenizer_copy.save_pretrained(tmp_path)
    make_family("llama", vocab_size=len(tokenizer_copy)).save_pretrained(tmp_path)
    loaded = load_tokenizer(tmp_path)
    assert loaded.padding_side == "left" and loaded.pad_token == loaded.eos_token
    assert not load_model(tmp_path).training


def test_a_folder_without_a_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="contains neither config.json nor exactly one GGUF file"):
        load_model(tmp_path)


def test_four_bit_layers_pass_gradients_after_an_evaluation_on_a_cpu() -> None:
    bitsandbytes = pytest.importorskip("bitsandbytes")
    layer = bitsandbytes.nn.Linear4bit(128, 128, bias=False, quant_type="nf4", compute_dtype=torch.bfloat16).to("cpu")
    keep_differentiable(layer)
    with torch.no_grad():
        layer.eval()(torch.ones(4, 128, dtype=torch.bfloat16))
    inputs = torch.ones(4, 128, dtype=torch.bfloat16, requires_grad=True)
    layer.train()(inputs).sum().backward()
    assert inputs.grad is not None and inputs.grad.abs().sum() > 0


def test_a_tokenizer_from_scratch_contains_the_words_of_given_texts(catalog: ItemCatalog) -> None:
    plain, worded = make_tokenizer(catalog), make_tokenizer(catalog, ["Jean's  book,\n<item_1> <b_1>", "Café (1995)"])
    assert plain.convert_ids_to_tokens(range(6)) == worded.convert_ids_to_tokens(range(6))
    tokens = worded.tokenize("Café,<item_0>Jean's <item_2>\nbook nowhere (1995)")
    assert tokens == ["Café", ",", "<item_0>", "Jean", "'", "s", "<item_2>", "book", "<unk>", "(", "1995", ")"]
    assert worded.decode(worded("Café (1995)")["input_ids"]) == "Café ( 1995 )"
    assert worded.unk_token == "<unk>" and plain.unk_token is None


def test_tokenizers_and_adapters_include_tokens_of_users(catalog: ItemCatalog, tokenizer_copy) -> None:
    users = Ragged.from_lists([["<ua_0>", "<ub_1>"], ["<ua_1>", "<ub_0>"]], object)
    catalog, size = catalog.with_surface("item_token", user_ids=users), len(tokenizer_copy)
    model = make_family("llama", vocab_size=size)
    new = add_item_tokens(model, tokenizer_copy, catalog)
    assert new == list(range(size, size + 7)) and model.config.vocab_size == size + 7
    adapter = lora_config(model, new)
    assert new in adapter.trainable_token_indices.values()
    assert make_tokenizer(catalog)("<ua_1><ub_0><item_2>")["input_ids"] == [7, 8, 5]


@pytest.mark.parametrize("codes", [["<ua_0>"], ["<ua_0>", "<ua_1>"]], ids=["known", "new"])
def test_a_new_adapter_of_a_policy_contains_new_tokens_of_users(
    codes: list[str], catalog: ItemCatalog, tmp_path: Path
) -> None:
    """The items stay the same. In the case `new`, a second user is added, whose token is new. The adapter must contain
    the embedding of this token, because saving an adapter does not save the base model."""
    before = catalog.with_surface("item_token", user_ids=Ragged.from_lists([["<ua_0>"]], object))
    after = catalog.with_surface("item_token", user_ids=Ragged.from_lists([[code] for code in codes], object))
    tokenizer = make_tokenizer(before)
    make_model(tokenizer, hidden_size=16, num_layers=1, max_length=32).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)

    config = ModelConfig(str(tmp_path), use_peft=True, lora_target_modules=["q_proj"])
    _, _, tokenizer, adapter = build_policy(config, change=match_items(before, after))
    assert adapter is not None and set(codes) <= set(tokenizer.get_vocab())
    trained = (adapter.trainable_token_indices or {}).values()
    assert list(trained) == ([tokenizer.convert_tokens_to_ids(after.new_tokens)] if len(codes) == 2 else [])


def test_a_new_adapter_does_not_train_semantic_ids_that_stay_the_same(tmp_path: Path) -> None:
    """The semantic ID of the new item consists of tokens that the old items use too, so no embedding changes."""
    ids = [["<a_0>", "<b_1>"], ["<a_1>", "<b_0>"], ["<a_1>", "<b_1>"]]
    table = pa.table({"item_id": ["a", "b", "c"], "title": ["A", "B", "C"]})
    before, after = (
        ItemCatalog(table.slice(0, count), surface="semantic_id", semantic_ids=Ragged.from_lists(ids[:count], object))
        for count in (2, 3)
    )
    tokenizer = make_tokenizer(before)
    make_model(tokenizer, hidden_size=16, num_layers=1, max_length=32).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    change = match_items(before, after)
    config = ModelConfig(str(tmp_path), use_peft=True, lora_target_modules=["q_proj"])
    _, _, _, adapter = build_policy(config, change=change)
    assert not change.keeps_indices and adapter is not None and not adapter.trainable_token_indices


@pytest.mark.parametrize("dtype", ["foo", "int8", "nn", ""])
def test_a_type_that_is_not_a_floating_point_type_is_refused(dtype: str, tmp_path: Path) -> None:
    make_family("llama").save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=f"dtype '{dtype}' is not a floating-point type of torch"):
        load_model(tmp_path, dtype=dtype)
    assert load_model(tmp_path, dtype="bfloat16").dtype == load_model(tmp_path, dtype=torch.bfloat16).dtype
