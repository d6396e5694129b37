"""Trainers on TRL's: each a config, and a subclass that overrides as little as it can."""

from typing import TYPE_CHECKING

from trl_rec._lazy import lazy_names


__all__ = [
    "AlroConfig",
    "AlroTrainer",
    "BearConfig",
    "BearTrainer",
    "BladeConfig",
    "BladeTrainer",
    "ListPromptCollator",
    "NextItemCollator",
    "PreferenceCollator",
    "RatedListCollator",
    "RatingStageConfig",
    "RecConfig",
    "RecTrainerMixin",
    "SoftmaxDPOConfig",
    "SoftmaxDPOTrainer",
    "TaskCollator",
    "build_bear_trainer",
    "build_ranker",
    "build_rated_rows",
    "build_rating_rows",
    "build_training_rows",
    "conclude",
    "conclude_ranking",
    "held_out_rows",
    "learn_ratings",
    "orders_table",
    "rating_values",
    "check_rankable",
    "save_run",
    "write_run",
]

if TYPE_CHECKING:
    from trl_rec.trainer.alro.building import build_ranker
    from trl_rec.trainer.alro.collator import RatedListCollator
    from trl_rec.trainer.alro.config import AlroConfig
    from trl_rec.trainer.alro.lists import check_rankable
    from trl_rec.trainer.alro.rating import RatingStageConfig, learn_ratings
    from trl_rec.trainer.alro.rating_rows import build_rating_rows
    from trl_rec.trainer.alro.reporting import conclude_ranking, orders_table
    from trl_rec.trainer.alro.rows import build_rated_rows, held_out_rows, rating_values
    from trl_rec.trainer.alro.trainer import AlroTrainer
    from trl_rec.trainer.base.config import RecConfig
    from trl_rec.trainer.base.reporting import conclude, save_run, write_run
    from trl_rec.trainer.base.trainer import RecTrainerMixin
    from trl_rec.trainer.bear.building import build_bear_trainer
    from trl_rec.trainer.bear.collator import NextItemCollator
    from trl_rec.trainer.bear.config import BearConfig
    from trl_rec.trainer.bear.task_building import build_training_rows
    from trl_rec.trainer.bear.task_collator import TaskCollator
    from trl_rec.trainer.bear.trainer import BearTrainer
    from trl_rec.trainer.blade.collator import ListPromptCollator
    from trl_rec.trainer.blade.config import BladeConfig
    from trl_rec.trainer.blade.trainer import BladeTrainer
    from trl_rec.trainer.softmax_dpo.collator import PreferenceCollator
    from trl_rec.trainer.softmax_dpo.config import SoftmaxDPOConfig
    from trl_rec.trainer.softmax_dpo.trainer import SoftmaxDPOTrainer
else:
    __getattr__, __dir__ = lazy_names(
        __name__,
        {
            "alro.building": ["build_ranker"],
            "alro.collator": ["RatedListCollator"],
            "alro.config": ["AlroConfig"],
            "alro.lists": ["check_rankable"],
            "alro.rating": ["RatingStageConfig", "learn_ratings"],
            "alro.rating_rows": ["build_rating_rows"],
            "alro.reporting": ["conclude_ranking", "orders_table"],
            "alro.rows": ["build_rated_rows", "held_out_rows", "rating_values"],
            "alro.trainer": ["AlroTrainer"],
            "base.config": ["RecConfig"],
            "base.reporting": ["conclude", "save_run", "write_run"],
            "base.trainer": ["RecTrainerMixin"],
            "bear.building": ["build_bear_trainer"],
            "bear.collator": ["NextItemCollator"],
            "bear.config": ["BearConfig"],
            "bear.task_building": ["build_training_rows"],
            "bear.task_collator": ["TaskCollator"],
            "bear.trainer": ["BearTrainer"],
            "blade.collator": ["ListPromptCollator"],
            "blade.config": ["BladeConfig"],
            "blade.trainer": ["BladeTrainer"],
            "softmax_dpo.collator": ["PreferenceCollator"],
            "softmax_dpo.config": ["SoftmaxDPOConfig"],
            "softmax_dpo.trainer": ["SoftmaxDPOTrainer"],
        },
    )
