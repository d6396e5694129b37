"""From a recipe to a model that reads rated prompts: as [`build_model`] makes it, and it knows the tokens of the
prompts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

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
        catalog: The items, whose surface decides which tokens are new.
        ratings: What [`rating_values`] returned for the training split.
        config: What to load or make.
        letters: As in [`RatedPromptFormat.for_catalog`].
        max_length, trust_remote_code: As in [`build_model`].
        seed: Of a model from scratch, and of the embeddings of new tokens.
    """
    tokens = rated_tokens(catalog, ratings, letters=letters)
    if config.model_name_or_path is None:  # its embeddings are all drawn alike, hence after the tokens are known
        item_tokenizer = make_tokenizer(catalog)
        item_tokenizer.add_tokens(tokens)
        size: dict[str, Any] = {
            name: getattr(config, name) for name in ("hidden_size", "num_layers", "num_heads", "dropout")
        }
        model = make_model(item_tokenizer, max_length=max_length or 1024, seed=seed, **size)
        return model, item_tokenizer, get_peft_config(config)
    model, tokenizer, adapter = build_model(catalog, config, seed=seed, trust_remote_code=trust_remote_code)
    tokenizer.add_tokens(tokens)
    if len(tokenizer) > model.config.get_text_config().vocab_size:
        model.resize_token_embeddings(len(tokenizer))
    if adapter is not None and tokens:
        vocabulary = tokenizer.get_vocab()
        new = [vocabulary[token] for token in [*catalog.new_tokens, *tokens]]
        adapter.trainable_token_indices = new_token_modules(model, new)
    return model, tokenizer, adapter
