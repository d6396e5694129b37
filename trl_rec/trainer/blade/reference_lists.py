"""Samples reference lists for every training prompt, by default from the reference policy, and stores them on disk.

By default, BLADE ranks the reward of a rollout among the rewards of the prompt's reference lists and rollouts.

The training rows, one per prompt, are divided into parts, and each part is processed by one process (see `parts.py`).
The random numbers of a row depend only on the seed and the row index, so the lists do not depend on how rows are
divided into parts and batches, nor on the number of processes. The lists are stored without rewards, so that runs with
other rewards can reuse them. Runs that start from the same reference at the same time, and have the same
`reference_dir`, share the work.

Legend: B rows, M reference lists per row, K items per list.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from random import SystemRandom
from typing import Any

import numpy as np
from accelerate import Accelerator
from datasets import Dataset
from torch import Tensor
from tqdm.auto import tqdm

from trl_rec.parts import PartStore, to_column
from trl_rec.trainer.base.processes import on_main_process
from trl_rec.trainer.base.reference import hash_rows


PART_SIZE = 256  # rows per part


def reference_store(folder: str | Path, rows: Dataset, *settings: object) -> PartStore:
    """Returns the store for the reference lists of `rows`. Its folder name contains a hash of rows and settings.

    Args:
        folder: The folder that contains the store, such as the run folder.
        rows: The training rows.
        settings: Everything else that the lists depend on, including the weights of the reference.
    """
    digest = hash_rows(rows.select_columns(["prompt_ids", "history"]), *settings)
    return PartStore(Path(folder) / f"references-{digest}", len(rows), PART_SIZE, lambda part: digest)


def draw_reference_lists(
    store: PartStore,
    rows: Dataset,
    draw: Callable[[dict[str, Tensor]], Tensor],
    collate: Callable[[list[dict[str, Any]]], dict[str, Tensor]],
    accelerator: Accelerator,
    *,
    batch_size: int,
) -> None:
    """Samples the missing lists and writes them to the store. Each process samples some of the missing parts.

    Another run may sample the same lists at the same time. Therefore the parts are sampled in random order, and a part
    that the other run has written in the meantime is skipped. If both happen to sample the same part at the same time,
    both write the same lists.

    Args:
        store: The store to write to.
        rows: The training rows.
        draw: Samples the lists of a batch and returns their items, `(B, M, K)`.
        collate: Collates rows into a batch.
        accelerator: The accelerator of the trainer.
        batch_size: Number of rows per batch. A batch never spans several parts.
    """
    # 1. Find the missing parts on the main process only. If every process looked for missing parts while another
    # process or run wrote one, the processes could find different parts, and would then divide them wrongly.
    missing = on_main_process(store.missing)
    mine = missing[accelerator.process_index :: accelerator.num_processes]
    SystemRandom().shuffle(mine)  # a separate generator, so that the seeded generators keep their states

    # 2. Process each part in batches.
    total = sum(map(len, mine))
    hidden = not total or not accelerator.is_main_process
    with tqdm(total=total, desc="reference lists", unit="prompt", disable=hidden) as progress:
        for part in mine:
            if store.read(part) is not None:
                progress.update(len(part))
                continue
            lists: list[np.ndarray] = []
            for start in range(0, len(part), batch_size):
                numbers = part[start : start + batch_size]
                batch = collate([rows[row] for row in numbers])
                batch = {name: values.to(accelerator.device) for name, values in batch.items()}
                lists.append(draw(batch).cpu().numpy())  # (B, M, K)
                progress.update(len(numbers))
            store.write(part, np.concatenate(lists))

    # 3. Wait until all parts are written, before any process reads them.
    accelerator.wait_for_everyone()


def with_reference_lists(rows: Dataset, store: PartStore) -> Dataset:
    """Adds a column `references` to the rows, with M lists of K items per row."""
    return rows.add_column("references", to_column(store.read_all()))
