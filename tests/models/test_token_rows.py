"""Tests that known items keep their embeddings if the catalogue changes, and that new tokens start from means of known
embeddings.

The models are full models, and adapters on tied, untied and nf4 base models. New tokens may belong to new items or to
semantic IDs.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import BitsAndBytesConfig, PreTrainedTokenizerBase

from tests.conftest import make_model as make_family
from tests.conftest import make_tokenizer as make_bpe
from trl_rec import ItemCatalog
from trl_rec.items.changes import match_items
from trl_rec.models import (
    RecModelConfig,
    add_item_tokens,
    build_model,
    build_policy,
    load_policy,
    load_tokenizer,
    lora_config,
    make_model,
    make_tokenizer,
)
from trl_rec.models.token_rows import follow_items
from trl_rec.ragged import Ragged


OLD = ["a", "b", "c", "d", "e"]
PERMUTED = ["d", "a", "e", "c", "b"]
OTHER = ["x", "d", "a", "y", "e", "z", "b"]  # c was removed; x, y and z are new
GROUPS = {
    "a": ["red"],
    "b": ["red", "blue"],
    "c": ["blue"],
    "d": ["green"],
    "e": [],
    "x": ["red"],
    "y": ["blue", "odd"],
}


def make_catalog(ids: list[str], surface: str = "item_token", **options: object) -> ItemCatalog:
    groups = pa.array([GROUPS.get(one, []) for one in ids], pa.list_(pa.string()))
    table = pa.table({"item_id": ids, "title": [one.upper() for one in ids], "colours": groups})
    return ItemCatalog(table, surface, "colours", **options)


def next_items(model: torch.nn.Module, tokenizer: PreTrainedTokenizerBase, catalog: ItemCatalog) -> dict[str, float]:
    """Returns the logit of each item after the history a, d, e, by item id."""
    tokens = torch.from_numpy(catalog.paths(tokenizer).values)  # (num_items,)
    history = tokens[catalog.index_of(["a", "d", "e"])]
    with torch.no_grad():
        logits = model.eval()(input_ids=history[None]).logits[0, -1]
    return dict(zip(catalog.ids, logits[tokens].tolist(), strict=True))


def assert_known_items_are_alike(before: dict[str, float], after: dict[str, float]) -> None:
    assert set(before) <= set(after)
    for item, logit in before.items():
        assert after[item] == pytest.approx(logit, abs=1e-4), item


@pytest.fixture
def scratch(tmp_path: Path) -> Path:
    """The folder of a small model with one token per item."""
    tokenizer = make_tokenizer(make_catalog(OLD))
    make_model(tokenizer, hidden_size=16).save_pretrained(tmp_path / "run")
    tokenizer.save_pretrained(tmp_path / "run")
    return tmp_path / "run"


@pytest.mark.parametrize("ids", [OLD, PERMUTED, OTHER])
def test_every_item_keeps_what_was_learned_about_it(scratch: Path, ids: list[str]) -> None:
    change = match_items(make_catalog(OLD), make_catalog(ids))
    before = next_items(load_policy(scratch), load_tokenizer(scratch), make_catalog(OLD))
    model, tokenizer, _ = build_model(change.catalog, RecModelConfig(str(scratch)), change=change)
    assert_known_items_are_alike(before, next_items(model, tokenizer, change.catalog))


def test_policy_and_reference_keep_the_same_embeddings(scratch: Path) -> None:
    change = match_items(make_catalog(OLD), make_catalog(OTHER))
    before = next_items(load_policy(scratch), load_tokenizer(scratch), make_catalog(OLD))
    policy, reference, tokenizer, _ = build_policy(RecModelConfig(str(scratch)), change=change)
    after = next_items(policy, tokenizer, change.catalog)
    assert_known_items_are_alike(before, after)
    assert next_items(reference, tokenizer, change.catalog) == after


def test_new_items_start_from_the_mean_of_their_groups(scratch: Path) -> None:
    change = match_items(make_catalog(OLD), make_catalog(OTHER))
    model, tokenizer = load_policy(scratch), load_tokenizer(scratch)
    old = model.get_input_embeddings().weight[make_catalog(OLD).paths(tokenizer).values].detach()  # a b c d e
    model, tokens = follow_items(model, tokenizer, change)
    rows = dict(zip(change.catalog.ids, model.get_input_embeddings().weight[tokens].detach(), strict=True))
    torch.testing.assert_close(rows["x"], old[[0, 1]].mean(0))  # red: a and b
    # y is in the groups blue and odd. The old items b and c are blue (c was removed), and no old item is odd.
    torch.testing.assert_close(rows["y"], old[[1, 2]].mean(0))
    torch.testing.assert_close(rows["z"], old.mean(0))  # z has no group, so it gets the mean of all known items
    for place, item in enumerate(OLD):
        torch.testing.assert_close(rows[item], old[place])


def test_without_a_common_item_no_embedding_of_a_recommendable_item_is_kept(scratch: Path) -> None:
    change = match_items(make_catalog(OLD), make_catalog(["p", "q"]))
    assert change.num_kept == 0 and change.num_removed == 5
    model, tokens = follow_items(load_policy(scratch), load_tokenizer(scratch), change)
    # 5 old items, which the model can still read, and 2 new items, which start from the mean of the old items
    assert len(tokens) == 7


@pytest.fixture(params=["tied", "untied"])
def base(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """The folder of a pretrained model to which the item tokens were added."""
    tokenizer = make_bpe(["a b"], vocab_size=280)
    model = make_family("llama", vocab_size=len(tokenizer))
    model.config.tie_word_embeddings = request.param == "tied"
    model.tie_weights()
    add_item_tokens(model, tokenizer, make_catalog(OLD))
    model.save_pretrained(tmp_path / "base"), tokenizer.save_pretrained(tmp_path / "base")
    return tmp_path / "base"


def shaken(model: torch.nn.Module) -> torch.nn.Module:
    """Returns the model after a large random step of its trainable weights."""
    torch.manual_seed(0)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data.add_(0.3 * torch.randn_like(parameter))
    return model


def adapters(base: Path, kind: str) -> LoraConfig:
    model, tokenizer = load_policy(base), load_tokenizer(base)
    if kind == "tokens":  # the adapter that `build_model` makes for a pretrained model
        return lora_config(model, make_catalog(OLD).paths(tokenizer).values.tolist(), r=2)
    if kind == "whole tables":
        return LoraConfig(r=2, target_modules="all-linear", modules_to_save=["embed_tokens", "lm_head"])
    return LoraConfig(r=2, target_modules="all-linear")  # trains no embeddings; `base` already has the item tokens


@pytest.mark.parametrize("kind", ["tokens", "whole tables", "linear"])
def test_adapters_keep_what_was_learned_when_saved_and_loaded(base: Path, kind: str, tmp_path: Path) -> None:
    if kind == "whole tables" and load_policy(base).config.tie_word_embeddings:
        pytest.skip("PEFT copies the two embedding matrices separately, which unties them")
    run = tmp_path / "run"
    shaken(get_peft_model(load_policy(base), adapters(base, kind))).save_pretrained(run)
    load_tokenizer(base).save_pretrained(run)
    before = next_items(load_policy(run), load_tokenizer(run), make_catalog(OLD))

    change = match_items(make_catalog(OLD), make_catalog(OTHER))
    model, tokenizer = load_policy(run), load_tokenizer(run)
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    model, tokens = follow_items(model, tokenizer, change)
    assert_known_items_are_alike(before, next_items(model, tokenizer, change.catalog))
    assert trained <= {name for name, parameter in model.named_parameters() if parameter.requires_grad}

    # A saved adapter does not contain the base model, so all embeddings that `follow_items` changed must be in the
    # adapter.
    model.save_pretrained(tmp_path / "today"), tokenizer.save_pretrained(tmp_path / "today")
    again = next_items(load_policy(tmp_path / "today"), load_tokenizer(tmp_path / "today"), change.catalog)
    assert again == pytest.approx(next_items(model, tokenizer, change.catalog), abs=1e-4)


def test_a_new_adapter_saves_the_embeddings_that_moved(scratch: Path, tmp_path: Path) -> None:
    change = match_items(make_catalog(OLD), make_catalog(PERMUTED))
    options = {"use_peft": True, "lora_target_modules": "all-linear"}
    policy, _, tokenizer, adapter = build_policy(RecModelConfig(str(scratch), **options), change=change)
    model = get_peft_model(policy, adapter)
    model.save_pretrained(tmp_path / "today"), tokenizer.save_pretrained(tmp_path / "today")
    before = next_items(load_policy(scratch), load_tokenizer(scratch), make_catalog(OLD))
    today = load_policy(tmp_path / "today")
    assert_known_items_are_alike(before, next_items(today, load_tokenizer(tmp_path / "today"), change.catalog))


def test_adapters_on_nf4_base_models_keep_what_was_learned(base: Path, tmp_path: Path) -> None:
    run, quantized = tmp_path / "run", BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4")
    shaken(get_peft_model(load_policy(base), adapters(base, "tokens"))).save_pretrained(run)
    load_tokenizer(base).save_pretrained(run)
    options = {"quantization_config": quantized, "device_map": {"": "cpu"}}
    before = next_items(load_policy(run, **options), load_tokenizer(run), make_catalog(OLD))
    change, tokenizer = match_items(make_catalog(OLD), make_catalog(OTHER)), load_tokenizer(run)
    model, _ = follow_items(load_policy(run, **options), tokenizer, change)
    assert_known_items_are_alike(before, next_items(model, tokenizer, change.catalog))


def test_lora_of_embeddings_is_refused(base: Path, tmp_path: Path) -> None:
    config = LoraConfig(r=2, target_modules=["embed_tokens"])
    model = get_peft_model(load_policy(base), config)
    change = match_items(make_catalog(OLD), make_catalog(PERMUTED))
    with pytest.raises(ValueError, match="merge the adapter"):
        follow_items(model, load_tokenizer(base), change)


def test_new_semantic_id_tokens_start_from_the_mean_of_their_level() -> None:
    ids = [["<a_0>", "<b_0>"], ["<a_0>", "<b_1>"], ["<a_1>", "<b_1>"]]
    old = make_catalog(["a", "d", "e"], "semantic_id", semantic_ids=Ragged.from_lists(ids, object))
    more = [["<a_7>", "<b_0>"], *ids]
    new = make_catalog(["x", "a", "d", "e"], "semantic_id", semantic_ids=Ragged.from_lists(more, object))
    tokenizer = make_tokenizer(old)
    model = make_model(tokenizer, hidden_size=16)
    before, known = model.get_input_embeddings().weight.detach().clone(), tokenizer.get_vocab()
    model, _ = follow_items(model, tokenizer, match_items(old, new))
    after = model.get_input_embeddings().weight.detach()
    assert torch.equal(after[: len(before)], before)
    level = before[[known["<a_0>"], known["<a_1>"]]].mean(0)
    torch.testing.assert_close(after[tokenizer.get_vocab()["<a_7>"]], level)


def test_item_vectors_do_not_overwrite_known_items(scratch: Path) -> None:
    change = match_items(make_catalog(OLD), make_catalog(OTHER))
    vectors = torch.from_numpy(np.eye(8, dtype=np.float32))
    with pytest.raises(ValueError, match="already has the tokens of the items"):
        build_model(change.catalog, RecModelConfig(str(scratch)), change=change, item_vectors=lambda: vectors)
