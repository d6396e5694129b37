"""Trainers on TRL's: each a config, and a subclass that overrides as little as it can."""

from trl_rec._lazy import lazy_names


__all__ = [
    "BearConfig",
    "BearTrainer",
    "BladeConfig",
    "BladeTrainer",
    "ListPromptCollator",
    "NextItemCollator",
    "PreferenceCollator",
    "RecConfig",
    "RecTrainerMixin",
    "SoftmaxDPOConfig",
    "SoftmaxDPOTrainer",
    "conclude",
    "save_run",
    "write_run",
]
__getattr__, __dir__ = lazy_names(
    __name__,
    {
        "BearConfig": "bear_config",
        "BearTrainer": "bear_trainer",
        "BladeConfig": "blade_config",
        "BladeTrainer": "blade_trainer",
        "ListPromptCollator": "list_prompt_collator",
        "NextItemCollator": "collator",
        "PreferenceCollator": "preference_collator",
        "RecConfig": "rec_config",
        "RecTrainerMixin": "rec_trainer",
        "SoftmaxDPOConfig": "softmax_dpo_config",
        "SoftmaxDPOTrainer": "softmax_dpo_trainer",
        "conclude": "conclusion",
        "save_run": "conclusion",
        "write_run": "conclusion",
    },
)
