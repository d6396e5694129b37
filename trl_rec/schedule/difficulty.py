"""Classifies the policy's own recommendations by how hard they are to distinguish from the target.

Legend: N prompts, W beams per prompt (the items that beam search recommends, best first, padded with -1).
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
    """Returns the difficulty of each beam: 0 (easy), 1 (medium), 2 (hard), or -1 if the beam cannot be a negative.

    With semantic IDs, the difficulty is the number of leading tokens that the beam shares with the target: none
    (easy), one (medium), or more (hard). With titles and item tokens, the difficulty depends on the beam's rank among
    the beams that can be negatives: the last third is easy, the middle third medium, and the first third hard.

    A beam cannot be a negative if its text equals the text of the target, of another item of the user in the training
    split, or of a better beam of the same prompt. Texts are compared because the model cannot distinguish items with
    the same text.

    Args:
        prefixes, beams, catalog, train: As in [`self_play_preferences`].

    Returns:
        `np.ndarray` of int8 and shape `(N, W)`.
    """
    check_prefixes(prefixes)
    _check_beams(beams, len(prefixes), len(catalog))
    targets = column(prefixes, "target")
    possible = _can_be_negative(column(prefixes, "user"), targets, beams, surface_codes(catalog), train)

    # Difficulty of each beam, (N, W). The values for beams that cannot be negatives are replaced by -1 below.
    if catalog.surface == "semantic_id":
        level = np.minimum(_num_shared_tokens(catalog, beams, targets), 2)
    else:
        rank = np.cumsum(possible, 1) - 1  # among the beams that can be negatives
        level = 2 - 3 * rank // np.maximum(possible.sum(1, keepdims=True), 1)
    return np.where(possible, level, -1).astype(np.int8)


def _check_beams(beams: np.ndarray, num_prompts: int, num_items: int) -> None:
    """Raises `ValueError` unless there is one row of beams per prompt, and each beam is an item of the catalogue or
    padding (-1)."""
    if beams.ndim != 2 or len(beams) != num_prompts:
        raise ValueError(
            f"the beams have shape {beams.shape}, but there are {num_prompts} prefixes; compute the beams from "
            "these prefixes"
        )
    invalid = np.argwhere((beams < -1) | (beams >= num_items))
    if len(invalid):
        row, rank = invalid[0]
        raise ValueError(
            f"the beams of row {row} contain item {beams[row, rank]}, but the catalogue has {num_items} items; "
            "compute the beams with this catalogue"
        )


def _can_be_negative(
    users: np.ndarray, targets: np.ndarray, beams: np.ndarray, codes: np.ndarray, train: Dataset
) -> np.ndarray:
    """Returns whether each beam can be a negative, `(N, W)`. `codes` are equal for items with the same text."""
    beam_codes = np.where(beams >= 0, codes[beams], -1)
    is_target = beam_codes == codes[targets][:, None]
    is_known = TrainingPairs.from_split(train, codes).contain(users[:, None], beam_codes)
    can_be_negative: np.ndarray = first_occurrences(beam_codes) & ~is_target & ~is_known
    return can_be_negative


def _num_shared_tokens(catalog: ItemCatalog, beams: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """Returns the number of leading tokens that the semantic IDs of a beam and of the target share, `(N, W)`.

    The padding after short IDs counts as shared. So if a beam has the target's ID, the number may exceed the length of
    this ID. Such a beam is never a negative.
    """
    assert catalog.semantic_ids is not None
    # Encode tokens as integers, so that all beams are compared at once for each level (token position) of the IDs.
    tokens = np.unique(catalog.semantic_ids.values.astype(str), return_inverse=True)[1]
    ids = Ragged(tokens, catalog.semantic_ids.offsets).padded()  # (num_items, longest ID)

    # Count levels until the first token that differs from the target.
    shared = np.ones(beams.shape, bool)
    num_shared = np.zeros(beams.shape, np.int64)
    for level in range(ids.shape[1]):
        shared &= ids[beams, level] == ids[targets, level][:, None]
        num_shared += shared
    return num_shared
