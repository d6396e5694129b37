"""Measures the time and the peak memory of making semantic IDs for a large catalogue.

    python benchmarks/tokenize_scale.py [--items 1000000] [--width 384] [--levels 3] [--codes 256]
        [--pairs 1000000] [--parts vectors codes dual]

There are three parts. The first, `vectors`, makes item vectors from a generated log with twenty interactions per item
on average, in which each user chooses from a small part of the catalogue. The second, `codes`, runs residual k-means
and the repair of collisions (items with the same ID). Its vectors have the width `--width`. They are drawn around
random centres, to resemble the vectors of a text encoder. The third, `dual`, trains the two networks (towers) of the
dual method, one for items and one for users, on as many users as items. Each of the three training phases takes one
epoch of `--pairs` pairs of a user and an item. Then this part quantises all items, and repairs their collisions with
the Sinkhorn algorithm. The collisions that remain are repaired as in the second part. Real training takes more epochs
over more pairs, and its time grows in proportion.
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
from trl_rec.semantic_ids.dual.ids import DualIdsConfig
from trl_rec.semantic_ids.dual.inputs import DualInputs, Scaling
from trl_rec.semantic_ids.dual.tower import Tower
from trl_rec.semantic_ids.dual.training import DualTraining
from trl_rec.semantic_ids.item_vectors import truncated_svd
from trl_rec.semantic_ids.residual import residual_kmeans
from trl_rec.semantic_ids.sinkhorn import sinkhorn_repair


PER_USER = 20
PART = 500  # number of items that one user chooses from; the choices follow a power law


def make_train(num_items: int) -> Dataset:
    """Returns a training split with as many users as items and `PER_USER` interactions per user."""
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
    """Returns vectors around 2,000 centres, `(num_items, width)`."""
    generator = torch.Generator().manual_seed(0)
    centres = torch.randn(2000, width, generator=generator)
    vectors = centres[torch.randint(len(centres), (num_items,), generator=generator)]
    return vectors.add_(torch.randn(num_items, width, generator=generator), alpha=0.7)


def timed(what: str, work: Callable[[], Any]) -> Any:
    """Returns the result of `work`. Prints its time and the peak memory so far."""
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
    print(f"distinct IDs: {before:.2%} before the repair, {after:.2%} after it; error after each level: {left}")


def make_inputs(num_items: int, width: int, num_pairs: int) -> DualInputs:
    """Returns random inputs of the towers, for as many users as items.

    Text vectors have the given width, and behaviour vectors have width 64.
    """
    generator = torch.Generator().manual_seed(0)
    behaviour = torch.randn(num_items, 64, generator=generator)
    histories = torch.randint(num_items, (num_items, PER_USER), generator=generator)
    chosen = torch.randint(num_items, (num_pairs,), generator=generator)
    pairs = torch.stack([torch.arange(num_pairs) % num_items, chosen])
    text = make_vectors(num_items, width)
    scale = Scaling.of(behaviour[:100_000])
    return DualInputs(
        item_text=Scaling.of(text[:100_000])(text),
        user_text=make_vectors(num_items, width).div_(width**0.5),
        behaviour=behaviour,
        known=torch.ones(num_items, dtype=torch.bool),
        scales={"item_behaviour": scale, "user_behaviour": scale},
        histories=histories,
        mask=torch.ones(histories.shape, dtype=torch.bool),
        pairs=pairs,
        held_out=torch.empty(2, 0, dtype=torch.int64),
        popularity=torch.full((num_items,), PER_USER),
    )


def measure_dual(num_items: int, width: int, levels: int, codes: int, num_pairs: int) -> None:
    inputs = timed(f"inputs of {num_items} items and users", lambda: make_inputs(num_items, width, num_pairs))
    config = DualIdsConfig(levels=levels, codes=codes)
    shape = {"hidden": config.hidden, "width": config.fused_width, "code_width": config.code_width}
    towers = [Tower(width + 64, **shape, levels=levels, codes=codes) for _ in range(2)]
    training = DualTraining(
        inputs,
        *towers,
        align=True,
        alpha=config.alpha,
        learning_rate=config.learning_rate,
        batch_size=config.batch_size,
        max_epochs=1,
        patience=config.patience,
        without_behaviour=config.without_behaviour,
        generator=torch.Generator().manual_seed(0),
    )
    timed(f"three phases, one epoch of {num_pairs} pairs each, and the codebooks", training.run)
    tower = towers[0]
    items = torch.arange(num_items)
    found = timed(
        "codes of all items", lambda: tower.quantize.assign(training.latents(tower, training.fused_items(items)))
    )
    spread = timed("Sinkhorn", lambda: sinkhorn_repair(found.codes, found.last_residuals, found.codebooks[-1]))
    repaired = timed("repair", lambda: repair_last_level(spread, found.last_residuals, found.codebooks[-1]))
    shares = [(int(group_of(rows).max()) + 1) / num_items for rows in (found.codes, spread, repaired)]
    print("distinct IDs: {:.2%} before Sinkhorn, {:.2%} after it, {:.2%} after the repair".format(*shares))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--items", type=int, default=1_000_000)
    parser.add_argument("--width", type=int, default=384)
    parser.add_argument("--levels", type=int, default=3)
    parser.add_argument("--codes", type=int, default=256)
    parser.add_argument("--pairs", type=int, default=1_000_000)
    parts = ["vectors", "codes", "dual"]
    parser.add_argument("--parts", nargs="+", choices=parts, default=parts)
    arguments = parser.parse_args()
    print(f"{arguments.items} items, {torch.get_num_threads()} threads")
    shape = (arguments.items, arguments.width, arguments.levels, arguments.codes)
    if "vectors" in arguments.parts:
        measure_vectors(arguments.items)
    if "codes" in arguments.parts:
        measure_codes(*shape)
    if "dual" in arguments.parts:
        measure_dual(*shape, arguments.pairs)


if __name__ == "__main__":
    main()
