"""Loads or makes models, adds item tokens, and computes logits at selected positions or for completions."""

from typing import TYPE_CHECKING

from trl_rec._lazy import lazy_names


__all__ = [
    "CompletionLogits",
    "RecModelConfig",
    "add_item_tokens",
    "build_model",
    "build_policy",
    "completion_logps",
    "legal_completion_logps",
    "load_model",
    "load_policy",
    "load_tokenizer",
    "loading_options",
    "logits_at",
    "lora_config",
    "make_model",
    "make_tokenizer",
    "read_completions",
    "start_from_vectors",
]

if TYPE_CHECKING:
    from trl_rec.models.building import RecModelConfig, build_model, build_policy, loading_options
    from trl_rec.models.completions import CompletionLogits, completion_logps, legal_completion_logps, read_completions
    from trl_rec.models.item_vectors import start_from_vectors
    from trl_rec.models.loading import load_model, load_policy, load_tokenizer
    from trl_rec.models.scratch import make_model, make_tokenizer
    from trl_rec.models.selection import logits_at
    from trl_rec.models.tokens import add_item_tokens, lora_config
else:
    __getattr__, __dir__ = lazy_names(
        __name__,
        {
            "building": ["RecModelConfig", "build_model", "build_policy", "loading_options"],
            "completions": ["CompletionLogits", "completion_logps", "legal_completion_logps", "read_completions"],
            "item_vectors": ["start_from_vectors"],
            "loading": ["load_model", "load_policy", "load_tokenizer"],
            "scratch": ["make_model", "make_tokenizer"],
            "selection": ["logits_at"],
            "tokens": ["add_item_tokens", "lora_config"],
        },
    )
