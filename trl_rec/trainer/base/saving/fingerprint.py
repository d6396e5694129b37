"""Computes the fingerprint of a run: entries for all settings, rows, items and models that affect the trained weights.

Checkpoints record the fingerprint. On resume, it is compared with the fingerprint of the current run, and an error
names the first entry that differs. The number of epochs and the settings of logging, saving, evaluation, speed and
memory are not included, so they may change when a run is resumed. `schedule/plan.py` also uses the entries of settings
and items, so that a training in stages cannot be resumed with other settings or items.

Reward functions, callbacks and the trainer's code are not included, because their content cannot be compared. Under
ZeRO-3, only the weights held by the main process are compared. The values of 4-bit and 8-bit weights and of DTensors
are not compared.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Iterable, Mapping
from dataclasses import fields
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from datasets import Dataset
from peft import PeftModel
from torch import nn
from trl import DPOConfig, SFTConfig

from trl_rec.compat import BACKPORTED_FIELDS, held_weights
from trl_rec.items import ItemCatalog


if TYPE_CHECKING:
    from transformers import TrainingArguments

    from trl_rec.trainer.base.config import RecConfig

Entries = dict[str, Any]

# Fields of TRL's and transformers' configurations on which the weights at a given step depend. These weights also
# depend on every field that trl_rec adds, unless a config lists it in `may_change`. The other inherited fields only
# affect evaluation, saving, speed, memory, logging or where files are written. There are two exceptions. The batch
# size is not listed, because `run_entries` records it separately. The number of epochs or steps is not listed, because
# it may change on resume, although the learning rate schedule depends on it.
DECIDING = (
    # the rows and their order
    "max_length",
    "seed",
    "data_seed",
    "shuffle_dataset",
    "train_sampling_strategy",
    "length_column_name",
    "dataloader_drop_last",
    "dataloader_in_order",
    "accelerator_config",
    "ignore_data_skip",
    # the loss
    "beta",
    "disable_dropout",
    "neftune_noise_alpha",
    "router_aux_loss_coef",
    "label_smoothing_factor",
    "average_tokens_across_devices",
    # the optimizer
    "optim",
    "optim_args",
    "optim_target_modules",
    "learning_rate",
    "lr_scheduler_type",
    "lr_scheduler_kwargs",
    "warmup_steps",
    "weight_decay",
    "adam_beta1",
    "adam_beta2",
    "adam_epsilon",
    "max_grad_norm",
    # the number format
    "bf16",
    "fp16",
    "tf32",
    # the tokenizer
    "eos_token",
    "chat_template_path",
)
DIGEST = "blake2b:"  # prefix of the hashes that messages do not show
SAMPLE = 1024  # number of hashed values per parameter; few suffice, because two models differ almost everywhere
# Keys of a model's configuration that do not affect what the model computes.
CONFIG_NOISE = ("architectures", "dtype", "torch_dtype", "transformers_version", "use_cache")
# Keys of an adapter's configuration that do not affect what it computes. The name of the base model is one of them,
# because the base model is compared by its weights.
ADAPTER_NOISE = ("peft_version", "inference_mode", "base_model_name_or_path")
ROWS_AT_ONCE = 10_000  # number of rows that are hashed together, to limit memory


def difference(old: Mapping[str, Any], new: Mapping[str, Any]) -> str | None:
    """Returns the name of the first entry that differs, with both values unless they begin with `DIGEST`.

    Returns None if no entry differs. Entries that are in only one of the two mappings are ignored, because not all
    releases record the same entries.
    """
    for name in old:
        if name in new and old[name] != new[name]:
            values = "" if str(old[name]).startswith(DIGEST) else f" ({old[name]!r} there, {new[name]!r} now)"
            return f"{name}{values}"
    return None


def as_json(entries: Mapping[str, Any]) -> Entries:
    """Returns the entries as they are after a round trip through a JSON file."""
    plain: Entries = json.loads(json.dumps(entries, default=_to_json))
    return plain


def setting_entries(config: TrainingArguments, inherited: Collection[str]) -> Entries:
    """Returns the values of the fields that trl_rec adds to a trainer's configuration, and of those in `inherited`."""
    of_parents = {one.name for base in (SFTConfig, DPOConfig) for one in fields(base)}.union(BACKPORTED_FIELDS)
    return {name: value for name, value in config.to_dict().items() if name in inherited or name not in of_parents}


def run_entries(config: RecConfig, num_processes: int) -> Entries:
    """Returns the settings of a run that determine its weights at any given step.

    Args:
        config: The configuration.
        num_processes: Number of processes. On resume, it may differ if the number of rows per step is the same and
            rows are not grouped by length.
    """
    entries = setting_entries(config, DECIDING)
    for name in config.may_change:
        entries.pop(name, None)
    if config.list_length is None:  # with a list_length, eval_exclude_history affects training too
        entries.pop("eval_exclude_history", None)

    # If rows are grouped by length, their order depends on the number of rows per process and step.
    rows = config.per_device_train_batch_size * config.gradient_accumulation_steps
    if config.train_sampling_strategy not in ("random", "sequential"):
        entries["rows per process and step"] = rows
    return {"rows per step of all processes": rows * num_processes, **entries}


