"""Where the negatives of preference training come from: the policy's own beams, sorted by difficulty, or chance.

All makers of candidates give a *preference table*: `user, history, chosen, rejected`, item indices, one row a prompt.
The rejected items of a row are distinct, never the chosen one, and there may be none. So are their texts where the
maker is given the catalogue: items that are written the same are one to the model.

Legend: N prompts, W beams of each, best first, -1 where there is none.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
from datasets import Dataset

from trl_rec.data.dataset import split_rows
from trl_rec.items.catalog import ItemCatalog
from trl_rec.ragged import Ragged
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
    """Preference table with the policy's own recommendations as negatives, those it scores best first.

    Left out are the target and whatever the user chose anywhere in training: the same training run teaches these as
    right answers to the same user, and would be told both. The user's validation and test items stay in if the policy
    recommends them. Taking them out would need the held-out data, and a model whose negatives never hold them has been
    told about them; as it is, they are treated like any item of which training says nothing.

    Args:
        prefixes: What `training_prefixes` made.
        beams (`np.ndarray` of shape `(N, W)`): What `self_play_beams` made of them.
        catalog: The items; its surface decides what difficulty means, see [`self_play_buckets`].
        train: The training split that the prefixes come from.
        difficulty: `"easy"`, `"medium"`, `"hard"` or `"any"`.
        num_negatives: Most negatives of a prompt.
    """
    if difficulty not in (*DIFFICULTIES, "any"):
        raise ValueError(f"difficulty must be easy, medium, hard or any, not {difficulty!r}")
    check_negatives(num_negatives)
    buckets = self_play_buckets(prefixes, beams, catalog, train=train)
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
    """Preference table with negatives drawn evenly from the items that the user did not choose in training, the
    baseline of Softmax-DPO. Which ones is a function of the seed and the row.

    Args:
        prefixes: What `training_prefixes` made.
        num_items: Size of the catalogue.
        train: The training split that the prefixes come from.
        num_negatives: Negatives of a prompt; fewer where the catalogue has no more.
        seed: Chooses them.
        catalog (*optional*): Needed where items may be written the same. Those then count as one item, the first of
            them.
    """
    check_prefixes(prefixes)
    check_negatives(num_negatives)
    if catalog is not None and len(catalog) != num_items:
        raise ValueError(
            f"num_items={num_items}, but the catalogue has {len(catalog)} items; give the catalogue of the data"
        )
    codes = np.arange(num_items) if catalog is None else surface_codes(catalog)
    users, known = column(prefixes, "user"), TrainingPairs.read(train, codes)
    targets = codes[column(prefixes, "target")]
    first = np.unique(codes, return_index=True)[1]

    def allowed(at: np.ndarray, written: np.ndarray) -> np.ndarray:
        return (written != targets[at]) & ~known.hold(users[at], written)

    drawn = draw(np.arange(len(prefixes)), num_negatives, len(first), seed, allowed)
    return preference_table(prefixes, Ragged.from_lengths(first[drawn[drawn >= 0]], (drawn >= 0).sum(1)))


def preference_table(prefixes: Dataset, rejected: Ragged) -> Dataset:
    """Row `i`: prefix `i`, its target as the chosen item, and the rejected ones."""
    history = split_rows(prefixes, "history")
    columns = {
        "user": pa.array(column(prefixes, "user"), pa.int32()),
        "history": Ragged(history.values.astype(np.int32), history.offsets).to_arrow(),
        "chosen": pa.array(column(prefixes, "target"), pa.int32()),
        "rejected": Ragged(rejected.values.astype(np.int32), rejected.offsets).to_arrow(),
    }
    return Dataset(pa.table(columns), split="train")


def bucket_report(table: Dataset, buckets: np.ndarray | None = None) -> dict[str, Any]:
    """Figures on a preference table for a stage's report, as JSON takes them.

    Args:
        table: The preference table.
        buckets (*optional*): What `self_play_buckets` gave: the report then also holds the sizes of the three buckets.

    Returns:
        `num_prompts`, `without_negatives` (a share), `mean_negatives` and perhaps `buckets`, which holds for `easy`,
        `medium` and `hard` the number of `items`, their `mean` number a prompt and the share of prompts `without` any.
    """
    counts = split_rows(table, "rejected").lengths
    report: dict[str, Any] = {"num_prompts": len(counts), **_told(counts, "without_negatives", "mean_negatives")}
    if buckets is not None:
        sizes = [(buckets == level).sum(1) for level in range(len(DIFFICULTIES))]
        report["buckets"] = {
            name: {"items": int(size.sum()), **_told(size, "without", "mean")}
            for name, size in zip(DIFFICULTIES, sizes, strict=True)
        }
    return report


def check_negatives(num_negatives: int) -> None:
    """Raises where not even one negative is asked for."""
    if num_negatives < 1:
        raise ValueError(f"num_negatives={num_negatives}: a preference needs a negative at least")


def _told(counts: np.ndarray, none: str, mean: str) -> dict[str, float]:
    number = max(len(counts), 1)
    return {none: float((counts == 0).sum() / number), mean: float(counts.sum() / number)}
