"""Builds a [`BladeTrainer`] from a recipe: the policy, its reference and the rows of a dataset."""

from __future__ import annotations

from trl import ModelConfig

from trl_rec.data.dataset import RecDataset
from trl_rec.models import build_policy
from trl_rec.trainer.blade.config import BladeConfig
from trl_rec.trainer.blade.trainer import BladeTrainer


def build_blade_trainer(dataset: RecDataset, config: BladeConfig, model_config: ModelConfig) -> BladeTrainer:
    """The trainer, ready to train.

    Args:
        dataset: The data, with the surface that the policy writes. The validation split is evaluated during training.
        config: How the policy is trained.
        model_config: The policy, which writes lists already, and perhaps an adapter to train.
    """
    policy, reference, tokenizer, adapter = build_policy(model_config, trust_remote_code=config.trust_remote_code)
    return BladeTrainer(
        policy,
        reference,
        config,
        train_dataset=dataset.train,
        eval_dataset=dataset.validation,
        processing_class=tokenizer,
        catalog=dataset.catalog,
        peft_config=adapter,
    )
