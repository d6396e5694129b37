"""From a recipe to a [`BearTrainer`]: model, tokenizer and rows of its tasks."""

from __future__ import annotations

from trl_rec.data.dataset import RecDataset
from trl_rec.data.task_rows import task_texts
from trl_rec.models import RecModelConfig, build_model
from trl_rec.trainer.bear.config import BearConfig
from trl_rec.trainer.bear.task_building import build_training_rows
from trl_rec.trainer.bear.trainer import BearTrainer


def build_bear_trainer(dataset: RecDataset, config: BearConfig, model_config: RecModelConfig) -> BearTrainer:
    """The trainer, ready to train.

    Args:
        dataset: The data, its catalogue with the surface to train on; the validation split is measured.
        config: How it is trained.
        model_config: What to load or make. A model from scratch also learns the words that its tasks need.
    """
    model, tokenizer, adapter = build_model(
        dataset.catalog,
        model_config,
        max_length=config.max_length,
        seed=config.seed,
        trust_remote_code=config.trust_remote_code,
        texts=task_texts(dataset) if config.tasks is not None and model_config.model_name_or_path is None else (),
    )
    return BearTrainer(
        model,
        config,
        train_dataset=build_training_rows(dataset, tokenizer, config),
        eval_dataset=dataset.validation,
        processing_class=tokenizer,
        catalog=dataset.catalog,
        peft_config=adapter,
    )
