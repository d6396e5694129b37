"""The parts that all trainers of this package share."""

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
    "conclude",
    "save_run",
    "write_run",
]

if TYPE_CHECKING:
    from trl_rec.trainer.base.catalog_ranking import CatalogRankingMixin
    from trl_rec.trainer.base.config import RecConfig
    from trl_rec.trainer.base.cost import announce_cost
    from trl_rec.trainer.base.metrics import BatchLoss, Mean
    from trl_rec.trainer.base.model_card import Paper
    from trl_rec.trainer.base.reporting import conclude, save_run, write_run
    from trl_rec.trainer.base.trainer import RecTrainerMixin, SecondsPerUser
else:
    __getattr__, __dir__ = lazy_names(
        __name__,
        {
            "catalog_ranking": ["CatalogRankingMixin"],
            "config": ["RecConfig"],
            "cost": ["announce_cost"],
            "metrics": ["BatchLoss", "Mean"],
            "reporting": ["conclude", "save_run", "write_run"],
            "model_card": ["Paper"],
            "trainer": ["RecTrainerMixin", "SecondsPerUser"],
        },
    )
