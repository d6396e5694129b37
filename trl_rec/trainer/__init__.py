"""Exports the trainers, their configs and collators, and functions that prepare a run, or evaluate and save the model.

Each trainer is a subclass of a TRL trainer.
"""

from typing import TYPE_CHECKING

from trl_rec._lazy import lazy_names


__all__ = [
    "AlroConfig",
    "AlroTrainer",
    "BatchLoss",
    "BearConfig",
    "BearTrainer",
    "BladeConfig",
    "BladeTrainer",
    "CandidateOrderingMixin",
    "CatalogRankingMixin",
    "ListPromptCollator",
    "Mean",
    "NextItemCollator",
    "Paper",
    "PreferenceCollator",
    "RatedListCollator",
    "RatingStageConfig",
    "RecConfig",
    "RecTrainerMixin",
    "SecondsPerUser",
    "SoftmaxDPOConfig",
    "SoftmaxDPOTrainer",
    "TaskCollator",
    "announce_cost",
    "announce_tokens",
    "build_alro_trainer",
    "build_bear_trainer",
    "build_blade_trainer",
    "build_ranker",
    "build_rated_rows",
    "build_rating_rows",
    "build_softmax_dpo_trainer",
    "build_training_rows",
    "check_rankable",
    "conclude",
    "conclude_ranking",
    "held_out_rows",
    "learn_ratings",
    "orders_table",
    "rating_values",
    "read_preferences",
    "save_run",
    "write_run",
]

if TYPE_CHECKING:
    from trl_rec.trainer.alro.building import build_alro_trainer, build_ranker
    from trl_rec.trainer.alro.collator import RatedListCollator
    from trl_rec.trainer.alro.config import AlroConfig
    from trl_rec.trainer.alro.ordering import CandidateOrderingMixin
    from trl_rec.trainer.alro.rating import RatingStageConfig, learn_ratings
    from trl_rec.trainer.alro.rating_rows import build_rating_rows
    from trl_rec.trainer.alro.reporting import conclude_ranking, orders_table
    from trl_rec.trainer.alro.rows import build_rated_rows, check_rankable, held_out_rows, rating_values
    from trl_rec.trainer.alro.trainer import AlroTrainer
    from trl_rec.trainer.base.catalog_ranking import CatalogRankingMixin
    from trl_rec.trainer.base.config import RecConfig
    from trl_rec.trainer.base.cost import announce_cost
    from trl_rec.trainer.base.metrics import BatchLoss, Mean
    from trl_rec.trainer.base.prompt_tokens import announce_tokens
    from trl_rec.trainer.base.reporting import conclude, save_run, write_run
    from trl_rec.trainer.base.saving.model_card import Paper
    from trl_rec.trainer.base.trainer import RecTrainerMixin, SecondsPerUser
    from trl_rec.trainer.bear.building import build_bear_trainer, build_training_rows
    from trl_rec.trainer.bear.collator import NextItemCollator
    from trl_rec.trainer.bear.config import BearConfig
    from trl_rec.trainer.bear.tasks import TaskCollator
    from trl_rec.trainer.bear.trainer import BearTrainer
    from trl_rec.trainer.blade.building import build_blade_trainer
    from trl_rec.trainer.blade.collator import ListPromptCollator
    from trl_rec.trainer.blade.config import BladeConfig
    from trl_rec.trainer.blade.trainer import BladeTrainer
    from trl_rec.trainer.softmax_dpo.building import build_softmax_dpo_trainer
    from trl_rec.trainer.softmax_dpo.collator import PreferenceCollator
    from trl_rec.trainer.softmax_dpo.config import SoftmaxDPOConfig
    from trl_rec.trainer.softmax_dpo.rows import read_preferences
    from trl_rec.trainer.softmax_dpo.trainer import SoftmaxDPOTrainer
else:
    __getattr__, __dir__ = lazy_names(
        __name__,
        {
            "alro.building": ["build_alro_trainer", "build_ranker"],
            "alro.collator": ["RatedListCollator"],
            "alro.config": ["AlroConfig"],
            "alro.ordering": ["CandidateOrderingMixin"],
            "alro.rating": ["RatingStageConfig", "learn_ratings"],
            "alro.rating_rows": ["build_rating_rows"],
            "alro.reporting": ["conclude_ranking", "orders_table"],
            "alro.rows": ["build_rated_rows", "check_rankable", "held_out_rows", "rating_values"],
            "alro.trainer": ["AlroTrainer"],
            "base.catalog_ranking": ["CatalogRankingMixin"],
            "base.config": ["RecConfig"],
            "base.cost": ["announce_cost"],
            "base.metrics": ["BatchLoss", "Mean"],
            "base.prompt_tokens": ["announce_tokens"],
            "base.reporting": ["conclude", "save_run", "write_run"],
            "base.saving.model_card": ["Paper"],
            "base.trainer": ["RecTrainerMixin", "SecondsPerUser"],
            "bear.building": ["build_bear_trainer", "build_training_rows"],
            "bear.collator": ["NextItemCollator"],
            "bear.config": ["BearConfig"],
            "bear.tasks": ["TaskCollator"],
            "bear.trainer": ["BearTrainer"],
            "blade.building": ["build_blade_trainer"],
            "blade.collator": ["ListPromptCollator"],
            "blade.config": ["BladeConfig"],
            "blade.trainer": ["BladeTrainer"],
            "softmax_dpo.building": ["build_softmax_dpo_trainer"],
            "softmax_dpo.collator": ["PreferenceCollator"],
            "softmax_dpo.config": ["SoftmaxDPOConfig"],
            "softmax_dpo.rows": ["read_preferences"],
            "softmax_dpo.trainer": ["SoftmaxDPOTrainer"],
        },
    )
