"""The reference policy of preference training, as PEFT keeps it, and its log-probabilities on disk.

An adapter's model is its own reference: without the adapter, or with a frozen copy of it called "ref".
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from copy import deepcopy
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from accelerate.utils import gather_object
from datasets import Dataset
from peft import PeftModel

from trl_rec.compat import REF_ADAPTER, held_weights, is_deepspeed_zero3_enabled, is_quantized_layer
from trl_rec.files import atomic_file


def copy_of_policy(model: Any, peft_config: Any = None) -> Any:
    """A copy of the policy to be its reference; None where an adapter makes the policy its own, or where `DPOTrainer`
    loads both by name. Of a loaded policy it would load the folder that it once came from, which is another model by
    now."""
    if isinstance(model, str | PeftModel) or peft_config is not None:
        return None
    if is_deepspeed_zero3_enabled():
        raise ValueError(
            "under ZeRO-3 a policy cannot be copied; pass ref_model, loaded from the same folder as the policy"
        )
    return deepcopy(model)


@contextmanager
def as_reference(model: Any) -> Iterator[None]:
    """Inside, a PEFT model answers as its reference. Any other model is left as it is: it is a reference already."""
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
def not_training(model: Any) -> Iterator[None]:
    """Inside, nothing is dropped at random and nothing checkpointed. Layers of bitsandbytes count as training all the
    same: in evaluation on a CPU they repack their weights for good, and no gradient passes them any more (0.50)."""
    before = {module: module.training for module in model.modules()}
    for module in before:
        module.training = is_quantized_layer(module)
    try:
        yield
    finally:
        for module, training in before.items():
            module.training = training


def hash_weights(model: Any) -> str:
    """A hash of all processes' weights. Where ZeRO-3 has loaded a model, the parameters themselves are empty (as TRL
    1.16 hashes them, all models would be the same one), and each process holds its share."""
    digest = hashlib.sha256()
    for name, parameter in model.named_parameters():
        held = held_weights(parameter)
        digest.update(name.encode())
        digest.update(held.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return repr(sorted({*gather_object([digest.hexdigest()])}))


def reference_file(folder: str | Path, rows: Dataset, *settings: Any) -> Path:
    """Where these rows' reference log-probabilities are kept: the name tells rows and settings, the weights among
    them."""
    digest = hashlib.sha256(repr(settings).encode())
    for table in rows.with_format("arrow").iter(10_000):
        for batch in table.combine_chunks().to_batches():
            digest.update(batch.serialize())
    return Path(folder) / f"reference-{digest.hexdigest()[:16]}.parquet"


def write_reference(path: Path, ref_logps: list[list[float]]) -> None:
    """Writes one list per row, atomically."""
    table = pa.table({"ref_logps": pa.array(ref_logps, pa.list_(pa.float32()))})
    with atomic_file(path) as temporary:
        pq.write_table(table, temporary)


def with_reference(rows: Dataset, path: Path) -> Dataset:
    """The rows, and the column `ref_logps` that `write_reference` wrote."""
    return rows.add_column("ref_logps", pq.read_table(path)["ref_logps"].combine_chunks())
