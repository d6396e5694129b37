"""Builds a [`BladeTrainer`] from a dataset and the configurations of a recipe, and loads its models."""

from __future__ import annotations

from trl import ModelConfig

from trl_rec.data.dataset import RecDataset
from trl_rec.models import build_policy
from trl_rec.trainer.base.continuing import catalog_change
from trl_rec.trainer.base.prior import leave_prior
from trl_rec.trainer.blade.config import BladeConfig
from trl_rec.trainer.blade.reward_functions import import_rewards
from trl_rec.trainer.blade.trainer import BladeTrainer


def build_blade_trainer(dataset: RecDataset, config: BladeConfig, model_config: ModelConfig) -> BladeTrainer:
    """Returns a trainer that is ready to train.

    Args:
        dataset: The dataset. Its catalogue must have the surface in which the policy was trained to write items. The
            validation split is evaluated during training if `eval_strategy` is set.
        config: The training configuration.
        model_config: The policy, fine-tuned as [`BladeTrainer`] requires, and optionally an adapter to train.
    """
    import_rewards(config.reward_paths)  # a wrong path is refused before the models are loaded
    leave_prior(
        model_config.model_name_or_path,
        "the method BLADE makes no prior; to multiply the trained model by a prior, use trl-rec evaluate --prior",
    )
    change = catalog_change(model_config.model_name_or_path, dataset.catalog, dataset.path)
    policy, reference, tokenizer, adapter = build_policy(
        model_config, trust_remote_code=config.trust_remote_code, change=change
    )
    return BladeTrainer(
        policy,
        reference,
        config,
        train_dataset=dataset.train,
        eval_dataset=dataset.validation,
        processing_class=tokenizer,
        catalog=dataset.catalog if change is None else change.catalog,
        peft_config=adapter,
    )
