"""Makes small, untrained recommenders, and catalogues with columns to filter by."""

from __future__ import annotations

import random
from functools import cache

import pyarrow as pa
import torch

from tests.conftest import make_model
from tests.conftest import make_tokenizer as make_text_tokenizer
from trl_rec import ItemCatalog, PromptFormat, Recommender, TokenTrie
from trl_rec.decoding import ItemWeights
from trl_rec.decoding.priors import Prior
from trl_rec.models import make_tokenizer
from trl_rec.ragged import Ragged


KINDS = ("item_token", "semantic_id", "title", "list", "title_list", "beam_list")
NUM_ITEMS = 24
LIST_LENGTH = 6
BRANDS = ["ash", "birch", "cedar", None]
GENRES = ["crime", "drama", "noir"]


@cache
def catalogue(surface: str) -> ItemCatalog:
    """Returns items with brands, prices, genres and missing values. Two pairs of items have equal titles."""
    rng = random.Random(3)
    titles = [
        f"{rng.choice(['Blue', 'Red', 'Old'])} {rng.choice(['Lamp', 'Mug', 'Pen'])} {i}" for i in range(NUM_ITEMS)
    ]
    titles[5] = titles[2]
    titles[9] = titles[8]
    table = {
        "item_id": [f"id {i}" for i in range(NUM_ITEMS)],
        "title": titles,
        "brand": [BRANDS[rng.randrange(4)] for _ in range(NUM_ITEMS)],
        "price": [None if i == 7 else float(rng.randrange(1, 100)) for i in range(NUM_ITEMS)],
        "stock": pa.array([rng.randrange(3) for _ in range(NUM_ITEMS)], pa.int64()),
        "genres": [None if i == 4 else rng.sample(GENRES, rng.randrange(3)) for i in range(NUM_ITEMS)],
    }
    # Items share semantic IDs: the 24 items have only 12 different IDs, so the trie has 12 leaves.
    ids = Ragged.from_lists([[f"<a_{i % 4}>", f"<b_{i % 3}>"] for i in range(NUM_ITEMS)], dtype=object)
    return ItemCatalog(pa.table(table), surface, semantic_ids=ids if surface == "semantic_id" else None)


@cache
def make_recommender(kind: str, prior: Prior | None = None, *, num_beams: int = NUM_ITEMS) -> Recommender:
    """Returns a recommender of one of the `KINDS`. The kinds with `list` in their name write lists; the others rank
    single items. For single items, there are by default as many beams as items, so that the ranking is exact."""
    is_list = "list" in kind
    surface = {"list": "item_token", "beam_list": "item_token", "title_list": "title"}.get(kind, kind)
    catalog = catalogue(surface)
    if surface == "title":
        tokenizer = make_text_tokenizer([*catalog.titles, "The items that a user has chosen"] * 3)
    else:
        tokenizer = make_tokenizer(catalog)
    options = {"list_length": LIST_LENGTH} if is_list else {}
    prompt_format = PromptFormat.for_catalog(catalog, tokenizer, **options)
    settings = {"renormalize": True, "length_penalty": 0.0, "max_length": 400}
    settings["num_beams"] = (3 if kind == "beam_list" else 1) if is_list else num_beams
    model = make_model(vocab_size=len(tokenizer))
    trie = TokenTrie.from_catalog(catalog, tokenizer, lists=is_list)
    return Recommender(model, tokenizer, catalog, prompt_format, trie, settings, prior)


def random_histories(rng: random.Random, number: int) -> list[list[str]]:
    """Returns histories of different lengths. Some of them contain unknown ids."""
    histories = [[f"id {rng.randrange(NUM_ITEMS)}" for _ in range(rng.choice([1, 2, 3, 6, 9]))] for _ in range(number)]
    return [[*history, "gone"] if rng.random() < 0.2 else history for history in histories]


class UnevenPrior:
    """Weighs items by their index. The item whose index follows that of the last history item gets an additional
    weight. Item 0 has weight 0, unless it gets the additional weight."""

    def weights(self, histories: Ragged) -> ItemWeights:
        rows = [histories[row] for row in range(len(histories))]
        after = [(int(row[-1]) + 1) % NUM_ITEMS if len(row) else -1 for row in rows]
        own = torch.tensor(after, dtype=torch.int64).view(-1, 1)
        return ItemWeights(torch.arange(NUM_ITEMS) / NUM_ITEMS, own, torch.full(own.shape, 3.0), strength=0.7)
