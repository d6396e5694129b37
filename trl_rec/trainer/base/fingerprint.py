"""The fingerprint of a run: entries for the settings, rows, items and models that determine the trained weights.

Checkpoints record the fingerprint. On resume, it is compared with the fingerprint of the current run, and an error
names the entry that differs. Settings of epochs, logging, saving, evaluation, speed and memory are not included, so
they may change when a run is resumed. `schedule/plan.py` uses the same entries.

Reward functions, callbacks and the trainer's code are not included, because their content cannot be compared. Under
ZeRO-3, only the weights held by the main process are compared. Weights of 4-bit and 8-bit layers are not compared.
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

Entries = dict[str, Any]

# Fields of TRL's and transformers' configurations that decide the weights after a number of steps. The fields that
# trl_rec adds all do, except those that a config lists as `may_change`. Any other inherited field only decides speed,
# memory, logging or where files go.
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
DIGEST = "blake2b:"  # begins the value of an entry that is a hash, and that no message shows
SAMPLE = 1024  # values that are compared per parameter: another model differs nearly everywhere
# Keys of a model's configuration that say nothing about what it computes.
CONFIG_NOISE = ("architectures", "dtype", "torch_dtype", "transformers_version", "use_cache")
# The same for an adapter, whose base model is compared by its weights.
ADAPTER_NOISE = ("peft_version", "inference_mode", "base_model_name_or_path")
ROWS_AT_ONCE = 10_000


def difference(old: Mapping[str, Any], new: Mapping[str, Any]) -> str | None:
    """Names the first entry that differs, with both values. Returns None if there is no such entry.

    Entries that only one of the two has are ignored, because they come from another release.
    """
    for name in old:
        if name in new and old[name] != new[name]:
            values = "" if str(old[name]).startswith(DIGEST) else f" ({old[name]!r} there, {new[name]!r} now)"
            return f"{name}{values}"
    return None


def as_json(entries: Mapping[str, Any]) -> Entries:
    """The entries as they are when they have been written to a JSON file and read again."""
    plain: Entries = json.loads(json.dumps(entries, default=_to_json))
    return plain


def setting_entries(config: TrainingArguments, inherited: Collection[str]) -> Entries:
    """The fields of a trainer's configuration that are in `inherited`, or that trl_rec adds."""
    of_parents = {one.name for base in (SFTConfig, DPOConfig) for one in fields(base)}.union(BACKPORTED_FIELDS)
    return {name: value for name, value in config.to_dict().items() if name in inherited or name not in of_parents}


def run_entries(config: Any, num_processes: int) -> Entries:
    """The settings of a run that decide its weights, wherever it is stopped.

    Args:
        config: The configuration, a [`RecConfig`] that is a config of TRL too.
        num_processes: Number of processes. Another number gives the same weights if the global batch is the same.
    """
    entries = setting_entries(config, DECIDING)
    for name in config.may_change:
        entries.pop(name, None)
    if config.list_length is None:  # with it, items of the history are not legal in training either
        entries.pop("eval_exclude_history", None)

    # An order by lengths is made within each process's batches.
    rows = config.per_device_train_batch_size * config.gradient_accumulation_steps
    if config.train_sampling_strategy not in ("random", "sequential"):
        entries["rows per process and step"] = rows
    return {"rows per step of all processes": rows * num_processes, **entries}


def catalog_entries(catalog: ItemCatalog) -> Entries:
    """The items, and how they are written."""
    texts = [*catalog.surfaces, *catalog.user_surfaces]
    return {
        "items": catalog.fingerprint,
        "surface": catalog.surface,
        "semantic_ids": hashlib.sha256("\0".join(texts).encode()).hexdigest()[:16],
    }


def row_entries(rows: Dataset, columns: Iterable[str]) -> Entries:
    """The number of rows, and a hash of each column's content. It takes 10 to 20 ms per million integers.

    Args:
        rows: The rows. Columns are compared by content: how they are cut into chunks makes no difference.
        columns: Names of columns that the run reads. Those that the rows do not have are left out.
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
    """Adds the values of an array to a hash. The hash does not depend on how Arrow stores the values."""
    if isinstance(array, pa.ChunkedArray):  # `combine_chunks` of an empty column
        array = pa.concat_arrays(array.chunks) if array.num_chunks else pa.array([], array.type)
    if pa.types.is_dictionary(array.type):
        array = array.dictionary_decode()
    digest.update(f"{len(array)} {array.null_count} ".encode())
    if array.null_count:
        digest.update(np.packbits(array.is_valid().to_numpy(zero_copy_only=False)).tobytes())
        array = array.drop_null()

    # Nested types: the lengths or names, then the values inside.
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


def model_entries(model: Any, name: str) -> Entries:
    """A model's configuration, its adapters, and a hash of a sample of its weights.

    The weights of an adapter that is trained are left out: PEFT makes them at random, and a resume replaces them.

    Args:
        model: The model before the first step, not wrapped.
        name: What messages call the model.
    """
    config = {key: value for key, value in model.config.to_dict().items() if not key.startswith("_")}
    entries: Entries = {f"{name} config {key}": value for key, value in config.items() if key not in CONFIG_NOISE}
    if isinstance(model, PeftModel):
        for adapter, options in model.peft_config.items():
            told = {key: value for key, value in options.to_dict().items() if key not in ADAPTER_NOISE}
            entries[f"adapter {adapter} of the {name}"] = told
    entries[f"weights of the {name} before the first step"] = DIGEST + _weights_digest(model)
    return entries


def _weights_digest(model: nn.Module) -> str:
    digest = hashlib.blake2b(digest_size=16)
    for name, parameter in model.named_parameters():
        digest.update(f"{name} {parameter.dtype} ".encode())
        if isinstance(model, PeftModel) and parameter.requires_grad:
            continue
        held = held_weights(parameter).detach()
        # Quantised weights are packed differently on other devices, and sharded ones are not all here.
        if not held.is_floating_point() or held.is_meta or hasattr(held, "to_local"):
            continue
        sample = held.flatten()[:: max(held.numel() // SAMPLE, 1)][:SAMPLE]
        digest.update(sample.to("cpu", torch.float32).numpy().tobytes())
    return digest.hexdigest()


def _to_json(value: Any) -> Any:
    """A plain form of a value that JSON cannot write."""
    if isinstance(value, set):  # target modules, in no fixed order
        return sorted(value)
    if callable(getattr(value, "to_dict", None)):  # a quantisation configuration
        return value.to_dict()
    return str(value)  # a number format