def catalog_entries(catalog: ItemCatalog) -> Entries:
    """Returns the entries for the items and for the texts that represent items and users."""
    texts = [*catalog.surfaces, *catalog.user_surfaces]
    return {
        "items": catalog.fingerprint,
        "surface": catalog.surface,
        "semantic_ids": hashlib.sha256("\0".join(texts).encode()).hexdigest()[:16],
    }


def row_entries(rows: Dataset, columns: Iterable[str]) -> Entries:
    """Returns the number of rows, and a hash of each column's content. Takes 10 to 20 ms per million integers.

    Args:
        rows: The rows. Columns are compared by content, so how they are divided into chunks does not matter.
        columns: Names of the columns that the run reads. Names of columns that do not exist are ignored.
    """
    names = sorted(set(columns) & set(rows.column_names))
    digests = {name: hashlib.blake2b(digest_size=16) for name in names}
    if names:
        for table in rows.select_columns(names).with_format("arrow").iter(ROWS_AT_ONCE):
            for name in names:
                update_by_content(digests[name], table[name].combine_chunks())
    columns_entry = {f"training rows, column {name}": DIGEST + digest.hexdigest() for name, digest in digests.items()}
    return {"number of training rows": len(rows), **columns_entry}


def update_by_content(digest: hashlib.blake2b, array: pa.Array) -> None:
    """Updates a hash with the values of an array. The hash does not depend on how Arrow stores the values."""
    if pa.types.is_dictionary(array.type):
        array = array.dictionary_decode()
    digest.update(f"{len(array)} {array.null_count} ".encode())
    # Add the places of missing values, then drop these values.
    if array.null_count:
        digest.update(np.packbits(array.is_valid().to_numpy(zero_copy_only=False)).tobytes())
        array = array.drop_null()

    # For nested types, add the lengths or field names, then the nested values.
    kind = array.type
    if pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind):
        digest.update(pc.list_value_length(array).cast(pa.int64()).to_numpy(zero_copy_only=False).tobytes())
        update_by_content(digest, array.flatten())
    elif pa.types.is_struct(kind):
        for field, values in zip(kind, array.flatten(), strict=True):
            digest.update(field.name.encode())
            update_by_content(digest, values)
    elif pa.types.is_string(kind) or pa.types.is_large_string(kind):
        update_by_content(digest, array.cast(pa.large_binary()))
    elif pa.types.is_binary(kind) or pa.types.is_large_binary(kind):
        digest.update(pc.binary_length(array).cast(pa.int64()).to_numpy(zero_copy_only=False).tobytes())
        digest.update(b"".join(array.to_pylist()))
    else:
        values = array.to_numpy(zero_copy_only=False)
        plain = values.dtype != object
        digest.update(f"{kind} ".encode())
        digest.update(np.ascontiguousarray(values).view(np.uint8).data if plain else repr(values.tolist()).encode())


def model_entries(model: nn.Module, name: str) -> Entries:
    """Returns entries for a model's configuration and adapters, and a hash of a sample of its weights.

    The weights of an adapter that is being trained are left out, because PEFT initialises them randomly and resuming
    replaces them.

    Args:
        model: The unwrapped model before the first step, a `PreTrainedModel` or `PeftModel`.
        name: Name of the model in messages.
    """
    model_config: Any = model.config
    config = {key: value for key, value in model_config.to_dict().items() if not key.startswith("_")}
    entries: Entries = {f"{name} config {key}": value for key, value in config.items() if key not in CONFIG_NOISE}
    if isinstance(model, PeftModel):
        for adapter, options in model.peft_config.items():
            settings = {key: value for key, value in options.to_dict().items() if key not in ADAPTER_NOISE}
            entries[f"adapter {adapter} of the {name}"] = settings
    entries[f"weights of the {name} before the first step"] = DIGEST + _weights_digest(model)
    return entries


def _weights_digest(model: nn.Module) -> str:
    """Returns a hash of the names, the types and a sample of the values of a model's weights."""
    digest = hashlib.blake2b(digest_size=16)
    for name, parameter in model.named_parameters():
        digest.update(f"{name} {parameter.dtype} ".encode())
        if isinstance(model, PeftModel) and parameter.requires_grad:
            continue
        held = held_weights(parameter).detach()
        # Skip quantised weights, which are packed differently on CPUs and GPUs, and DTensors, of which this process
        # holds only a part.
        if not held.is_floating_point() or held.is_meta or hasattr(held, "to_local"):
            continue
        sample = held.flatten()[:: max(held.numel() // SAMPLE, 1)][:SAMPLE]
        digest.update(sample.to("cpu", torch.float32).numpy().tobytes())
    return digest.hexdigest()


def _to_json(value: object) -> object:
    """Converts a value that `json.dumps` does not support to a type that it supports."""
    if isinstance(value, set):  # such as target modules, whose order varies
        return sorted(value)
    to_dict = getattr(value, "to_dict", None)
    if callable(to_dict):  # such as a quantisation configuration
        return to_dict()
    return str(value)  # such as a dtype
