"""Adds a catalogue's tokens to a pretrained model's vocabulary, and configures adapters to train their embeddings.

With an adapter, the embeddings of the new tokens are trained, and all other embeddings stay frozen. If the input and
the output embedding are not tied, the adapter configuration has to list both modules. With the input embedding alone,
the model would learn to read the new tokens but not to write them.
"""

from __future__ import annotations

from typing import Any

from peft import LoraConfig
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from trl_rec.items.catalog import ItemCatalog


def add_item_tokens(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, catalog: ItemCatalog) -> list[int]:
    """Adds the catalogue's tokens to the tokenizer and the model. Existing tokens remain unchanged.

    Many models have more embeddings than their tokenizer has tokens. The unused embeddings are assigned first. If they
    do not suffice, transformers adds embeddings with random values around the mean of the existing embeddings.

    Returns:
        The ids of the catalogue's tokens: first those of items (none if items are written as titles), then those of
        users (none unless users have semantic IDs).
    """
    tokenizer.add_tokens(catalog.new_tokens)
    if len(tokenizer) > model.config.get_text_config().vocab_size:
        model.resize_token_embeddings(len(tokenizer))
    vocabulary = tokenizer.get_vocab()
    return [vocabulary[token] for token in catalog.new_tokens]


def lora_config(model: PreTrainedModel, new_token_ids: list[int], **options: Any) -> LoraConfig:
    """Makes a LoRA configuration that also trains the embeddings of the new tokens.

    Args:
        model (`PreTrainedModel`): The base model.
        new_token_ids (list of `int`): The result of [`add_item_tokens`].
        options: Fields of `LoraConfig`. By default, all linear layers except the output layer are adapted.
    """
    options = {"task_type": "CAUSAL_LM", "target_modules": "all-linear", **options}
    if new_token_ids:
        options["trainable_token_indices"] = new_token_modules(model, new_token_ids)
    return LoraConfig(**options)


def new_token_modules(model: PreTrainedModel, new_token_ids: list[int]) -> dict[str, list[int]]:
    """Returns the `trainable_token_indices` of a `LoraConfig`: a mapping from module names to the new token ids.

    The modules are the input embedding, and the output embedding unless it is tied to the input embedding.
    """
    modules = {module_name(model, model.get_input_embeddings()): new_token_ids}
    if not model.config.get_text_config().tie_word_embeddings:
        modules[module_name(model, model.get_output_embeddings())] = new_token_ids
    return modules


def module_name(model: PreTrainedModel, wanted: nn.Module) -> str:
    """Returns the last part of the name of a model's module, such as `embed_tokens`, `wte` or `lm_head`."""
    path: str = next(name for name, module in model.named_modules() if module is wanted)
    return path.split(".")[-1]
