"""Makes run folders of tiny trained models that vLLM can load. Their attention heads have 32 dimensions, which is the
smallest size that vLLM supports on a CPU."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel, PreTrainedTokenizerBase

from tests.conftest import make_tokenizer as make_text_tokenizer
from tests.trainer.runs import QUIET, with_known_names
from trl_rec import BearConfig, BearTrainer, ItemCatalog, prepare
from trl_rec.models import make_model, make_tokenizer
from trl_rec.ragged import Ragged


KINDS = ("item_token", "semantic_id", "title", "list", "title_list")
NUM_ITEMS = 60
LIST_LENGTH = 5
MAX_LENGTH = 500


def train_run(kind: str, folder: Path, *, steps: int = 30) -> Path:
    """Trains a model of one of the `KINDS` for a few steps, unless that was done before. Returns its run folder."""
    run = folder / kind
    if (run / "recommender.json").is_file():
        return run

    # 1. Make the items. With the surface `semantic_id`, some items share an ID.
    dataset = prepare("toy", folder / f"data-{kind}", toy_users=40, toy_items=NUM_ITEMS)
    catalog = with_surface(dataset.catalog, kind)

    # 2. Make the model.
    if catalog.surface == "title":
        tokenizer = make_text_tokenizer([*catalog.titles, "The items that a user has chosen, oldest first"] * 3)
        model = make_title_model(tokenizer)
    else:
        tokenizer = make_tokenizer(catalog)
        model = make_model(tokenizer, hidden_size=64, num_heads=2, dropout=0.0, max_length=MAX_LENGTH)

    # 3. Train it.
    options = {"list_length": LIST_LENGTH, "eval_ks": [LIST_LENGTH]} if "list" in kind else {"eval_num_beams": 8}
    options |= {"max_steps": steps, "per_device_train_batch_size": 8, "learning_rate": 3e-3, "max_length": MAX_LENGTH}
    options |= with_known_names({"activation_checkpointing": False})
    config = BearConfig(str(run), save_strategy="no", **QUIET, **options)
    trainer = BearTrainer(model, config, train_dataset=dataset.train, processing_class=tokenizer, catalog=catalog)
    trainer.train()
    trainer.save_model()
    return run


def with_surface(catalog: ItemCatalog, kind: str) -> ItemCatalog:
    """Returns the catalogue with the surface that a run of the given kind uses."""
    surface = {"list": "item_token", "title_list": "title"}.get(kind, kind)
    if surface != "semantic_id":
        return catalog.with_surface(surface)
    codes = np.random.default_rng(0).integers(0, 5, (len(catalog), 3)).tolist()
    ids = [[f"<a_{a}>", f"<b_{b}>", f"<c_{c % 2}>"] for a, b, c in codes]
    return catalog.with_surface(surface, Ragged.from_lists(ids, object))


def make_title_model(tokenizer: PreTrainedTokenizerBase) -> PreTrainedModel:
    """Returns a small Llama with random weights."""
    torch.manual_seed(0)
    size = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "max_position_embeddings": MAX_LENGTH}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 1}
    names = ("pad_token_id", "bos_token_id", "eos_token_id")
    tokens = {name: getattr(tokenizer, name) for name in names}
    return LlamaForCausalLM(LlamaConfig(vocab_size=len(tokenizer), **size, **heads, **tokens))
