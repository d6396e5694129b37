"""Builds a model for rated prompts from a recipe: as [`build_model`] does, with the tokens that these prompts add."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from transformers import PreTrainedModel, PreTrainedTokenizerBase
from trl import get_peft_config

from trl_rec.decoding.candidates.prompts import rated_tokens
from trl_rec.items import ItemCatalog
from trl_rec.models import RecModelConfig, build_model, make_model, make_tokenizer
from trl_rec.models.tokens import new_token_modules


if TYPE_CHECKING:
    from peft import PeftConfig


def build_ranker(
    catalog: ItemCatalog,
    ratings: Sequence[float],
    config: RecModelConfig,
    *,
    letters: bool | None = None,
    max_length: int | None = None,
    seed: int = 0,
    trust_remote_code: bool = False,
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase, PeftConfig | None]:
    """Model, tokenizer and adapter configuration, ready for [`AlroTrainer`].

    Args:
        catalog: The items. Their surface decides which tokens are new.
        ratings: The ratings of the training split, from [`rating_values`].
        config: What to load or make.
        letters: As in [`RatedPromptFormat.for_catalog`].
        max_length, trust_remote_code: As in [`build_model`].
        seed: Seed of a model from scratch, and of the embeddings of new tokens.

    Returns:
        The adapter configuration is None without an adapter.
    """
    tokens = rated_tokens(catalog, ratings, letters=letters)
    if config.model_name_or_path is None:
        # From scratch: the model is made after its tokens are known, as all embeddings are drawn alike.
        item_tokenizer = make_tokenizer(catalog)
        item_tokenizer.add_tokens(tokens)
        model = make_model(
            item_tokenizer,
            hidden_size=config.hidden_size,
            num_layers=config.num_layers,
            num_heads=config.num_heads,
            dropout=config.dropout,
            max_length=max_length or 1024,
            seed=seed,
        )
        return model, item_tokenizer, get_peft_config(config)

    # Pretrained: rows for the new tokens are added, and trained also where an adapter freezes the rest.
    model, tokenizer, adapter = build_model(catalog, config, seed=seed, trust_remote_code=trust_remote_code)
    tokenizer.add_tokens(tokens)
    if len(tokenizer) > model.config.get_text_config().vocab_size:
        model.resize_token_embeddings(len(tokenizer))
    if adapter is not None and tokens:
        vocabulary = tokenizer.get_vocab()
        new = [vocabulary[token] for token in [*catalog.new_tokens, *tokens]]
        adapter.trainable_token_indices = new_token_modules(model, new)
    return model, tokenizer, adapter
