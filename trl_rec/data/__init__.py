"""A log becomes a dataset folder, and a dataset folder becomes rows to train on."""

from trl_rec._lazy import lazy_names


__all__ = [
    "FetchError",
    "PromptFormat",
    "RatedPromptFormat",
    "RecDataset",
    "build_list_rows",
    "build_rated_rows",
    "build_rating_rows",
    "build_rows",
    "build_task_rows",
    "held_out_rows",
    "item_texts",
    "list_targets",
    "load",
    "prepare",
    "rated_tokens",
    "rating_values",
    "task_texts",
    "user_profiles",
]
__getattr__, __dir__ = lazy_names(
    __name__,
    {
        "FetchError": "readers.fetching",
        "PromptFormat": "prompts",
        "RatedPromptFormat": "rated_prompts",
        "RecDataset": "dataset",
        "build_list_rows": "list_rows",
        "build_rated_rows": "rated_rows",
        "build_rating_rows": "rating_rows",
        "build_rows": "rows",
        "build_task_rows": "task_rows",
        "held_out_rows": "rated_rows",
        "item_texts": "profiles",
        "list_targets": "list_rows",
        "load": "dataset",
        "prepare": "preparation",
        "rated_tokens": "rated_prompts",
        "rating_values": "rated_rows",
        "task_texts": "task_rows",
        "user_profiles": "profiles",
    },
)
