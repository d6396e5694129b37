"""How hard each of the policy's own recommendations is to tell from the target, and which may be negatives at all.

Legend: N prompts, W beams of each, best first, -1 where there is none.
"""

from __future__ import annotations

import numpy as np
from datasets import Dataset

from trl_rec.items.catalog import ItemCatalog
from trl_rec.ragged import Ragged
from trl_rec.schedule.prefixes import check_prefixes, column
from trl_rec.schedule.training_pairs import TrainingPairs, surface_codes


DIFFICULTIES = ("easy", "medium", "hard")


def self_play_buckets(prefixes: Dataset, beams: np.ndarray, catalog: ItemCatalog, *, train: Dataset) -> np.ndarray:
    """How hard each beam is to tell from the target: 0 easy, 1 medium, 2 hard, -1 where it cannot be a negative.

    With semantic IDs: how many of its first tokens it shares with the target, none, one, or more. With titles and item
    tokens: the third of the policy's ranking it is in, the lowest third being easy, counted over the beams that can be
    negatives. Cannot be one: an item written exactly like the target, like an item the user chose in training, or like
    a better beam of the prompt, since all that the model sees is how an item is written.

    Args:
        prefixes, beams, catalog, train: As in [`self_play_preferences`].

    Returns:
        `np.ndarray` of int8 and shape `(N, W)`.
    """
    check_prefixes(prefixes)
    _check_unfit_beams(beams, len(prefixes), len(catalog))
    targets = column(prefixes, "target")
    possible = _possible(column(prefixes, "user"), targets, beams, surface_codes(catalog), train)
    if catalog.surface == "semantic_id":
        level = np.minimum(_common_prefix(catalog, beams, targets), 2)
    else:
        place = np.cumsum(possible, 1) - 1
        level = 2 - 3 * place // np.maximum(possible.sum(1, keepdims=True), 1)
    return np.where(possible, level, -1).astype(np.int8)


def _check_unfit_beams(beams: np.ndarray, num_prompts: int, num_items: int) -> None:
    if beams.ndim != 2 or len(beams) != num_prompts:
        raise ValueError(
            f"the beams have shape {beams.shape}, but there are {num_prompts} prefixes; make them from these"
        )
    outside = np.argwhere((beams < -1) | (beams >= num_items))
    if len(outside):
        row, place = outside[0]
        raise ValueError(
            f"the beams of row {row} hold item {beams[row, place]}, the catalogue {num_items} items; make them from this one"
        )


def _possible(
    users: np.ndarray, targets: np.ndarray, beams: np.ndarray, codes: np.ndarray, train: Dataset
) -> np.ndarray:
    written = np.where(beams >= 0, codes[beams], -1)
    known = TrainingPairs.read(train, codes).hold(users[:, None], written)
    return (beams >= 0) & (written != codes[targets][:, None]) & ~known & ~_seen_before(written)


def _seen_before(values: np.ndarray) -> np.ndarray:
    """Whether a value occurs further left in its row."""
    order = np.argsort(values, 1, kind="stable")
    ascending = np.take_along_axis(values, order, 1)
    same = np.zeros(values.shape, bool)
    same[:, 1:] = ascending[:, 1:] == ascending[:, :-1]
    seen = np.empty_like(same)
    np.put_along_axis(seen, order, same, 1)
    return seen


def _common_prefix(catalog: ItemCatalog, beams: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """`(N, W)`: how many first tokens of the semantic ID a beam shares with the target. Items that share a whole ID
    may get too large a number."""
    assert catalog.semantic_ids is not None
    tokens = np.unique(catalog.semantic_ids.values.astype(str), return_inverse=True)[1]
    ids = Ragged(tokens, catalog.semantic_ids.offsets).padded()
    shared, common = np.ones(beams.shape, bool), np.zeros(beams.shape, np.int64)
    for level in range(ids.shape[1]):
        shared &= ids[beams, level] == ids[targets, level][:, None]
        common += shared
    return common
