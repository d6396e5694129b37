"""Exports the BEAR trainer, which fine-tunes a model so that beam search keeps each target token."""

from typing import TYPE_CHECKING

from trl_rec._lazy import lazy_names


__all__ = [
    "BearConfig",
    "BearTrainer",
    "NextItemCollator",
    "TaskCollator",
    "build_bear_trainer",
    "build_training_rows",
]

if TYPE_CHECKING:
    from trl_rec.trainer.bear.building import build_bear_trainer, build_training_rows
    from trl_rec.trainer.bear.collator import NextItemCollator
    from trl_rec.trainer.bear.config import BearConfig
    from trl_rec.trainer.bear.tasks import TaskCollator
    from trl_rec.trainer.bear.trainer import BearTrainer
else:
    __getattr__, __dir__ = lazy_names(
        __name__,
        {
            "building": ["build_bear_trainer", "build_training_rows"],
            "collator": ["NextItemCollator"],
            "config": ["BearConfig"],
            "tasks": ["TaskCollator"],
            "trainer": ["BearTrainer"],
        },
    )
