"""Finds, for each label of a list row, the trie node before the label and the items that are illegal at the label.

A list row is a training row whose completion is a list of items. Items that stand earlier in the list are illegal.
Optionally, the items of the history are illegal too.

Legend: B rows, T tokens of the longest row, K items of the longest list, E excluded items per prompt (padded), M list
tokens before which the trie branches (the node before the token has several children).
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from datasets import Dataset
from torch import Tensor

from trl_rec.data.branches.structure import IGNORED
from trl_rec.data.dataset import split_rows
from trl_rec.decoding.excluded import Excluded
from trl_rec.decoding.lists.constraint import list_tokens, num_legal, taken_places
from trl_rec.items.trie import TokenTrie
from trl_rec.items.twins import Twins
from trl_rec.ragged import Ragged


CHECKED_TOGETHER = 10_000  # number of rows that are checked at once, to limit memory


def list_choices(
    rows: list[dict[str, Any]],
    labels: Tensor,
    trie: TokenTrie,
    exclude_history: bool,
    twins: Twins | None = None,
) -> dict[str, Tensor]:
    """Returns the trie nodes, and the data that determines illegal items, for the labels of a batch of list rows.

    Args:
        rows: Rows with the fields `items` (the list) and `history`.
        labels: `(B, T)`, padded.
        trie: Trie of the catalogue.
        exclude_history: Whether items of the history are illegal.
        twins (*optional*): Groups of items with the same title. If the items of the history are illegal, so are all
            items of their groups.

    Returns:
        - `trie_nodes`, `(B, T)`: The node before each label, or -1 where there is no label or the label is forced (the
          only legal token). The EOS after a list is forced.
        - `ranks`, `(B, T)`: The rank of the label's item in the list, from 0. Arbitrary where `trie_nodes` is -1.
        - `items`, `(B, K)`: The lists, padded with -1.
        - `excluded`, `(B, E)`: The items that are illegal at every label, as sorted indices into `trie.items`, padded
          with `trie.num_items`.
    """
    # 1. Tokenize each list, and look up the items that are illegal at every label of the row.
    items = torch.from_numpy(Ragged.from_lists([row["items"] for row in rows]).padded())  # (B, K)
    histories = Ragged.from_lists([row["history"] if exclude_history else [] for row in rows])
    histories = histories if twins is None else twins.complete(histories)
    excluded = Excluded(trie, torch.from_numpy(histories.padded()), len(rows)).places.long()  # (B, E)
    lists = list_tokens(trie, items)

    # 2. Find the places in each list where several tokens are legal, given the previous items of the list.
    owner = lists.branches.nonzero()[:, 0]  # (M,)
    taken = taken_places(trie, items[owner], lists.ranks[lists.branches], excluded[owner])
    has_choice = num_legal(trie, lists.nodes[lists.branches], taken) > 1  # (M,)
    free = lists.branches.masked_scatter(lists.branches, has_choice)

    # 3. Align labels and list tokens. The labels of a row are the tokens of its list, sometimes followed by EOS.
    is_label = labels != IGNORED  # (B, T)
    order = is_label.cumsum(1) - 1
    place = order.clamp(min=0, max=free.shape[1] - 1)
    in_list = order < lists.mask.sum(1, keepdim=True)
    chosen = is_label & in_list & free.gather(1, place)
    return {
        "trie_nodes": torch.where(chosen, lists.nodes.gather(1, place), -1),
        "ranks": lists.ranks.gather(1, place),
        "items": items,
        "excluded": excluded,
    }


def check_lists(rows: Dataset, trie: TokenTrie, exclude_history: bool, twins: Twins | None = None) -> None:
    """Raises `ValueError` if a row is inconsistent, or if decoding could never generate its list.

    The labels of a row must be the paths of its `items`. The items must be distinct. With `exclude_history`, they must
    not be in the history, and must not be in the group of an item of the history (`twins`, see [`list_choices`]).
    """
    # 1. Check the items.
    items = split_rows(rows, "items")
    _check_none(_rows_with_repeats(items), "its list contains an item twice; list each item once")
    if exclude_history:
        histories = split_rows(rows, "history")
        known = _rows_with_known_items(items, histories if twins is None else twins.complete(histories))
        _check_none(
            known,
            "its list contains an item of the history, or another item with the same title; set eval_exclude_history "
            "to false to allow this",
        )

    # 2. Check the labels. They must be the tokens of the list, optionally followed by one more token (EOS).
    labels = split_rows(rows, "labels")
    is_label = labels.values != IGNORED
    counts = np.bincount(labels.row_ids[is_label], minlength=len(labels))
    tokens = Ragged.from_lengths(labels.values[is_label], counts)
    trie = trie.to("cpu")
    for first in range(0, len(items), CHECKED_TOGETHER):
        part = np.arange(first, min(first + CHECKED_TOGETHER, len(items)))
        lists = list_tokens(trie, torch.from_numpy(items.take(part).padded()))
        width = lists.mask.shape[1]
        lengths = tokens.lengths[part]
        given = tokens.pieces(part, np.zeros_like(lengths), np.minimum(lengths, width)).padded(width=width)

        surplus = torch.from_numpy(lengths) - lists.mask.sum(1)
        same = (torch.from_numpy(given) == lists.token_ids) | ~lists.mask
        wrong = (surplus < 0) | (surplus > 1) | ~same.all(1)
        _check_none(
            part[wrong.numpy()], "its labels are not the paths of its items; build the rows with this catalogue"
        )


def _check_none(rows: np.ndarray, problem: str) -> None:
    """Raises `ValueError` if `rows` is not empty. The message names the first row and describes the problem."""
    if len(rows):
        raise ValueError(f"row {rows[0]}: {problem}")


def _rows_with_repeats(items: Ragged) -> np.ndarray:
    """Returns the indices of rows that contain an item twice."""
    order = np.lexsort((items.values, items.row_ids))
    row = items.row_ids[order]
    item = items.values[order]
    repeated = (row[1:] == row[:-1]) & (item[1:] == item[:-1])
    rows: np.ndarray = row[1:][repeated]
    return rows


def _rows_with_known_items(items: Ragged, histories: Ragged) -> np.ndarray:
    """Returns the indices of rows that contain an item of their history."""
    # Encode each pair of row and item as one number, so that `isin` can compare all pairs at once.
    keys = [rows.row_ids.astype(np.int64) * (1 << 32) + rows.values for rows in (items, histories)]
    return items.row_ids[np.isin(*keys)]
