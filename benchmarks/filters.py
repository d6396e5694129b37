"""Compares the time of recommendation requests with and without a filter, for a large catalogue.

Both kinds of requests are made to a `Recommender`, in turns, with one thread. The model has random weights and, by
default, the size of the model in the recipe `bear/beauty`. CPU time is measured, so that other programs on the machine
matter little.

    python benchmarks/filters.py [--items 100000] [--hidden_size 128] [--layers 2] [--runs 30] [--batch 1]
        [--surface semantic_id|item_token] [--prior] [--lists 0]

`--batch` is the number of requests that are made together. There are ten different filters, and each filtered request
uses one of them. With `--prior`, both kinds of requests also use the item weights of a prior. With `--lists N`, the
program also makes N filtered lists (rounded up to batches of 64), and counts the items in these lists that the filters
do not allow.
"""

from __future__ import annotations

import argparse
import time
from statistics import median

import numpy as np
import pyarrow as pa
import torch

from trl_rec import ItemCatalog, ItemFilter, PromptFormat, Recommender, TokenTrie
from trl_rec.decoding.priors import PopularityPrior
from trl_rec.models import make_model, make_tokenizer
from trl_rec.ragged import Ragged


NUM_CODES = 64  # codes per level of the semantic IDs
NUM_CATEGORIES = 10
HISTORY = 20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--items", type=int, default=100_000)
    parser.add_argument("--hidden_size", type=int, default=128)
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--runs", type=int, default=30)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--surface", choices=["semantic_id", "item_token"], default="semantic_id")
    parser.add_argument("--prior", action="store_true")
    parser.add_argument("--lists", type=int, default=0)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    rng = np.random.default_rng(0)
    recommender = build(arguments, rng)

    # 1. Time requests with and without a filter in turns. The first pair builds caches, and does not count.
    seconds: dict[str, list[float]] = {"without": [], "with": []}
    for _ in range(arguments.runs + 1):
        histories = random_histories(arguments.batch, arguments.items, rng)
        for name, filters in (("without", None), ("with", random_filters(arguments.batch, rng))):
            start = time.process_time()
            recommender.recommend_batch(histories, 10, filters=filters)
            seconds[name].append(time.process_time() - start)
    plain, filtered = (median(values[1:]) for values in seconds.values())
    ratio = median(b / a for a, b in zip(seconds["without"][1:], seconds["with"][1:], strict=True))
    print(
        f"{arguments.items:,} items ({arguments.surface}), {arguments.batch} requests together: {plain * 1e3:.1f} ms "
        f"without a filter, {filtered * 1e3:.1f} ms with one; ratio {ratio:.2f} (medians of {arguments.runs} pairs)"
    )

    # 2. Count the items in filtered lists that the filters do not allow.
    category = recommender.catalog.items["category"].to_pylist()
    price = recommender.catalog.items["price"].to_numpy()
    wrong = 0
    for _ in range(0, arguments.lists, 64):
        filters = random_filters(64, rng)
        lists = recommender.recommend_batch(random_histories(64, arguments.items, rng), 10, filters=filters)
        for one, ranks in zip(filters, lists, strict=True):
            (_, _, wanted), (_, _, limit) = one.where
            items = [recommender.catalog.positions[rank.item_id] for rank in ranks]
            wrong += sum(category[item] != wanted or price[item] >= limit for item in items)
    if arguments.lists:
        num_lists = 64 * len(range(0, arguments.lists, 64))
        print(f"{num_lists:,} filtered lists contain {wrong} items that their filters do not allow")


def build(arguments: argparse.Namespace, rng: np.random.Generator) -> Recommender:
    """Makes the catalogue, the model and the recommender."""
    items = np.arange(arguments.items)
    table = pa.table(
        {
            "item_id": [str(item) for item in items],
            "title": [f"title {item}" for item in items],
            "category": [f"category {number}" for number in rng.integers(0, NUM_CATEGORIES, len(items))],
            "price": rng.uniform(1, 100, len(items)),
        }
    )
    places = rng.permutation(NUM_CODES**3)[: len(items)]
    codes = np.stack([places // NUM_CODES**2, places // NUM_CODES % NUM_CODES, places % NUM_CODES], 1)
    ids = Ragged.from_lists(
        [[f"<{level}_{code}>" for level, code in zip("abc", row, strict=True)] for row in codes], object
    )
    catalog = ItemCatalog(table, arguments.surface, semantic_ids=ids)

    tokenizer = make_tokenizer(catalog)
    torch.manual_seed(0)
    model = make_model(tokenizer, hidden_size=arguments.hidden_size, num_layers=arguments.layers).eval()
    prior = PopularityPrior(rng.integers(0, 100, len(items))) if arguments.prior else None
    settings = {"num_beams": 10, "renormalize": True, "length_penalty": 0.0, "max_length": 512}
    prompt_format = PromptFormat.for_catalog(catalog, tokenizer)
    return Recommender(
        model, tokenizer, catalog, prompt_format, TokenTrie.from_catalog(catalog, tokenizer), settings, prior
    )


def random_histories(number: int, num_items: int, rng: np.random.Generator) -> list[list[str]]:
    return [[str(item) for item in rng.integers(0, num_items, HISTORY)] for _ in range(number)]


def random_filters(number: int, rng: np.random.Generator) -> list[ItemFilter]:
    """Returns filters by category and price. At most ten of them are distinct."""
    categories = rng.integers(0, NUM_CATEGORIES, number)
    return [
        ItemFilter(where=[["category", "==", f"category {one}"], ["price", "<", 20 + 5 * int(one)]])
        for one in categories
    ]


if __name__ == "__main__":
    main()
