"""Loads a model with its adapter merged into the weights of the base model, so that it can be used without PEFT.

A base model that was saved with quantised weights (such as nf4) is dequantised before the adapter is merged, because
the merged weights would otherwise be rounded to the few values that the quantised weights can have.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from peft import PeftConfig
from transformers import PreTrainedModel

from trl_rec.compat import dequantized
from trl_rec.models.loading import attach_adapter, load_model


def load_merged(name_or_path: str | Path, **options: Any) -> PreTrainedModel:
    """Loads a causal language model in evaluation mode, merges its adapter if it has one, and undoes quantisation.

    The logits equal those of the model that [`load_model`] loads, up to rounding. Both functions load the base model
    as it was saved, even if the adapter was trained with `load_in_4bit`.

    Raises `ValueError` if the adapter cannot be merged, or if the base model cannot be dequantised.

    Args:
        name_or_path (`str` or `Path`): A folder, with or without an adapter; or the hub id or GGUF file of a model
            without an adapter.
        options: Passed to the `from_pretrained` of the base model (`dtype`, `device_map`, ...).
    """
    # 1. Load the base model, and dequantise it before the adapter is put onto it, because the classes of the adapter's
    # layers depend on the layers that the base model has at that time.
    adapter = PeftConfig.from_pretrained(str(name_or_path)) if _has_adapter(name_or_path) else None
    if adapter is None:
        model: Any = load_model(name_or_path, **options)
    else:
        revision = {} if adapter.revision is None else {"revision": adapter.revision}
        model = load_model(str(adapter.base_model_name_or_path), **revision, **options)
    if getattr(model, "is_quantized", False):
        model = _dequantized(model, name_or_path)
    if adapter is None:
        return model  # type: ignore[no-any-return]

    # 2. Merge the adapter. PEFT cannot merge the adapters of prompt learning, which add no weights to layers.
    model = attach_adapter(model, str(name_or_path))
    merge = getattr(model, "merge_and_unload", None)
    try:
        if merge is None:
            raise NotImplementedError("it adds no weights to layers")
        merged: PreTrainedModel = merge(safe_merge=True)
    except (ValueError, NotImplementedError) as error:
        reason = str(error).split("\n", 1)[0].rstrip(".")
        raise ValueError(
            f"the adapter in {name_or_path} ({adapter.peft_type.value}) cannot be merged into its base model: "
            f"{reason}; use it with PEFT instead"
        ) from error
    merged.eval()
    return merged


def _has_adapter(name_or_path: str | Path) -> bool:
    """Returns whether a folder contains an adapter."""
    return (Path(name_or_path) / "adapter_config.json").is_file()


def _dequantized(model: Any, name: str | Path) -> Any:
    """Returns a model with ordinary weights in place of quantised weights."""
    method = model.config.quantization_config.quant_method
    method = getattr(method, "value", method)
    try:
        return dequantized(model).eval()
    except (NotImplementedError, ValueError) as error:
        raise ValueError(
            f"the model of {name} is quantised with {method}, which transformers cannot undo; "
            "use the model as it is, or train on a base model that is not quantised"
        ) from error
