"""What a model computes for us: loading it and its tokenizer."""

from trl_rec._lazy import lazy_names


__all__ = ["load_model", "load_tokenizer"]
__getattr__, __dir__ = lazy_names(__name__, {"load_model": "loading", "load_tokenizer": "loading"})
