"""Formats ranked lists as readable text: recent history items, recommendations, and the items chosen next."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from datasets import Dataset

from trl_rec.data.dataset import split_rows
from trl_rec.evaluation.rankings import Rankings
from trl_rec.items.catalog import ItemCatalog
from trl_rec.printing import printable


def readable_lists(
    ranked: Rankings | np.ndarray,
    split: Dataset,
    catalog: ItemCatalog,
    *,
    rows: Sequence[int] | None = None,
    num_recent: int = 3,
) -> str:
    """Formats the lists of some rows of a split as text. An arrow marks the items that the user chose next.

    Args:
        ranked (`Rankings`, or `np.ndarray` of shape `(len(split), K)`): The recommended items of each row, best first.
        split (`Dataset`): Split that contains the histories and targets.
        catalog (`ItemCatalog`): Catalogue that contains the titles.
        rows (`Sequence[int]`, *optional*): Numbers of the rows to show. By default, the first ten.
        num_recent (`int`, *optional*, defaults to `3`): Number of recent history items to show, newest first.
    """
    items = ranked.items if isinstance(ranked, Rankings) else ranked
    titles = [printable(title) for title in catalog.titles]
    histories = split_rows(split, "history")
    targets = split_rows(split, "targets")
    blocks = []
    for row in range(min(10, len(split))) if rows is None else rows:
        newest_first = histories[row][::-1]
        recent = " | ".join(titles[item] for item in newest_first[:num_recent])
        chosen = set(targets[row].tolist())
        lines = [f"after {recent}"]

        # Write one line per rank, then one line for the chosen items that are not in the list.
        for rank, item in enumerate(items[row], 1):
            if item < 0:  # this rank and all later ranks are missing
                break
            mark = "->" if item in chosen else "  "
            lines.append(f"{mark} {rank:>2}. {titles[item]}")
        missed = sorted(chosen - set(items[row].tolist()))
        if missed:
            lines.append(f"   next items: {', '.join(titles[item] for item in missed)}")
        blocks.append("\n".join(lines))
    return "\n\n".join(blocks)
