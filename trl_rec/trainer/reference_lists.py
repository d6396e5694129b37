"""Lists that the reference policy draws for each training prompt, once, and keeps on disk.

They are drawn in parts, each by one process and each written when it is whole: a run that was killed goes on with the next. A
list depends on the seed and on the number of its row, not on parts, batches or processes. Items are kept, not rewards, so that
other rewards need no other lists.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from datasets import Dataset
from torch import Tensor
from tqdm.auto import tqdm


ROWS_A_PART = 1024


def reference_folder(output_dir: str | Path, rows: Dataset, *settings: Any) -> Path:
    """Where these rows' reference lists are kept: the name tells rows and settings, the weights among them."""
    digest = hashlib.sha256(repr(settings).encode())
    for batch in rows.select_columns(["prompt_ids", "history"]).with_format("arrow").iter(10_000):
        for part in batch.combine_chunks().to_batches():
            digest.update(part.serialize())
    return Path(output_dir) / f"references-{digest.hexdigest()[:16]}"


def draw_reference_lists(
    folder: Path,
    rows: Dataset,
    draw: Callable[[dict[str, Tensor]], Tensor],
    collate: Callable[[list[dict[str, Any]]], dict[str, Tensor]],
    accelerator: Any,
    *,
    batch_size: int,
) -> None:
    """Draws and writes the parts that are not there yet, divided over the processes.

    Args:
        folder: Where they go.
        rows: The training rows.
        draw: Gives items `(B, M, K)` for a batch.
        collate: Makes a batch of some rows.
        accelerator: Knows processes and device.
        batch_size: Rows drawn together.
    """
    folder.mkdir(parents=True, exist_ok=True)
    parts = range(0, len(rows), ROWS_A_PART)
    missing = [start for start in parts if not _part(folder, start).is_file()]
    accelerator.wait_for_everyone()  # before any process writes a part, so that all see the same ones missing
    mine = missing[accelerator.process_index :: accelerator.num_processes]
    total = sum(min(ROWS_A_PART, len(rows) - start) for start in mine)
    with tqdm(total=total, desc="reference lists", unit="prompt", disable=not total or not accelerator.is_main_process) as bar:
        for start in mine:
            drawn = []
            for first in range(start, min(start + ROWS_A_PART, len(rows)), batch_size):
                some = range(first, min(first + batch_size, start + ROWS_A_PART, len(rows)))
                batch = collate([rows[row] for row in some])
                drawn.append(draw({name: values.to(accelerator.device) for name, values in batch.items()}).cpu().numpy())
                bar.update(len(some))
            _write(_part(folder, start), np.concatenate(drawn))
    accelerator.wait_for_everyone()


def with_reference_lists(rows: Dataset, folder: Path) -> Dataset:
    """The rows, and a column `references`: M lists of K items each."""
    parts = [pq.read_table(_part(folder, start))["references"] for start in range(0, len(rows), ROWS_A_PART)]
    return rows.add_column("references", pa.chunked_array([chunk for part in parts for chunk in part.chunks]).combine_chunks())


def _part(folder: Path, start: int) -> Path:
    return folder / f"{start:09d}.parquet"


def _write(path: Path, lists: np.ndarray) -> None:
    """Lists `(rows, M, K)`, under another name first."""
    items = pa.array(torch.as_tensor(lists, dtype=torch.int32).numpy().ravel())
    column = pa.FixedSizeListArray.from_arrays(pa.FixedSizeListArray.from_arrays(items, lists.shape[2]), lists.shape[1])
    unfinished = path.with_suffix(".unfinished")
    pq.write_table(pa.table({"references": column}), unfinished)
    os.replace(unfinished, path)
