"""Ranked lists as people read them: the end of a history, what is recommended, and where the next item stands."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from datasets import Dataset

from trl_rec.data.dataset import split_rows
from trl_rec.items.catalog import ItemCatalog


def readable_lists(
    ranked: np.ndarray, split: Dataset, catalog: ItemCatalog, *, rows: Sequence[int] = range(10), num_recent: int = 3
) -> str:
    """The lists of some rows of a split as text, the users' next items marked.

    Args:
        ranked (`np.ndarray` of shape `(len(split), K)`): Item indices, best first.
        split (`Dataset`): Where histories and targets come from.
        catalog (`ItemCatalog`): The titles.
        rows (`Sequence[int]`, *optional*): Which rows to show.
        num_recent (`int`, *optional*, defaults to `3`): Items of the history to show, newest first.
    """
    histories, targets = split_rows(split, "history"), split_rows(split, "targets")
    blocks = []
    for row in rows:
        recent = " | ".join(catalog.titles[item] for item in histories[row][::-1][:num_recent])
        wanted = set(targets[row].tolist())
        listed = [
            f"{'->' if item in wanted else '  '} {rank:>2}. {catalog.titles[item]}"
            for rank, item in enumerate(ranked[row], 1)
        ]
        missed = [catalog.titles[item] for item in sorted(wanted - set(ranked[row].tolist()))]
        note = [f"   next was: {', '.join(missed)}"] if missed else []
        blocks.append("\n".join([f"after {recent}", *listed, *note]))
    return "\n\n".join(blocks)
