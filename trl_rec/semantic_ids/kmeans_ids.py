"""Makes semantic IDs from the co-occurrence of items in the training split.

Items that occur near the same items usually get IDs that begin with the same codes. The method quantises co-occurrence
vectors by residual k-means, and then resolves collisions (items with the same codes). It is fast, because it needs
neither a text encoder nor gradient-based training.
"""

from __future__ import annotations

import logging
from functools import partial
from typing import Any

import torch

from trl_rec.data import RecDataset
from trl_rec.ranges import COUNT, SEED
from trl_rec.semantic_ids.card import IdCodes, make_card
from trl_rec.semantic_ids.collisions import number_within_group, repair_last_level
from trl_rec.semantic_ids.cooccurrence import popularity
from trl_rec.semantic_ids.item_vectors import cooccurrence_vectors
from trl_rec.semantic_ids.residual import residual_kmeans
from trl_rec.semantic_ids.storage import make_once, write_ids
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
    """Makes semantic IDs for all items of the catalogue and writes them into the dataset folder.

    The IDs are computed from the training split. Items that do not occur in it get IDs too.

    If the folder already contains IDs made with the same settings, they are reused.

    Args:
        dataset (`RecDataset`): A dataset returned by `prepare` or `load`.
        levels (`int`, *optional*, defaults to `3`): Number of codes per ID.
        codes (`int`, *optional*, defaults to `256`): Number of different codes per level. With fewer codes, such as 32
            for a small catalogue, more items share their first codes.
        width (`int`, *optional*, defaults to `64`): Width of the item vectors, limited to the number of items.
        window (`int`, *optional*, defaults to `5`): Maximum distance at which two items of a user count as near each
            other.
        iterations (`int`, *optional*, defaults to `25`): Maximum number of k-means iterations per level.
        collisions (`str`, *optional*, defaults to `"share"`): The last code of some items is changed, so that fewer
            items have the same codes. This option says what to do with items that still have the same codes. With
            `"share"` they have the same ID. With `"extend"` an additional token is appended to each of their IDs.
        seed (`int`, *optional*, defaults to `0`): Random seed. The same seed gives the same IDs on the same machine.
        overwrite (`bool`, *optional*, defaults to `False`): Whether to replace IDs that were made with other settings
            or came with the data. If False, such IDs raise a ValueError.

    Returns:
        [`RecDataset`]: The dataset with the IDs in its catalogue. The catalogue's surface does not change.
    """
    settings: dict[str, Any] = {
        "vectors": "co-occurrence",
        "levels": levels,
        "codes": codes,
        "width": width,
        "window": window,
        "iterations": iterations,
        "collisions": collisions,
        "seed": seed,
    }
    _check_settings(settings, len(dataset.catalog))
    return make_once(dataset, settings, partial(_make, dataset, settings), overwrite=overwrite)


def _make(dataset: RecDataset, settings: dict[str, Any]) -> None:
    """Makes and writes the IDs."""
    num_items = len(dataset.catalog)
    seed = settings["seed"]

    # 1. Compute item vectors and quantise them.
    logger.info("computing the vectors of %d items", num_items)
    vectors = cooccurrence_vectors(
        dataset.train, num_items, width=settings["width"], window=settings["window"], seed=seed
    )
    quantized = residual_kmeans(
        vectors, levels=settings["levels"], codes=settings["codes"], iterations=settings["iterations"], seed=seed
    )

    # 2. Resolve collisions.
    repaired = repair_last_level(quantized.codes, quantized.last_residuals, quantized.codebooks[-1])
    extra = number_within_group(repaired) if settings["collisions"] == "extend" else torch.full((num_items,), -1)

    # 3. Write the tokens, and a card with statistics of the IDs.
    semantic_ids = id_tokens(repaired, extra)
    card = make_card(
        IdCodes(quantized.codes, repaired, extra, quantized.errors, settings["codes"]),
        semantic_ids,
        dataset.catalog,
        popularity(dataset.train, num_items),
        settings=settings,
        without_vector=int((vectors == 0).all(1).sum()),
    )
    write_ids(dataset, semantic_ids, card)


def _check_settings(settings: dict[str, Any], num_items: int) -> None:
    check_codes(settings, num_items)
    for name in ("width", "window", "iterations"):
        COUNT.check(name, settings[name])
    SEED.check("seed", settings["seed"])
