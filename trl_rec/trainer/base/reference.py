"""Manages the reference, the policy that BLADE and preference training compare the trained policy with.

Also stores the log-probabilities of the reference. By default, a model with an adapter is its own reference. If the
trainer added the adapter (`peft_config`), the reference is the model with its adapter switched off. If the model
already had an adapter, the reference is the model with a frozen copy of this adapter, named "ref", which TRL makes
before training.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from copy import deepcopy
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from accelerate.utils import gather_object
from datasets import Dataset
from peft import PeftConfig, PeftModel
from torch import nn
from transformers import PreTrainedModel

from trl_rec.compat import REF_ADAPTER, held_weights, is_deepspeed_zero3_enabled, is_quantized_layer
from trl_rec.files import atomic_file
from trl_rec.trainer.base.trainer import RecTrainerMixin


class ReferenceMixin(RecTrainerMixin):
    """Mixin for trainers that compare the policy with a reference.

    The reference is a separate model, or the policy with its adapter switched off or replaced.

    Attributes:
        ref_model (`PreTrainedModel` or `None`): The separate model, possibly wrapped by an engine, or None if the
            policy is its own reference. Compare it with `is None`, because a compiled model has no truth value.
    """

    ref_model: Any

    def reference_of(self, policy: nn.Module) -> nn.Module:
        """Returns the model that computes the reference's outputs: `ref_model` if it is not None, else the policy."""
        reference: nn.Module = policy if self.ref_model is None else self.ref_model
        return reference

    def switched_to_reference(self, model: nn.Module) -> AbstractContextManager[None]:
        """Inside the block, a model from [`~ReferenceMixin.reference_of`] uses the adapters of the reference."""
        return nullcontext() if self.ref_model is not None else as_reference(self.bare(model))

    @contextmanager
    def computing_reference(self, model: nn.Module) -> Iterator[None]:
        """Inside the block, a model from [`~ReferenceMixin.reference_of`] computes the outputs of the reference.

        Dropout and the computation of gradients are disabled.
        """
        with torch.no_grad(), not_training(model), self.switched_to_reference(model), self.accelerator.autocast():
            yield


def copy_of_policy(
    model: str | PreTrainedModel | PeftModel, peft_config: PeftConfig | None = None
) -> PreTrainedModel | None:
    """Returns a copy of the policy to be used as its reference.

    Returns None if the policy has or gets an adapter, because the policy is then its own reference. Also returns None
    if `model` is a name, because `DPOTrainer` then loads the model a second time. A policy that is already loaded is
    copied here, because `DPOTrainer` would load the reference from the policy's folder, whose content may have changed
    since the policy was loaded.
    """
    if isinstance(model, str | PeftModel) or peft_config is not None:
        return None
    if is_deepspeed_zero3_enabled():
        raise ValueError(
            "a policy cannot be copied under ZeRO-3; pass ref_model, loaded from the same folder as the policy"
        )
    return deepcopy(model)


@contextmanager
def as_reference(model: nn.Module) -> Iterator[None]:
    """Inside the block, a PEFT model computes the outputs of its reference. Any other model is not changed."""
    if not isinstance(model, PeftModel):
        yield
    elif REF_ADAPTER not in model.peft_config:
        with model.disable_adapter():
            yield
    else:
        active = model.active_adapter
        model.set_adapter(REF_ADAPTER, inference_mode=True)
        try:
            yield
        finally:
            model.set_adapter(active)


@contextmanager
def not_training(model: nn.Module) -> Iterator[None]:
    """Inside the block, the model is in evaluation mode, without dropout and activation checkpointing.

    Layers of bitsandbytes are an exception: they are put into training mode. In evaluation mode on a CPU, bitsandbytes
    0.50 would repack their weights permanently, and no gradient could pass through these layers afterwards.
    """
    before = {module: module.training for module in model.modules()}
    for module in before:
        module.training = is_quantized_layer(module)
    try:
        yield
    finally:
        for module, training in before.items():
            module.training = training


def hash_weights(model: nn.Module) -> str:
    """Returns a hash of the model's weights. Every process returns the same hash.

    Under ZeRO-3 the parameters themselves are empty, so each process hashes its own shard, and the hashes of all
    processes are combined. (TRL 1.16 hashes the empty parameters, so models of one architecture all get the same
    hash.)
    """
    digest = hashlib.sha256()
    for name, parameter in model.named_parameters():
        held = held_weights(parameter)
        digest.update(name.encode())
        digest.update(held.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return repr(sorted({*gather_object([digest.hexdigest()])}))


def hash_rows(rows: Dataset, *settings: object) -> str:
    """Returns a hash of rows and settings, for the name of a file or folder whose content depends on both."""
    digest = hashlib.sha256(repr(settings).encode())
    for table in rows.with_format("arrow").iter(10_000):
        for batch in table.combine_chunks().to_batches():
            digest.update(batch.serialize())
    return digest.hexdigest()[:16]


def reference_file(folder: str | Path, rows: Dataset, *settings: object) -> Path:
    """Returns the path of the file for the rows' reference log-probabilities.

    The file name contains a hash of the rows and the settings.
    """
    return Path(folder) / f"reference-{hash_rows(rows, *settings)}.parquet"


def write_reference(path: Path, ref_logps: list[list[float]]) -> None:
    """Writes the reference log-probabilities atomically, one list per row."""
    table = pa.table({"ref_logps": pa.array(ref_logps, pa.list_(pa.float32()))})
    with atomic_file(path) as temporary:
        pq.write_table(table, temporary)


def with_reference(rows: Dataset, path: Path) -> Dataset:
    """Returns the rows with the column `ref_logps`, which is read from a file written by [`write_reference`]."""
    return rows.add_column("ref_logps", pq.read_table(path)["ref_logps"].combine_chunks())
