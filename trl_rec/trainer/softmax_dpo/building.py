"""Builds a [`SoftmaxDPOTrainer`] from preferences and the configurations of a recipe, and loads its models."""

from __future__ import annotations

from datasets import Dataset
from trl import ModelConfig

from trl_rec.items import ItemCatalog
from trl_rec.models import build_policy
from trl_rec.trainer.base.continuing import catalog_change
from trl_rec.trainer.softmax_dpo.config import SoftmaxDPOConfig
from trl_rec.trainer.softmax_dpo.trainer import SoftmaxDPOTrainer


def build_softmax_dpo_trainer(
    preferences: Dataset,
    config: SoftmaxDPOConfig,
    model_config: ModelConfig,
    *,
    eval_dataset: Dataset | None = None,
    catalog: ItemCatalog | None = None,
) -> SoftmaxDPOTrainer:
    """Returns a trainer that is ready to train.

    Args:
        preferences: The training data, from [`read_preferences`].
        config: The training configuration.
        model_config: The policy, and optionally an adapter to train.
        eval_dataset (*optional*): Preferences or a split of a dataset. On preferences, an evaluation computes the
            loss. On a split, it ranks items for the users and computes no loss.
        catalog (*optional*): The catalogue, if the completions are items.
    """
    change = None if catalog is None else catalog_change(model_config.model_name_or_path, catalog)
    policy, reference, tokenizer, adapter = build_policy(
        model_config,
        trust_remote_code=config.trust_remote_code,
        with_reference=not config.precompute_ref_log_probs,
        change=change,
    )
    return SoftmaxDPOTrainer(
        policy,
        reference,
        config,
        train_dataset=preferences,
        eval_dataset=eval_dataset,
        processing_class=tokenizer,
        catalog=catalog if change is None else change.catalog,
        peft_config=adapter,
    )
