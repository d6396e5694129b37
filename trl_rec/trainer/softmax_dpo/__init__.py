"""Exports the Softmax-DPO trainer, which trains on preferences with several rejected completions per prompt."""

from typing import TYPE_CHECKING

from trl_rec._lazy import lazy_names


__all__ = [
    "PreferenceCollator",
    "SoftmaxDPOConfig",
    "SoftmaxDPOTrainer",
    "build_softmax_dpo_trainer",
    "preference_rows",
    "read_preferences",
]

if TYPE_CHECKING:
    from trl_rec.trainer.softmax_dpo.building import build_softmax_dpo_trainer
    from trl_rec.trainer.softmax_dpo.collator import PreferenceCollator
    from trl_rec.trainer.softmax_dpo.config import SoftmaxDPOConfig
    from trl_rec.trainer.softmax_dpo.rows import preference_rows, read_preferences
    from trl_rec.trainer.softmax_dpo.trainer import SoftmaxDPOTrainer
else:
    __getattr__, __dir__ = lazy_names(
        __name__,
        {
            "building": ["build_softmax_dpo_trainer"],
            "collator": ["PreferenceCollator"],
            "config": ["SoftmaxDPOConfig"],
            "rows": ["preference_rows", "read_preferences"],
            "trainer": ["SoftmaxDPOTrainer"],
        },
    )
