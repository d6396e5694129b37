"""Builds an [`AlroTrainer`] from a recipe: a model with the tokens of rated prompts, and perhaps its rating stage."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from peft import LoraConfig
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from trl import get_peft_config

from trl_rec.data.dataset import RecDataset
from trl_rec.decoding.candidates.prompts import RatedPromptFormat, rated_tokens
from trl_rec.items import ItemCatalog
from trl_rec.models import RecModelConfig, build_model, make_model, make_tokenizer
from trl_rec.models.tokens import new_token_modules
from trl_rec.trainer.alro.config import AlroConfig
from trl_rec.trainer.alro.rating import RatingStageConfig, learn_ratings
from trl_rec.trainer.alro.rows import check_rankable, rating_values
from trl_rec.trainer.alro.trainer import AlroTrainer
from trl_rec.trainer.base.output import check_output


if TYPE_CHECKING:
    from peft import PeftConfig


def build_alro_trainer(
    dataset: RecDataset,
    config: AlroConfig,
    model_config: RecModelConfig,
    rating: RatingStageConfig | None = None,
) -> AlroTrainer:
    """The trainer, ready to train. A model from scratch goes through its rating stage first.

    Args:
        dataset: The data, with ratings, and with the surface to train on. The validation split is evaluated during
            training.
        config: How the model is trained. The model of the rating stage is saved in `output_dir/rating`.
        model_config: What to load or make.
        rating (*optional*): The rating stage. It is skipped without `rating_epochs`.
    """
    if rating is not None and rating.rating_epochs == 0:
        rating = None
    if rating is not None and model_config.model_name_or_path is not None:
        raise ValueError("rating_epochs are for a model from scratch; leave them out, or model_name_or_path")
    check_output(config)  # before the rating stage, and not after it

    # 1. Build the model, and check that it can read the lists.
    ratings = rating_values(dataset.train)
    model, tokenizer, adapter = build_ranker(
        dataset.catalog,
        ratings,
        model_config,
        letters=config.letters,
        max_length=config.max_length,
        seed=config.seed,
        trust_remote_code=config.trust_remote_code,
    )
    prompt_format = RatedPromptFormat.for_catalog(dataset.catalog, tokenizer, ratings, **config.prompt_options)
    check_rankable(dataset, prompt_format, config)

    # 2. Let a model from scratch learn to rate.
    if rating is not None:
        folder = Path(str(config.output_dir)) / "rating"
        model = learn_ratings(model, tokenizer, prompt_format, dataset, folder, **rating.options(config))

    return AlroTrainer(
        model,
        config,
        train_dataset=dataset.train,
        eval_dataset=dataset.validation,
        processing_class=tokenizer,
        catalog=dataset.catalog,
        peft_config=adapter,
    )


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
        The three. The adapter configuration is None without an adapter.
    """
    tokens = rated_tokens(catalog, ratings, letters=letters)
    if config.model_name_or_path is None:
        # From scratch: make the model once all tokens are known, so that all embeddings are drawn alike.
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

    # Pretrained: add embeddings of the new tokens, which are trained even where an adapter freezes the rest.
    model, tokenizer, adapter = build_model(catalog, config, seed=seed, trust_remote_code=trust_remote_code)
    tokenizer.add_tokens(tokens)
    if len(tokenizer) > model.config.get_text_config().vocab_size:
        model.resize_token_embeddings(len(tokenizer))
    if isinstance(adapter, LoraConfig) and tokens:
        vocabulary = tokenizer.get_vocab()
        new = [vocabulary[token] for token in [*catalog.new_tokens, *tokens]]
        adapter.trainable_token_indices = new_token_modules(model, new)
    return model, tokenizer, adapter
