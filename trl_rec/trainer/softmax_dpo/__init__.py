"""Softmax-DPO: preference training with one chosen and several rejected completions."""

from typing import TYPE_CHECKING

from trl_rec._lazy import lazy_names


__all__ = [
    "PreferenceCollator",
    "SoftmaxDPOConfig",
    "SoftmaxDPOTrainer",
    "preference_rows",
]

if TYPE_CHECKING:
    from trl_rec.trainer.softmax_dpo.collator import PreferenceCollator
    from trl_rec.trainer.softmax_dpo.config import SoftmaxDPOConfig
    from trl_rec.trainer.softmax_dpo.rows import preference_rows
    from trl_rec.trainer.softmax_dpo.trainer import SoftmaxDPOTrainer
else:
    __getattr__, __dir__ = lazy_names(
        __name__,
        {
            "collator": ["PreferenceCollator"],
            "config": ["SoftmaxDPOConfig"],
            "rows": ["preference_rows"],
            "trainer": ["SoftmaxDPOTrainer"],
        },
    )
