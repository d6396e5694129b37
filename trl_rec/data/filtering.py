"""Drops repeated interactions, and users and items with few interactions (k-core)."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pyarrow as pa

from trl_rec.data.indexed_log import IndexedLog


def k_core(log: IndexedLog, min_user_interactions: int, min_item_interactions: int) -> IndexedLog:
    """The largest part of the log in which every user and every item has at least that many interactions.

    If any minimum is above 0, users and items without an interaction are dropped as well; with two zeros the log is
    returned unchanged.
    """
    if max(min_user_interactions, min_item_interactions) <= 0:
        return log

    # Dropping a user takes interactions from items, and the other way round, so one pass is not enough.
    rows = np.arange(len(log.user))  # interactions that are left
    while True:
        user = log.user[rows]
        item = log.item[rows]
        kept = np.bincount(user, minlength=1)[user] >= min_user_interactions
        kept &= np.bincount(item, minlength=1)[item] >= min_item_interactions
        if kept.all():
            break
        rows = rows[kept]

    if not len(rows):
        raise ValueError(
            f"no interaction is left with at least {min_user_interactions} per user and {min_item_interactions} per "
            "item; lower min_user_interactions or min_item_interactions"
        )
    return _without_unused(log.take(rows))


def is_repeated(log: IndexedLog) -> np.ndarray:
    """A flag per interaction: whether the user has chosen the item before."""
    # The log is in time order and the sort is stable, so the first of several equal pairs is the earliest.
    order = np.lexsort((log.item, log.user))
    same = (np.diff(log.user[order]) == 0) & (np.diff(log.item[order]) == 0)
    repeated = np.empty(len(order), bool)
    repeated[order] = np.concatenate([[False], same])[: len(order)]
    return repeated


def drop_repeats(log: IndexedLog, kept: str) -> IndexedLog:
    """The log with only the `"first"` or only the `"last"` interaction of each user with each item."""
    if kept == "first":
        return log.take(np.flatnonzero(~is_repeated(log)))
    backwards = np.arange(len(log.user))[::-1]
    return log.take(np.sort(backwards[~is_repeated(log.take(backwards))]))


def _without_unused(log: IndexedLog) -> IndexedLog:
    """The log without users and items that have no interaction; the others keep their order and get new indices."""
    user, kept_users = _renumbered(log.user, log.users.num_rows)
    item, kept_items = _renumbered(log.item, log.items.num_rows)
    return replace(log, users=log.users.take(kept_users), items=log.items.take(kept_items), user=user, item=item)


def _renumbered(indices: np.ndarray, size: int) -> tuple[np.ndarray, pa.Array]:
    """Indices without gaps, and the old index of each new one."""
    used = np.bincount(indices, minlength=size) > 0  # (size,)
    new_index = np.cumsum(used) - 1  # (size,)
    return new_index[indices].astype(np.int32), pa.array(np.flatnonzero(used))
