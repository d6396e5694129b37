"""Sorts the policy's own recommendations by difficulty: how hard they are to tell from the target.

Legend: N prompts, W beams per prompt, best first, -1 where a prompt has fewer.
"""

from __future__ import annotations

import numpy as np
from datasets import Dataset

from trl_rec.evaluation.metrics import first_occurrences
from trl_rec.items.catalog import ItemCatalog
from trl_rec.ragged import Ragged
from trl_rec.schedule.prefixes import check_prefixes, column
from trl_rec.schedule.training_pairs import TrainingPairs, surface_codes


DIFFICULTIES = ("easy", "medium", "hard")


def self_play_buckets(prefixes: Dataset, beams: np.ndarray, catalog: ItemCatalog, *, train: Dataset) -> np.ndarray:
    """The difficulty of each beam: 0 easy, 1 medium, 2 hard, -1 if it cannot be a negative.

    With semantic IDs, the difficulty is the number of first tokens that the beam shares with the target: none (easy),
    one (medium), or more (hard). With titles and item tokens, it is the third of the policy's ranking that the beam is
    in: the last third is easy, the first is hard. Only beams that can be negatives are counted.

    A beam cannot be a negative if it is written exactly like the target, like an item that the user chose in training,
    or like a better beam of the same prompt. What counts is the text, because the model sees nothing else.

    Args:
        prefixes, beams, catalog, train: As in [`self_play_preferences`].

    Returns:
        `np.ndarray` of int8 and shape `(N, W)`.
    """
    check_prefixes(prefixes)
    _check_beams(beams, len(prefixes), len(catalog))
    targets = column(prefixes, "target")
    possible = _can_be_negative(column(prefixes, "user"), targets, beams, surface_codes(catalog), train)

    # 0 easy, 1 medium, 2 hard, (N, W); values at impossible beams are not used.
    if catalog.surface == "semantic_id":
        level = np.minimum(_num_shared_tokens(catalog, beams, targets), 2)
    else:
        place = np.cumsum(possible, 1) - 1  # among the beams that can be negatives
        level = 2 - 3 * place // np.maximum(possible.sum(1, keepdims=True), 1)
    return np.where(possible, level, -1).astype(np.int8)


def _check_beams(beams: np.ndarray, num_prompts: int, num_items: int) -> None:
    if beams.ndim != 2 or len(beams) != num_prompts:
        raise ValueError(
            f"the beams have shape {beams.shape}, but there are {num_prompts} prefixes; compute them from these"
        )
    invalid = np.argwhere((beams < -1) | (beams >= num_items))
    if len(invalid):
        row, rank = invalid[0]
        raise ValueError(
            f"the beams of row {row} contain item {beams[row, rank]}, but the catalogue has {num_items} items; "
            "compute them with this catalogue"
        )


def _can_be_negative(
    users: np.ndarray, targets: np.ndarray, beams: np.ndarray, codes: np.ndarray, train: Dataset
) -> np.ndarray:
    """Boolean `(N, W)`. Items are compared by `codes`, which are equal for items that are written in the same way."""
    beam_codes = np.where(beams >= 0, codes[beams], -1)
    is_target = beam_codes == codes[targets][:, None]
    is_known = TrainingPairs.from_split(train, codes).contain(users[:, None], beam_codes)
    can_be_negative: np.ndarray = first_occurrences(beam_codes) & ~is_target & ~is_known
    return can_be_negative


def _num_shared_tokens(catalog: ItemCatalog, beams: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """`(N, W)`: the number of first tokens that the semantic IDs of a beam and its target share.

    The number may be too large for a beam with the same ID as the target, but such a beam is never a negative.
    """
    assert catalog.semantic_ids is not None
    # Tokens as integers, so that whole levels are compared at once.
    tokens = np.unique(catalog.semantic_ids.values.astype(str), return_inverse=True)[1]
    ids = Ragged(tokens, catalog.semantic_ids.offsets).padded()  # (num_items, longest ID)

    # Level by level, a beam stays in as long as all tokens so far are the target's.
    shared = np.ones(beams.shape, bool)
    num_shared = np.zeros(beams.shape, np.int64)
    for level in range(ids.shape[1]):
        shared &= ids[beams, level] == ids[targets, level][:, None]
        num_shared += shared
    return num_shared
