"""Builds an [`AlroTrainer`] from the options of a recipe.

Optionally, a model from scratch is first trained to predict ratings. This is called the rating stage.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from peft import LoraConfig
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from trl_rec.data.dataset import RecDataset
from trl_rec.decoding.candidates.prompts import RatedPromptFormat, rated_tokens
from trl_rec.items import ItemCatalog
from trl_rec.items.changes import CatalogChange
from trl_rec.models import RecModelConfig, build_model, make_model, make_tokenizer, start_from_vectors
from trl_rec.models.building import scratch_options
from trl_rec.models.tokens import new_token_modules
from trl_rec.trainer.alro.config import AlroConfig
from trl_rec.trainer.alro.rating import RatingStageConfig, learn_ratings
from trl_rec.trainer.alro.rows import check_rankable, rating_values
from trl_rec.trainer.alro.trainer import AlroTrainer
from trl_rec.trainer.base.continuing import catalog_change
from trl_rec.trainer.base.item_vectors import item_vectors
from trl_rec.trainer.base.saving.output import check_output


if TYPE_CHECKING:
    from peft import PeftConfig


def build_alro_trainer(
    dataset: RecDataset,
    config: AlroConfig,
    model_config: RecModelConfig,
    rating: RatingStageConfig | None = None,
) -> AlroTrainer:
    """Runs the rating stage, if there is one, and returns a trainer that is ready to train.

    Args:
        dataset: The dataset, which must have ratings. Its catalogue determines the surface, that is, how items are
            written in prompts. The validation split is evaluated during training if `eval_strategy` is set.
        config: The training configuration. The model of the rating stage is saved in `output_dir/rating`.
        model_config: Which model to load or make.
        rating (*optional*): The configuration of the rating stage. If it is None or its `rating_epochs` is 0, there is
            no rating stage.
    """
    if rating is not None and rating.rating_epochs == 0:
        rating = None
    if rating is not None and model_config.model_name_or_path is not None:
        raise ValueError(
            "rating_epochs requires a model trained from scratch; remove rating_epochs or model_name_or_path"
        )
    check_output(config)  # called here already, so that an error is raised before the rating stage

    # 1. Build the model. Check that each split that is used has lists to rank, and that these lists fit in
    #    `max_length`.
    ratings = rating_values(dataset.train)
    change = catalog_change(model_config.model_name_or_path, dataset.catalog, dataset.path)
    catalog = dataset.catalog if change is None else change.catalog
    model, tokenizer, adapter = build_ranker(
        catalog,
        ratings,
        model_config,
        letters=config.letters,
        max_length=config.max_length,
        seed=config.seed,
        trust_remote_code=config.trust_remote_code,
        vectors=item_vectors(dataset, model_config, config.seed),
        change=change,
    )
    prompt_format = RatedPromptFormat.for_catalog(catalog, tokenizer, ratings, **config.prompt_options)
    check_rankable(dataset, prompt_format, config)

    # 2. Run the rating stage.
    if rating is not None:
        folder = Path(str(config.output_dir)) / "rating"
        model = learn_ratings(model, tokenizer, prompt_format, dataset, folder, **rating.options(config))

    return AlroTrainer(
        model,
        config,
        train_dataset=dataset.train,
        eval_dataset=dataset.validation,
        processing_class=tokenizer,
        catalog=catalog,
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
    vectors: Callable[[], Tensor] | None = None,
    change: CatalogChange | None = None,
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase, PeftConfig | None]:
    """Builds a model, its tokenizer and its adapter configuration for [`AlroTrainer`].

    Args:
        catalog: The catalogue. Its surface determines which tokens are added.
        ratings: The distinct ratings of the training split, from [`rating_values`].
        config: Which model to load or make.
        letters: Same as in [`RatedPromptFormat.for_catalog`].
        max_length, trust_remote_code: Same as in [`build_model`].
        seed: Seed for the weights of a model from scratch and for the embeddings of added tokens.
        vectors: Same as `item_vectors` in [`build_model`].
        change: Same as in [`build_model`].

    Returns:
        The model, the tokenizer, and the adapter configuration, which is None without an adapter.
    """
    tokens = rated_tokens(catalog, ratings, letters=letters)
    if config.model_name_or_path is None:
        # For a model from scratch, add all tokens before the model is made, so that all embeddings are initialised the
        # same way.
        item_tokenizer = make_tokenizer(catalog)
        item_tokenizer.add_tokens(tokens)
        model = make_model(item_tokenizer, max_length=max_length or 1024, seed=seed, **scratch_options(config))
        if vectors is not None:
            start_from_vectors(model, item_tokenizer, catalog, vectors(), seed=seed)
        return model, item_tokenizer, None

    # For a pretrained model, add embeddings for the new tokens. The new embeddings are trained even if an adapter
    # freezes all other embeddings.
    model, tokenizer, adapter = build_model(
        catalog, config, seed=seed, trust_remote_code=trust_remote_code, item_vectors=vectors, change=change
    )
    tokenizer.add_tokens(tokens)
    if len(tokenizer) > model.config.get_text_config().vocab_size:
        model.resize_token_embeddings(len(tokenizer))
    if isinstance(adapter, LoraConfig) and tokens:
        vocabulary = tokenizer.get_vocab()
        new = [vocabulary[token] for token in [*catalog.new_tokens, *tokens]]
        adapter.trainable_token_indices = new_token_modules(model, new)
    return model, tokenizer, adapter
