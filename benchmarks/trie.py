"""Measures how long it takes to build a large `TokenTrie` and to look up children in it, on one core.

    python benchmarks/trie.py [--items 10000000] [--small 10000]

The tries contain random semantic IDs of four levels. The large trie has `--items` items, the small one `--small`. The
program prints the seconds for building the large trie, and the peak resident memory including the input. Then, for
nodes with 1, with 2 and with 256 children, it prints the median time of a `children` call in the large trie, also as a
multiple of the median time in the small trie. A call looks up the children of 320 nodes (32 prompts x 10 beams), which
are drawn with replacement. The last line is JSON: the build time, the peak memory and these multiples (`ratios`).
"""

from __future__ import annotations

import argparse
import json
import resource
import time
from statistics import median

import torch

from trl_rec.items import TokenTrie


def semantic_ids(num_items: int) -> torch.Tensor:
    """Returns random IDs `(num_items, 4)` of 256 codes per level. Each level has its own tokens."""
    codes = torch.randint(0, 256, (num_items, 4), dtype=torch.int32, generator=torch.Generator().manual_seed(0))
    return codes + 256 * torch.arange(4, dtype=torch.int32)


def lookup_seconds(tries: list[TokenTrie], width: int, calls: int = 200) -> list[float]:
    """Returns, for each trie, the median seconds of a `children` call on 320 nodes that have `width` children each.

    The tries take turns, with new nodes each time.
    """
    pools = [(trie.row_offsets.diff() == width).nonzero().squeeze(1) for trie in tries]
    generator = torch.Generator().manual_seed(0)
    seconds: list[list[float]] = [[] for _ in tries]
    for _ in range(calls):
        for trie, pool, spent in zip(tries, pools, seconds, strict=True):
            nodes = pool[torch.randint(0, len(pool), (320,), generator=generator)]
            start = time.perf_counter()
            trie.children(nodes, width)
            spent.append(time.perf_counter() - start)
    return [median(spent) for spent in seconds]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--items", type=int, default=10_000_000)
    parser.add_argument("--small", type=int, default=10_000)
    arguments = parser.parse_args()
    torch.set_num_threads(1)

    # 1. Build.
    paths = semantic_ids(arguments.items)
    start = time.perf_counter()
    large = TokenTrie.from_sequences(paths)
    built = time.perf_counter() - start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    size = sum(
        tensor.nbytes
        for tensor in (large.row_offsets, large.child_tokens, large.item_starts, large.item_ends, large.items)
    )
    print(f"{large.num_items:,} items, {large.num_nodes:,} nodes: built in {built:.1f} s on one core")
    print(
        f"peak resident memory {peak:.2f} GiB, of which input {paths.nbytes / 2**30:.2f} and trie {size / 2**30:.2f}"
    )

    # 2. Look up children, in the large trie and in a small one.
    small = TokenTrie.from_sequences(paths[: arguments.small])
    ratios = {}
    for width in (1, 2, 256):
        few, many = lookup_seconds([small, large], width)
        ratios[width] = many / few
        relative = f"{many / few:.2f} times the time with {small.num_items:,} items"
        print(f"children of 320 nodes, {width} each: {many * 1e6:.0f} us, {relative}")
    print(json.dumps({"seconds": built, "peak_gib": peak, "ratios": ratios}))


if __name__ == "__main__":
    main()
