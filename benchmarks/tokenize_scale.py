"""Measures seconds and peak memory of semantic IDs for a large catalogue.

    python benchmarks/tokenize_scale.py [--items 1000000] [--width 384] [--levels 3] [--codes 256]

There are two parts. The first makes item vectors from a generated log with twenty interactions per item on average, in
which each user chooses from a small part of the catalogue. The second runs residual k-means and the repair on vectors
of the given width, drawn from a mixture to resemble those of a text encoder.
"""

from __future__ import annotations

import argparse
import resource
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from datasets import Dataset
from datasets.table import InMemoryTable

from trl_rec.ragged import Ragged
from trl_rec.semantic_ids.collisions import group_of, repair_last_level
from trl_rec.semantic_ids.cooccurrence import associations
from trl_rec.semantic_ids.item_vectors import truncated_svd
from trl_rec.semantic_ids.residual import residual_kmeans


PER_USER = 20
PART = 500  # items that one user chooses from, following a power law


def make_train(num_items: int) -> Dataset:
    """A training split with as many users as items and `PER_USER` interactions per user."""
    rng = np.random.default_rng(0)
    start = rng.integers(0, num_items, (num_items, 1))
    items = ((start + PART * rng.random((num_items, PER_USER)) ** 3) % num_items).astype(np.int32)
    history, targets = (
        Ragged.from_lengths(part.ravel(), np.full(num_items, part.shape[1])).to_arrow()
        for part in (items[:, :1], items[:, 1:])
    )
    columns = {"user": pa.array(np.arange(num_items, dtype=np.int32)), "history": history, "targets": targets}
    return Dataset(InMemoryTable(pa.table(columns)), split="train")


def make_vectors(num_items: int, width: int) -> torch.Tensor:
    """Vectors around 2,000 centres, `(num_items, width)`."""
    generator = torch.Generator().manual_seed(0)
    centres = torch.randn(2000, width, generator=generator)
    vectors = centres[torch.randint(len(centres), (num_items,), generator=generator)]
    return vectors.add_(torch.randn(num_items, width, generator=generator), alpha=0.7)


def timed(what: str, work: Callable[[], Any]) -> Any:
    """The result of `work`. Prints its time and the peak memory so far."""
    start = time.perf_counter()
    cpu_start = time.process_time()
    result = work()
    seconds = time.perf_counter() - start
    cpu = time.process_time() - cpu_start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(f"{what}: {seconds:.1f} s, {cpu:.1f} s of CPU, peak {peak:.2f} GiB so far", flush=True)
    return result


def measure_vectors(num_items: int) -> None:
    train = make_train(num_items)
    matrix = timed("associations", lambda: associations(train, num_items))
    print(f"  {len(matrix.values)} entries")
    timed("64 singular vectors", lambda: truncated_svd(matrix, 64))


def measure_codes(num_items: int, width: int, levels: int, codes: int) -> None:
    vectors = make_vectors(num_items, width)
    found = timed(f"residual k-means, {width} wide", lambda: residual_kmeans(vectors, levels=levels, codes=codes))
    repaired = timed("repair", lambda: repair_last_level(found.codes, found.last_residuals, found.codebooks[-1]))
    before, after = ((int(group_of(rows).max()) + 1) / num_items for rows in (found.codes, repaired))
    left = ", ".join(f"{error:.1%}" for error in found.errors)
    print(f"distinct: {before:.2%} before, {after:.2%} after; squared length left per level: {left}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--items", type=int, default=1_000_000)
    parser.add_argument("--width", type=int, default=384)
    parser.add_argument("--levels", type=int, default=3)
    parser.add_argument("--codes", type=int, default=256)
    arguments = parser.parse_args()
    print(f"{arguments.items} items, {torch.get_num_threads()} threads")
    measure_vectors(arguments.items)
    measure_codes(arguments.items, arguments.width, arguments.levels, arguments.codes)


if __name__ == "__main__":
    main()
