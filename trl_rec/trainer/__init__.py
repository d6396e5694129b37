"""Trainers on TRL's: each a config, and a subclass that overrides as little as it can."""

from trl_rec._lazy import lazy_names


__all__ = [
    "AlroConfig",
    "AlroTrainer",
    "BearConfig",
    "BearTrainer",
    "BladeConfig",
    "BladeTrainer",
    "ListPromptCollator",
    "NextItemCollator",
    "PreferenceCollator",
    "RatedListCollator",
    "RecConfig",
    "RecTrainerMixin",
    "SoftmaxDPOConfig",
    "SoftmaxDPOTrainer",
    "build_ranker",
    "conclude",
    "conclude_ranking",
    "orders_table",
    "save_run",
    "write_run",
]
__getattr__, __dir__ = lazy_names(
    __name__,
    {
        "AlroConfig": "alro_config",
        "AlroTrainer": "alro_trainer",
        "BearConfig": "bear_config",
        "BearTrainer": "bear_trainer",
        "BladeConfig": "blade_config",
        "BladeTrainer": "blade_trainer",
        "ListPromptCollator": "list_prompt_collator",
        "NextItemCollator": "collator",
        "PreferenceCollator": "preference_collator",
        "RatedListCollator": "alro_collator",
        "RecConfig": "rec_config",
        "RecTrainerMixin": "rec_trainer",
        "SoftmaxDPOConfig": "softmax_dpo_config",
        "SoftmaxDPOTrainer": "softmax_dpo_trainer",
        "build_ranker": "alro_building",
        "conclude": "conclusion",
        "conclude_ranking": "alro_conclusion",
        "orders_table": "alro_conclusion",
        "save_run": "conclusion",
        "write_run": "conclusion",
    },
)
