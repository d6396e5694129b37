"""Builds preference tables whose negatives are the policy's own beams of a given difficulty, or random items.

A *preference table* has one row per prompt. Its columns are `user`, `history`, `chosen` and `rejected`. The last three
contain item indices. The rejected items of a row, also called its negatives, are distinct and do not include the
chosen item. A row may have no negatives. If the table is built with a catalogue, the texts of the row's chosen and
rejected items are distinct too, because a model cannot distinguish items with the same text.

Legend: N prompts, W beams per prompt (the items that beam search recommends, best first, padded with -1).
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
from datasets import Dataset

from trl_rec.data.dataset import split_rows
from trl_rec.items.catalog import ItemCatalog
from trl_rec.ragged import Ragged
from trl_rec.ranges import COUNT
from trl_rec.schedule.difficulty import DIFFICULTIES, self_play_buckets
from trl_rec.schedule.draws import draw
from trl_rec.schedule.prefixes import check_prefixes, column
from trl_rec.schedule.training_pairs import TrainingPairs, surface_codes


def self_play_preferences(
    prefixes: Dataset,
    beams: np.ndarray,
    catalog: ItemCatalog,
    *,
    train: Dataset,
    difficulty: str = "any",
    num_negatives: int = 20,
) -> Dataset:
    """Builds a preference table whose negatives are the policy's own recommendations, best first.

    The negatives include neither the target nor any other item of the user in the training split. The other items are
    left out because they can be the targets of other prompts of the user.

    The negatives may include validation and test items of the user. Excluding them would require the held-out data,
    and a model could learn the held-out items from their absence among the negatives. So held-out items are treated
    like all items that the user does not have in the training split.

    Args:
        prefixes: Prompts from `training_prefixes`.
        beams (`np.ndarray` of shape `(N, W)`): Recommendations for the prefixes, from `self_play_beams`.
        catalog: The catalogue. Its surface determines how difficulty is defined; see [`self_play_buckets`].
        train: The training split that the prefixes come from.
        difficulty (*optional*, defaults to `"any"`): `"easy"`, `"medium"`, `"hard"` or `"any"`.
        num_negatives (*optional*, defaults to `20`): Maximum number of negatives per prompt.
    """
    if difficulty not in (*DIFFICULTIES, "any"):
        raise ValueError(f"difficulty must be easy, medium, hard or any, not {difficulty!r}")
    COUNT.check("num_negatives", num_negatives)

    # Keep the first `num_negatives` beams of the given difficulty. They are the best, because beams are sorted by
    # score.
    buckets = self_play_buckets(prefixes, beams, catalog, train=train)  # (N, W)
    keep = buckets >= 0 if difficulty == "any" else buckets == DIFFICULTIES.index(difficulty)
    keep &= np.cumsum(keep, 1) <= num_negatives
    return preference_table(prefixes, Ragged.from_lengths(beams[keep], keep.sum(1)))


def random_preferences(
    prefixes: Dataset,
    num_items: int,
    *,
    train: Dataset,
    num_negatives: int = 20,
    seed: int = 0,
    catalog: ItemCatalog | None = None,
) -> Dataset:
    """Builds a preference table with random negatives, excluding the user's items in the training split.

    The Softmax-DPO paper uses such negatives. The negatives of a row are the first allowed items of a random
    permutation of the catalogue. This permutation depends only on the seed and the index of the row.

    Args:
        prefixes: Prompts from `training_prefixes`.
        num_items: Size of the catalogue.
        train: The training split that the prefixes come from.
        num_negatives (*optional*, defaults to `20`): Maximum number of negatives per prompt. A prompt has fewer if the
            catalogue has too few items other than those of the user.
        seed (*optional*, defaults to `0`): Seed of the negatives.
        catalog (*optional*): Required if several items may have the same text. They then count as one item, and the
            first of them is used.
    """
    check_prefixes(prefixes)
    COUNT.check("num_negatives", num_negatives)
    if catalog is not None and len(catalog) != num_items:
        raise ValueError(
            f"num_items={num_items}, but the catalogue has {len(catalog)} items; pass the catalogue of the dataset"
        )

    # 1. Number the distinct texts of items. Without a catalogue, every item has its own number (code).
    codes = np.arange(num_items) if catalog is None else surface_codes(catalog)
    first_item = np.unique(codes, return_index=True)[1]  # (num_codes,)
    users = column(prefixes, "user")
    target_codes = codes[column(prefixes, "target")]
    known = TrainingPairs.from_split(train, codes)

    def _is_allowed(rows: np.ndarray, drawn_codes: np.ndarray) -> np.ndarray:
        """Returns whether each code may be drawn, that is, whether it differs from the codes of the row's target and
        of all items that the row's user has in the training split."""
        is_allowed: np.ndarray = (drawn_codes != target_codes[rows]) & ~known.contain(users[rows], drawn_codes)
        return is_allowed

    # 2. Draw texts by their codes, and replace each of them by its first item.
    drawn = draw(np.arange(len(prefixes)), num_negatives, len(first_item), seed, _is_allowed)  # (N, num_negatives)
    is_drawn = drawn >= 0
    return preference_table(prefixes, Ragged.from_lengths(first_item[drawn[is_drawn]], is_drawn.sum(1)))


def preference_table(prefixes: Dataset, rejected: Ragged) -> Dataset:
    """Builds a preference table. The targets of the prefixes are the chosen items. `rejected` has one row per
    prefix."""
    history = split_rows(prefixes, "history")
    columns = {
        "user": pa.array(column(prefixes, "user"), pa.int32()),
        "history": Ragged(history.values.astype(np.int32), history.offsets).to_arrow(),
        "chosen": pa.array(column(prefixes, "target"), pa.int32()),
        "rejected": Ragged(rejected.values.astype(np.int32), rejected.offsets).to_arrow(),
    }
    return Dataset(pa.table(columns), split="train")


def bucket_report(table: Dataset, buckets: np.ndarray | None = None) -> dict[str, Any]:
    """Computes statistics of a preference table for the report of a stage, as values that can be written to JSON.

    Args:
        table: The preference table.
        buckets (*optional*): The difficulties of the beams, as returned by `self_play_buckets`.

    Returns:
        `num_prompts`, `without_negatives` (share of prompts that have no negatives) and `mean_negatives` (mean number
        per prompt). If buckets are given, the result also contains `buckets`. It maps `easy`, `medium` and `hard` to
        the number of `items`, the `mean` number per prompt, and the share of prompts `without` such items.
    """
    counts = split_rows(table, "rejected").lengths
    without, mean = _statistics(counts)
    report: dict[str, Any] = {"num_prompts": len(counts), "without_negatives": without, "mean_negatives": mean}

    if buckets is not None:
        report["buckets"] = {}
        for level, name in enumerate(DIFFICULTIES):
            sizes = (buckets == level).sum(1)  # (N,)
            without, mean = _statistics(sizes)
            report["buckets"][name] = {"items": int(sizes.sum()), "without": without, "mean": mean}
    return report


def _statistics(counts: np.ndarray) -> tuple[float, float]:
    """Returns the share of counts that are 0, and the mean count. Both are 0 if there are no counts."""
    number = max(len(counts), 1)
    return float((counts == 0).sum() / number), float(counts.sum() / number)
