"""A log becomes a dataset folder, and a dataset folder becomes rows to train on."""

from trl_rec._lazy import lazy_names


__all__ = ["FetchError", "PromptFormat", "RecDataset", "build_list_rows", "build_rows", "list_targets", "load", "prepare"]
__getattr__, __dir__ = lazy_names(
    __name__,
    {
        "FetchError": "readers.fetching",
        "PromptFormat": "prompts",
        "RecDataset": "dataset",
        "build_list_rows": "list_rows",
        "build_rows": "rows",
        "list_targets": "list_rows",
        "load": "dataset",
        "prepare": "preparation",
    },
)
