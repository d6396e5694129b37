"""What a model computes for us: loading or making it, its item tokens, and logits at chosen positions."""

from trl_rec._lazy import lazy_names


__all__ = [
    "CompletionLogits",
    "RecModelConfig",
    "add_item_tokens",
    "build_model",
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
]
__getattr__, __dir__ = lazy_names(
    __name__,
    {
        "CompletionLogits": "completions",
        "RecModelConfig": "building",
        "add_item_tokens": "tokens",
        "build_model": "building",
        "completion_logps": "completions",
        "legal_completion_logps": "completions",
        "load_model": "loading",
        "load_policy": "loading",
        "load_tokenizer": "loading",
        "loading_options": "building",
        "logits_at": "selection",
        "lora_config": "tokens",
        "make_model": "scratch",
        "make_tokenizer": "scratch",
        "read_completions": "completions",
    },
)
