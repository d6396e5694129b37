"""Trainers on TRL's: each a config, and a subclass that overrides as little as it can."""

from trl_rec._lazy import lazy_names


__all__ = ["BearConfig", "BearTrainer", "NextItemCollator", "RecConfig", "RecTrainerMixin", "conclude"]
__getattr__, __dir__ = lazy_names(
    __name__,
    {
        "BearConfig": "bear_config",
        "BearTrainer": "bear_trainer",
        "NextItemCollator": "collator",
        "RecConfig": "rec_config",
        "RecTrainerMixin": "rec_trainer",
        "conclude": "conclusion",
    },
)
