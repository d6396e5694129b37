"""Exports the ALRO trainer, which fine-tunes a model to order a list of rated candidates."""

from typing import TYPE_CHECKING

from trl_rec._lazy import lazy_names


__all__ = [
    "AlroConfig",
    "AlroTrainer",
    "CandidateOrderingMixin",
    "RatedListCollator",
    "RatingStageConfig",
    "build_alro_trainer",
    "build_ranker",
    "build_rated_rows",
    "build_rating_rows",
    "check_rankable",
    "conclude_ranking",
    "held_out_rows",
    "learn_ratings",
    "orders_table",
    "rating_values",
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
else:
    __getattr__, __dir__ = lazy_names(
        __name__,
        {
            "building": ["build_alro_trainer", "build_ranker"],
            "collator": ["RatedListCollator"],
            "config": ["AlroConfig"],
            "ordering": ["CandidateOrderingMixin"],
            "rating": ["RatingStageConfig", "learn_ratings"],
            "rating_rows": ["build_rating_rows"],
            "reporting": ["conclude_ranking", "orders_table"],
            "rows": ["build_rated_rows", "check_rankable", "held_out_rows", "rating_values"],
            "trainer": ["AlroTrainer"],
        },
    )
