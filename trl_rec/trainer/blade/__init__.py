"""Exports the BLADE trainer, which trains a policy to write lists of items with high rewards."""

from typing import TYPE_CHECKING

from trl_rec._lazy import lazy_names


__all__ = [
    "BladeConfig",
    "BladeTrainer",
    "ListPromptCollator",
    "build_blade_trainer",
]

if TYPE_CHECKING:
    from trl_rec.trainer.blade.building import build_blade_trainer
    from trl_rec.trainer.blade.collator import ListPromptCollator
    from trl_rec.trainer.blade.config import BladeConfig
    from trl_rec.trainer.blade.trainer import BladeTrainer
else:
    __getattr__, __dir__ = lazy_names(
        __name__,
        {
            "building": ["build_blade_trainer"],
            "collator": ["ListPromptCollator"],
            "config": ["BladeConfig"],
            "trainer": ["BladeTrainer"],
        },
    )
