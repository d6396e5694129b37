"""Builds a [`BearTrainer`] with its model, tokenizer and training rows, from a dataset and configurations."""

from __future__ import annotations

from datasets import Dataset
from transformers import PreTrainedTokenizerBase

from trl_rec.data.dataset import RecDataset
from trl_rec.data.prompts import PromptFormat
from trl_rec.data.tasks.rows import build_task_rows, task_texts
from trl_rec.items import TokenTrie
from trl_rec.models import RecModelConfig, build_model
from trl_rec.trainer.base.continuing import catalog_change
from trl_rec.trainer.base.item_vectors import item_vectors
from trl_rec.trainer.base.prior import check_run_prior, continue_prior
from trl_rec.trainer.bear.config import BearConfig
from trl_rec.trainer.bear.trainer import BearTrainer


def build_bear_trainer(dataset: RecDataset, config: BearConfig, model_config: RecModelConfig) -> BearTrainer:
    """Returns a trainer that is ready to train.

    Args:
        dataset: The dataset. Its catalogue determines the surface, that is, how the model writes items. The validation
            split is evaluated during training if `eval_strategy` is set.
        config: The training configuration.
        model_config: Which model to load or make. If the model comes from a run folder, the items of that run are
            matched with those of the dataset by `item_id` (see [`catalog_change`]). If that run has a prior and
            `config.prior` is not set, `config` is changed so that [`conclude`] fits a prior of the same kind after
            training (see [`continue_prior`]). If `config.tasks` is set, the vocabulary of a model from scratch also
            contains the words of the tasks' texts.
    """
    # 1. Build the model.
    continue_prior(config, model_config.model_name_or_path)
    check_run_prior(dataset, config)
    is_from_scratch = model_config.model_name_or_path is None
    change = catalog_change(model_config.model_name_or_path, dataset.catalog, dataset.path)
    catalog = dataset.catalog if change is None else change.catalog
    model, tokenizer, adapter = build_model(
        catalog,
        model_config,
        max_length=config.max_length,
        seed=config.seed,
        trust_remote_code=config.trust_remote_code,
        texts=task_texts(dataset) if config.tasks is not None and is_from_scratch else (),
        item_vectors=item_vectors(dataset, model_config, config.seed),
        change=change,
    )

    # 2. Build the rows and the trainer.
    return BearTrainer(
        model,
        config,
        train_dataset=build_training_rows(dataset, tokenizer, config),
        eval_dataset=dataset.validation,
        processing_class=tokenizer,
        catalog=catalog,
        peft_config=adapter,
    )


def build_training_rows(dataset: RecDataset, tokenizer: PreTrainedTokenizerBase, config: BearConfig) -> Dataset:
    """Returns the training data of a [`BearTrainer`]: `dataset.train` or, if `config.tasks` is set, rows of the tasks.

    Rows of tasks, such as `item_to_id`, are built from `dataset.train`, the columns of `dataset.users`, and the
    catalogue.

    Args:
        dataset: The dataset. Its catalogue determines the surface to train on.
        tokenizer: A tokenizer that contains the tokens of the catalogue. If `config.tasks` is set, a tokenizer made
            from scratch must also contain the words of [`task_texts`].
        config: The training configuration. It contains the tasks and the options for building rows.
    """
    if not isinstance(config.tasks, dict):
        return dataset.train
    trie = TokenTrie.from_catalog(dataset.catalog, tokenizer) if config.softmax == "legal" else None
    return build_task_rows(
        dataset,
        tokenizer,
        PromptFormat.for_catalog(dataset.catalog, tokenizer, **config.prompt_options),
        config.tasks,
        cap=config.task_cap,
        targets=config.targets,
        max_length=config.max_length,
        max_history=config.max_history,
        longest_history=config.task_history,
        chat_template=config.chat_template,
        seed=config.seed,
        long_histories=config.long_histories,
        max_row_tokens=config.max_row_tokens,
        join_windows=config.join_windows,
        trie=trie,
    )
