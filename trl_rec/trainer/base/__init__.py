"""Exports what all trainers share: mixins, configs, metrics, and functions for the start and the end of a run."""

from typing import TYPE_CHECKING

from trl_rec._lazy import lazy_names


__all__ = [
    "BatchLoss",
    "CatalogRankingMixin",
    "Mean",
    "Paper",
    "RecConfig",
    "RecTrainerMixin",
    "SecondsPerUser",
    "announce_cost",
    "announce_tokens",
    "conclude",
    "save_run",
    "write_run",
]

if TYPE_CHECKING:
    from trl_rec.trainer.base.catalog_ranking import CatalogRankingMixin
    from trl_rec.trainer.base.config import RecConfig
    from trl_rec.trainer.base.cost import announce_cost
    from trl_rec.trainer.base.metrics import BatchLoss, Mean
    from trl_rec.trainer.base.prompt_tokens import announce_tokens
    from trl_rec.trainer.base.reporting import conclude, save_run, write_run
    from trl_rec.trainer.base.saving.model_card import Paper
    from trl_rec.trainer.base.trainer import RecTrainerMixin, SecondsPerUser
else:
    __getattr__, __dir__ = lazy_names(
        __name__,
        {
            "catalog_ranking": ["CatalogRankingMixin"],
            "config": ["RecConfig"],
            "cost": ["announce_cost"],
            "metrics": ["BatchLoss", "Mean"],
            "prompt_tokens": ["announce_tokens"],
            "reporting": ["conclude", "save_run", "write_run"],
            "saving.model_card": ["Paper"],
            "trainer": ["RecTrainerMixin", "SecondsPerUser"],
        },
    )
