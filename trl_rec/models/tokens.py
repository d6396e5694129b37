"""New tokens for a pretrained model: item tokens or semantic IDs join its vocabulary, and an adapter can train them.

Under PEFT only the new rows are trained. Where input and output embeddings are tied that is one module; where they are
not, both have to be named, or the model never learns to write what it learns to read.
"""

from __future__ import annotations

from typing import Any

from peft import LoraConfig
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from trl_rec.items.catalog import ItemCatalog


def add_item_tokens(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, catalog: ItemCatalog) -> list[int]:
    """Adds the catalogue's new tokens to tokenizer and model, and returns their ids; nothing happens where there are
    none.

    The new embeddings are drawn around the mean of the old ones, as transformers does.
    """
    tokenizer.add_tokens(catalog.new_tokens)
    if len(tokenizer) > model.config.get_text_config().vocab_size:
        model.resize_token_embeddings(len(tokenizer))
    vocabulary = tokenizer.get_vocab()
    return [vocabulary[token] for token in catalog.new_tokens]


def lora_config(model: PreTrainedModel, new_token_ids: list[int], **options: Any) -> LoraConfig:
    """A LoRA configuration that also trains the rows of the new tokens.

    Args:
        model: The base model, whose embeddings may be tied.
        new_token_ids: What [`add_item_tokens`] returned.
        options: Fields of `LoraConfig`; all linear layers by default.
    """
    options = {"task_type": "CAUSAL_LM", "target_modules": "all-linear", **options}
    if new_token_ids:
        options["trainable_token_indices"] = new_token_modules(model, new_token_ids)
    return LoraConfig(**options)


def new_token_modules(model: PreTrainedModel, new_token_ids: list[int]) -> dict[str, list[int]]:
    """`trainable_token_indices` for the new tokens: the input embedding, and the output embedding where it is another
    module."""
    modules = {_name_of(model, model.get_input_embeddings()): new_token_ids}
    if not model.config.get_text_config().tie_word_embeddings:
        modules[_name_of(model, model.get_output_embeddings())] = new_token_ids
    return modules


def _name_of(model: PreTrainedModel, wanted: Any) -> str:
    """The last part of the module's name: `embed_tokens`, `wte`, `lm_head`."""
    return next(name for name, module in model.named_modules() if module is wanted).split(".")[-1]
