"""Turns an interaction log into a dataset folder, and a dataset folder into training rows."""

from typing import TYPE_CHECKING

from trl_rec._lazy import lazy_names


__all__ = [
    "FetchError",
    "PromptFormat",
    "RecDataset",
    "build_list_rows",
    "build_rows",
    "build_task_rows",
    "item_texts",
    "list_targets",
    "load",
    "prepare",
    "task_texts",
    "user_profiles",
]

if TYPE_CHECKING:
    from trl_rec.data.dataset import RecDataset, load
    from trl_rec.data.list_rows import build_list_rows, list_targets
    from trl_rec.data.preparation.preparing import prepare
    from trl_rec.data.profiles import item_texts, user_profiles
    from trl_rec.data.prompts import PromptFormat
    from trl_rec.data.readers.fetching import FetchError
    from trl_rec.data.rows import build_rows
    from trl_rec.data.tasks.rows import build_task_rows, task_texts
else:
    __getattr__, __dir__ = lazy_names(
        __name__,
        {
            "dataset": ["RecDataset", "load"],
            "list_rows": ["build_list_rows", "list_targets"],
            "preparation.preparing": ["prepare"],
            "profiles": ["item_texts", "user_profiles"],
            "prompts": ["PromptFormat"],
            "readers.fetching": ["FetchError"],
            "rows": ["build_rows"],
            "tasks.rows": ["build_task_rows", "task_texts"],
        },
    )
