"""Loads a model and its tokenizer from a hub id, a folder, or a GGUF file.

If a folder contains an adapter, both the base model and the adapter are loaded. A GGUF file, or a folder with a GGUF
file and no configuration, is converted by transformers, which requires the package `gguf`.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from peft import AutoPeftModelForCausalLM, PeftConfig, PeftModel
from safetensors import SafetensorError
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from trl_rec.compat import keep_differentiable, mark_unquantized, name_or_path
from trl_rec.models.embedding_dropout import add_embedding_dropout


def load_model(name_or_path: str | Path, **options: Any) -> PreTrainedModel:
    """Loads a causal language model, in evaluation mode.

    Args:
        name_or_path (`str` or `Path`): A hub id, a folder, or a GGUF file.
        options: Passed to `AutoModelForCausalLM.from_pretrained` (`dtype`, `device_map`, `attn_implementation`, ...).
    """
    _check_dtype(options.get("dtype"))
    source, gguf_options = _source(name_or_path)
    model: PreTrainedModel
    if (Path(source) / "adapter_config.json").is_file():
        with _readable(name_or_path, "model"):
            model = _with_adapter(source, **options).eval()
    else:
        with _readable(name_or_path, "model"):
            model = AutoModelForCausalLM.from_pretrained(source, **gguf_options, **options).eval()
        if gguf_options:  # transformers has dequantised the weights, but still marks the model as quantised
            mark_unquantized(model)
    add_embedding_dropout(model)
    return keep_differentiable(model)


def _check_dtype(dtype: object) -> None:
    """Raises `ValueError` if `dtype` is a string other than `"auto"` or the name of a floating-point type."""
    if not isinstance(dtype, str) or dtype == "auto":
        return
    kind = getattr(torch, dtype, None)
    if not isinstance(kind, torch.dtype) or not kind.is_floating_point:
        raise ValueError(f"dtype {dtype!r} is not a floating-point type of torch, such as float32 or bfloat16")


def _with_adapter(folder: str, **options: Any) -> Any:
    """Loads an adapter and its base model, with embeddings for all tokens of the folder's tokenizer."""
    base = str(PeftConfig.from_pretrained(folder).base_model_name_or_path)
    _, gguf_options = _source(base)
    if not gguf_options:
        return AutoPeftModelForCausalLM.from_pretrained(folder, **options)

    # PEFT cannot load a GGUF file as the base model.
    is_trainable = options.pop("is_trainable", False)
    return attach_adapter(load_model(base, **options), folder, is_trainable=is_trainable)


def attach_adapter(model: Any, folder: str, *, is_trainable: bool = False) -> PeftModel:
    """Puts an adapter from a folder onto a base model that is already loaded.

    If the folder's tokenizer has more tokens than the model has embeddings, embeddings are added first.
    """
    size = len(AutoTokenizer.from_pretrained(folder))
    if size > model.get_input_embeddings().num_embeddings:
        model.resize_token_embeddings(size)
    return PeftModel.from_pretrained(model, folder, is_trainable=is_trainable)


def load_policy(name_or_path: str | Path, **options: Any) -> PreTrainedModel:
    """Same as [`load_model`], except that a folder's adapter is trainable, so that training can continue."""
    if (Path(name_or_path) / "adapter_config.json").is_file():
        options["is_trainable"] = True
    return load_model(name_or_path, **options)


def load_tokenizer(name_or_path: str | Path, **options: Any) -> PreTrainedTokenizerBase:
    """Loads the model's tokenizer.

    The tokenizer is set to pad on the left, as decoding requires. If it has no padding token, EOS is used for padding.
    """
    source, gguf_options = _source(name_or_path)
    with _readable(name_or_path, "tokenizer"):
        tokenizer = AutoTokenizer.from_pretrained(source, **gguf_options, **options)
    tokenizer.padding_side = "left"

    if tokenizer.pad_token_id is None:
        if tokenizer.eos_token_id is None:
            raise ValueError(
                f"{name_or_path}: the tokenizer has neither a padding token nor an EOS token; set one of them and "
                "save the tokenizer again"
            )
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def find_tokenizer(
    model: str | PreTrainedModel | PeftModel, given: PreTrainedTokenizerBase | None, trust_remote_code: bool
) -> PreTrainedTokenizerBase:
    """Returns the tokenizer that a trainer was given, or else the tokenizer of the model.

    A given tokenizer without a padding token gets its EOS token as the padding token.
    """
    if given is not None:
        if given.pad_token is None and given.eos_token is not None:
            given.pad_token = given.eos_token  # TRL does the same, but only after our collator is made
        return given
    name = model if isinstance(model, str) else name_or_path(model)
    if not name:
        raise ValueError(
            "the model was not loaded from a folder or hub id, so its tokenizer is unknown; pass processing_class"
        )
    return load_tokenizer(name, trust_remote_code=trust_remote_code or None)


@contextmanager
def _readable(name_or_path: str | Path, part: str) -> Iterator[None]:
    """Converts errors about missing or damaged files to a `ValueError` that names the model."""
    try:
        yield
    except Exception as error:
        # The package `tokenizers` raises a bare Exception for a file that is not in its format.
        is_damaged = isinstance(
            error, OSError | KeyError | SafetensorError | json.JSONDecodeError | UnicodeDecodeError
        )
        if not is_damaged and type(error) is not Exception:
            raise
        reason = str(error).strip().split("\n", 1)[0].rstrip(".")
        raise ValueError(
            f"the {part} of {name_or_path} cannot be loaded: {reason}; give a hub id, or a folder with complete files"
        ) from error


def _source(name_or_path: str | Path) -> tuple[str, dict[str, str]]:
    """Returns the folder or hub id to load from, and the options that name the GGUF file (empty if none is loaded)."""
    path = Path(name_or_path)
    if path.suffix == ".gguf" and path.is_file():
        return str(path.parent), {"gguf_file": path.name}

    if path.is_dir() and not any((path / name).is_file() for name in ("config.json", "adapter_config.json")):
        files = sorted(path.glob("*.gguf"))
        if len(files) != 1:
            raise ValueError(
                f"{path} contains neither config.json nor exactly one GGUF file; give the folder, file or hub id of "
                "a model"
            )
        return str(path), {"gguf_file": files[0].name}

    return str(name_or_path), {}
