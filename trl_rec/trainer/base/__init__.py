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
    "conclude",
    "save_run",
    "write_run",
]

if TYPE_CHECKING:
    from trl_rec.trainer.base.catalog_ranking import CatalogRankingMixin
    from trl_rec.trainer.base.config import RecConfig
    from trl_rec.trainer.base.metrics import BatchLoss, Mean
    from trl_rec.trainer.base.model_card import Paper
    from trl_rec.trainer.base.reporting import conclude, save_run, write_run
    from trl_rec.trainer.base.trainer import RecTrainerMixin
else:
    __getattr__, __dir__ = lazy_names(
        __name__,
        {
            "catalog_ranking": ["CatalogRankingMixin"],
            "config": ["RecConfig"],
            "metrics": ["BatchLoss", "Mean"],
            "reporting": ["conclude", "save_run", "write_run"],
            "model_card": ["Paper"],
            "trainer": ["RecTrainerMixin"],
        },
    )
