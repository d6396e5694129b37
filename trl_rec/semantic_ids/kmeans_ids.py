"""`make_semantic_ids`: items that stand near the same items in training get IDs that begin alike.

The fast way, without a text encoder or any training: vectors from co-occurrence, residual k-means, repair of
collisions.
"""

from __future__ import annotations

import logging
from typing import Any

import torch

from trl_rec.data import RecDataset
from trl_rec.semantic_ids.card import IdCodes, make_card
from trl_rec.semantic_ids.collisions import number_within_group, repair_last_level
from trl_rec.semantic_ids.cooccurrence import popularity
from trl_rec.semantic_ids.item_vectors import cooccurrence_vectors
from trl_rec.semantic_ids.residual import residual_kmeans
from trl_rec.semantic_ids.storage import is_written, with_stored_ids, write_ids
from trl_rec.semantic_ids.tokens import check_codes, id_tokens


logger = logging.getLogger(__name__)


def make_semantic_ids(
    dataset: RecDataset,
    *,
    levels: int = 3,
    codes: int = 256,
    width: int = 64,
    window: int = 5,
    iterations: int = 25,
    collisions: str = "share",
    seed: int = 0,
    overwrite: bool = False,
) -> RecDataset:
    """Makes the items' semantic IDs from the training split, writes them into the dataset's folder, and gives back the
    dataset with them. IDs made before with the same settings are taken as they are.

    Args:
        dataset (`RecDataset`):
            A dataset that `prepare` made or `load` loaded.
        levels (`int`, *optional*, defaults to `3`):
            Codes of an ID.
        codes (`int`, *optional*, defaults to `256`): Different codes of a level. Fewer, such as 32 for a small
            catalogue, let more items share their first codes.
        width (`int`, *optional*, defaults to `64`):
            Width of the item vectors; never more than the number of items.
        window (`int`, *optional*, defaults to `5`):
            Largest distance of two items of a user that count as near each other.
        iterations (`int`, *optional*, defaults to `25`):
            Most rounds of k-means a level.
        collisions (`str`, *optional*, defaults to `"share"`): What happens to items that the repair of the last level
            could not tell apart: `"share"` an ID, or `"extend"` each such ID by one more token.
        seed (`int`, *optional*, defaults to `0`):
            Seed of vectors and centroids. The same seed gives the same IDs on the same machine.
        overwrite (`bool`, *optional*, defaults to `False`):
            Replace IDs that were made otherwise, or came with the data.
    """
    num_items = len(dataset.catalog)
    settings: dict[str, Any] = {
        "vectors": "co-occurrence",
        "levels": levels,
        "codes": codes,
        "width": width,
        "window": window,
    }
    settings |= {"iterations": iterations, "collisions": collisions, "seed": seed}
    _check_senseless(settings, num_items)
    if is_written(dataset, settings, overwrite):
        logger.info("%s has these semantic IDs already", dataset.path)
        return with_stored_ids(dataset)
    logger.info("making vectors of %d items", num_items)
    vectors = cooccurrence_vectors(dataset.train, num_items, width=width, window=window, seed=seed)
    found = residual_kmeans(vectors, levels=levels, codes=codes, iterations=iterations, seed=seed)
    repaired = repair_last_level(found.codes, found.last_residuals, found.codebooks[-1])
    extra = number_within_group(repaired) if collisions == "extend" else torch.full((num_items,), -1)
    made = IdCodes(found.codes, repaired, extra, found.errors, codes)
    chosen, unseen = popularity(dataset.train, num_items), int((vectors == 0).all(1).sum())
    semantic_ids = id_tokens(repaired, extra)
    card = make_card(made, semantic_ids, dataset.catalog, chosen, settings=settings, without_vector=unseen)
    write_ids(dataset, semantic_ids, card)
    return with_stored_ids(dataset)


def _check_senseless(settings: dict[str, Any], num_items: int) -> None:
    check_codes(settings, num_items)
    for name in ("width", "window", "iterations"):
        if settings[name] < 1:
            raise ValueError(f"{name}={settings[name]}: give a number from 1")
