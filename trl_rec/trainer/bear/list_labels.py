"""What stands behind the labels of rows of lists: where each token is chosen, and what is not legal there any more.

Legend: B rows, T tokens of the longest (padded), K items of the longest list, E items of the longest history, M tokens
where the trie branches.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from datasets import Dataset
from torch import Tensor

from trl_rec.data.dataset import split_rows
from trl_rec.data.rows import IGNORED
from trl_rec.decoding.excluded import Excluded
from trl_rec.decoding.list_constraint import list_tokens, num_legal, taken_places
from trl_rec.items.trie import TokenTrie
from trl_rec.ragged import Ragged


def list_choices(
    rows: list[dict[str, Any]], labels: Tensor, trie: TokenTrie, exclude_history: bool
) -> dict[str, Tensor]:
    """Where the labels `(B, T)` of rows with `items` and `history` are chosen.

    Returns:
        `trie_nodes (B, T)`, the node of each label, -1 where it is forced, the EOS after a list among them; `ranks (B,
        T)`, the item's place in the list; `items (B, K)`, padded with -1; and `excluded (B, E)`, as `Excluded.places`
        holds it.
    """
    items = torch.from_numpy(Ragged.from_lists([row["items"] for row in rows]).padded())
    histories = [row["history"] for row in rows] if exclude_history else None
    excluded = Excluded(trie, histories, len(rows)).places.long()
    lists = list_tokens(trie, items)
    owner = lists.branches.nonzero()[:, 0]  # (M,)
    taken = taken_places(trie, items[owner], lists.ranks[lists.branches], excluded[owner])
    free = lists.branches.masked_scatter(lists.branches, num_legal(trie, lists.nodes[lists.branches], taken) > 1)
    order = (labels != IGNORED).cumsum(1) - 1  # a row's labels are its list's tokens, and perhaps EOS
    place = order.clamp(min=0, max=free.shape[1] - 1)
    chosen = (labels != IGNORED) & (order < lists.mask.sum(1, keepdim=True)) & free.gather(1, place)
    return {
        "trie_nodes": torch.where(chosen, lists.nodes.gather(1, place), -1),
        "ranks": lists.ranks.gather(1, place),
        "items": items,
        "excluded": excluded,
    }


def check_lists(rows: Dataset, trie: TokenTrie, exclude_history: bool) -> None:
    """Refuses rows whose labels are not the paths of their `items`, and lists that could not be drawn."""
    items, histories = split_rows(rows, "items"), split_rows(rows, "history")
    _refuse(_repeats(items), "its list holds an item twice")
    if exclude_history:
        known = _known(items, histories)
        _refuse(known, "its list holds an item of the history; to allow it set eval_exclude_history to false")
    labels, trie = split_rows(rows, "labels"), trie.to("cpu")
    learned = labels.values != IGNORED
    tokens = Ragged.from_lengths(labels.values[learned], np.bincount(labels.row_ids[learned], minlength=len(labels)))
    for first in range(0, len(items), 10_000):
        part = np.arange(first, min(first + 10_000, len(items)))
        lists = list_tokens(trie, torch.from_numpy(items.take(part).padded()))
        width, lengths = lists.mask.shape[1], tokens.lengths[part]
        given = tokens.take(part).slice(0 * lengths, np.minimum(lengths, width)).padded(width=width)
        more = torch.from_numpy(lengths) - lists.mask.sum(1)
        same = (torch.from_numpy(given) == lists.token_ids) | ~lists.mask
        strange = (more < 0) | (more > 1) | ~same.all(1)
        _refuse(
            part[strange.numpy()], "its labels are not the list of its items; was the row built with this catalogue?"
        )


def _refuse(found: np.ndarray, why: str) -> None:
    if len(found):
        raise ValueError(f"row {found[0]}: {why}")


def _repeats(items: Ragged) -> np.ndarray:
    """The rows that hold an item twice."""
    order = np.lexsort((items.values, items.row_ids))
    row, item = items.row_ids[order], items.values[order]
    return row[1:][(row[1:] == row[:-1]) & (item[1:] == item[:-1])]


def _known(items: Ragged, histories: Ragged) -> np.ndarray:
    """The rows that hold an item of their history."""
    keys = [rows.row_ids.astype(np.int64) * (1 << 32) + rows.values for rows in (items, histories)]
    return items.row_ids[np.isin(*keys)]
