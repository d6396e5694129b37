"""Measures seconds and peak memory of preparing a large log on one core.

    python benchmarks/prepare_scale.py [--interactions 10000000] [--suffix parquet] [--split leave_one_out]

Another process generates the log, so that the peak belongs to the preparation alone.
"""

from __future__ import annotations

import argparse
import logging
import multiprocessing
import os
import resource
import tempfile
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow import csv

from trl_rec.data import prepare


def make_log(folder: Path, num_interactions: int, suffix: str) -> None:
    """Writes a log with one user per 20 and one item per 50 interactions, both drawn from a power law."""
    rng = np.random.default_rng(0)
    num_users, num_items = max(num_interactions // 20, 10), max(num_interactions // 50, 10)
    user, item = (
        np.minimum(size * rng.random(num_interactions) ** power, size - 1).astype(np.int64)
        for size, power in ((num_users, 1.5), (num_items, 3))
    )
    columns = {
        "user_id": pa.array(user).cast(pa.string()),
        "item_id": pa.array(item).cast(pa.string()),
        "timestamp": rng.integers(1_500_000_000, 1_600_000_000, num_interactions),
        "rating": rng.integers(1, 6, num_interactions),
    }
    items = pa.array(np.arange(num_items)).cast(pa.string())
    titles = pa.array([f"Item number {index}" for index in range(num_items)])
    pq.write_table(pa.table({"item_id": items, "title": titles}), folder / "items.parquet")
    write = csv.write_csv if suffix == "csv" else pq.write_table
    write(pa.table(columns), folder / f"interactions.{suffix}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--interactions", type=int, default=10_000_000)
    parser.add_argument("--suffix", choices=["csv", "parquet"], default="parquet")
    parser.add_argument("--split", choices=["leave_one_out", "time"], default="leave_one_out")
    parser.add_argument("--min_interactions", type=int, default=5, help="k of the k-core filter, for users and items")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")

    # One core for everything.
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    pa.set_cpu_count(1)
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder, "source")
        source.mkdir()
        maker = multiprocessing.get_context("spawn").Process(
            target=make_log, args=(source, arguments.interactions, arguments.suffix)
        )
        maker.start()
        maker.join()

        minimum = arguments.min_interactions
        start = time.perf_counter()
        dataset = prepare(
            source,
            Path(folder, "out"),
            split=arguments.split,
            min_user_interactions=minimum,
            min_item_interactions=minimum,
        )
        seconds = time.perf_counter() - start

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    counts = {name: dataset.card[name] for name in ("num_users", "num_items", "num_interactions", "rows")}
    print(f"{arguments.interactions} interactions, {arguments.suffix}: {seconds:.1f} s, peak {peak:.2f} GiB; {counts}")


if __name__ == "__main__":
    main()
