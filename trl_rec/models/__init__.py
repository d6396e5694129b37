"""What a model computes for us: loading or making it, its item tokens, and logits at chosen positions."""

from trl_rec._lazy import lazy_names


__all__ = [
    "RecModelConfig",
    "add_item_tokens",
    "build_model",
    "load_model",
    "load_tokenizer",
    "logits_at",
    "lora_config",
    "make_model",
    "make_tokenizer",
]
__getattr__, __dir__ = lazy_names(
    __name__,
    {
        "RecModelConfig": "building",
        "add_item_tokens": "tokens",
        "build_model": "building",
        "load_model": "loading",
        "load_tokenizer": "loading",
        "logits_at": "selection",
        "lora_config": "tokens",
        "make_model": "scratch",
        "make_tokenizer": "scratch",
    },
)
