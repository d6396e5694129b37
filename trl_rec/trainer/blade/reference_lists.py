"""Lists that the reference policy draws for each training prompt, once, and keeps on disk.

They are drawn in parts, each by one process and each written when it is whole: a run that was killed goes on with the
next, and a part that has been damaged since is drawn again. A list depends on the seed and on the number of its row,
not on parts, batches or processes. Items are kept, not rewards, so that other rewards need no other lists.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from datasets import Dataset
from torch import Tensor
from tqdm.auto import tqdm

from trl_rec.files import atomic_file


ROWS_A_PART = 256
logger = logging.getLogger(__name__)


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
        batch_size: Rows drawn together, within a part.
    """
    folder.mkdir(parents=True, exist_ok=True)
    missing = [part for part in _parts(rows) if _read(folder, part) is None]
    accelerator.wait_for_everyone()  # before any process writes a part, so that all see the same ones missing
    mine = missing[accelerator.process_index :: accelerator.num_processes]
    total = sum(map(len, mine))
    with tqdm(
        total=total, desc="reference lists", unit="prompt", disable=not total or not accelerator.is_main_process
    ) as bar:
        for part in mine:
            drawn = []
            for first in range(0, len(part), batch_size):
                some = part[first : first + batch_size]
                batch = collate([rows[row] for row in some])
                drawn.append(
                    draw({name: values.to(accelerator.device) for name, values in batch.items()}).cpu().numpy()
                )
                bar.update(len(some))
            _write(_path(folder, part), np.concatenate(drawn))
    accelerator.wait_for_everyone()


def with_reference_lists(rows: Dataset, folder: Path) -> Dataset:
    """The rows, and a column `references`: M lists of K items each."""
    chunks: list[pa.Array] = []
    for part in _parts(rows):
        lists = _read(folder, part)
        if lists is None:
            raise ValueError(f"{_path(folder, part)} is not there; all processes have to see the same output_dir")
        chunks += lists.chunks
    return rows.add_column("references", pa.chunked_array(chunks).combine_chunks())


def _parts(rows: Dataset) -> list[range]:
    """The numbers of the rows in each part."""
    return [range(len(rows))[start : start + ROWS_A_PART] for start in range(0, len(rows), ROWS_A_PART)]


def _path(folder: Path, part: range) -> Path:
    return folder / f"{part.start:09d}.parquet"


def _read(folder: Path, part: range) -> pa.ChunkedArray | None:
    """A part's lists; None where they are not there, or not as they were written."""
    path = _path(folder, part)
    if not path.is_file():
        return None
    try:
        lists = pq.read_table(path, page_checksum_verification=True)["references"]
    except (OSError, KeyError, pa.ArrowException) as error:
        logger.warning("%s is damaged (%s); its lists are drawn again", path, error)
        return None
    if len(lists) != len(part):
        logger.warning("%s holds %d rows instead of %d; its lists are drawn again", path, len(lists), len(part))
        return None
    return lists


def _write(path: Path, lists: np.ndarray) -> None:
    """Lists `(rows, M, K)`."""
    items = pa.array(lists.astype(np.int32).ravel())
    column = pa.FixedSizeListArray.from_arrays(
        pa.FixedSizeListArray.from_arrays(items, lists.shape[2]), lists.shape[1]
    )
    with atomic_file(path) as temporary:
        pq.write_table(pa.table({"references": column}), temporary, write_page_checksum=True)
