"""Draws lists of the reference policy for each training prompt, once, and keeps them on disk.

The lists are drawn in parts, each by one process (see `parts.py`). A list depends on the seed and on the number of its
row, not on parts, batches or processes. The lists are stored and not their rewards, so that a run with other rewards
uses the same lists.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset
from torch import Tensor
from tqdm.auto import tqdm

from trl_rec.parts import PartStore, to_column
from trl_rec.trainer.base.reference import hash_rows


PART_SIZE = 256  # rows per part


def reference_store(output_dir: str | Path, rows: Dataset, *settings: Any) -> PartStore:
    """The store of these rows' reference lists. Its folder is named by a hash of rows and settings.

    Args:
        output_dir: The run folder.
        rows: The training rows.
        settings: Everything else that the lists depend on, the weights of the reference included.
    """
    digest = hash_rows(rows.select_columns(["prompt_ids", "history"]), *settings)
    return PartStore(Path(output_dir) / f"references-{digest}", len(rows), PART_SIZE, lambda part: digest)


def draw_reference_lists(
    store: PartStore,
    rows: Dataset,
    draw: Callable[[dict[str, Tensor]], Tensor],
    collate: Callable[[list[dict[str, Any]]], dict[str, Tensor]],
    accelerator: Any,
    *,
    batch_size: int,
) -> None:
    """Draws the lists that are missing, divided over the processes, and writes them.

    Args:
        store: Where they are written.
        rows: The training rows.
        draw: Returns items `(B, M, K)` for a batch.
        collate: Makes a batch of some rows.
        accelerator: The trainer's, for its processes and its device.
        batch_size: Rows drawn together, within a part.
    """
    # 1. No process may write a part before all have seen which are missing.
    missing = store.missing()
    accelerator.wait_for_everyone()
    mine = missing[accelerator.process_index :: accelerator.num_processes]

    # 2. Draw each part in batches.
    total = sum(map(len, mine))
    hidden = not total or not accelerator.is_main_process
    with tqdm(total=total, desc="reference lists", unit="prompt", disable=hidden) as progress:
        for part in mine:
            lists: list[np.ndarray] = []
            for start in range(0, len(part), batch_size):
                numbers = part[start : start + batch_size]
                batch = collate([rows[row] for row in numbers])
                batch = {name: values.to(accelerator.device) for name, values in batch.items()}
                lists.append(draw(batch).cpu().numpy())  # (B, M, K)
                progress.update(len(numbers))
            store.write(part, np.concatenate(lists))

    # 3. All parts have to be there before any process reads them.
    accelerator.wait_for_everyone()


def with_reference_lists(rows: Dataset, store: PartStore) -> Dataset:
    """The rows with a column `references`: M lists of K items each."""
    return rows.add_column("references", to_column(store.read_all()))
