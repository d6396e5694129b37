"""Drops repeated interactions, and users and items with few interactions (k-core)."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pyarrow as pa

from trl_rec.data.indexed_log import IndexedLog


def k_core(log: IndexedLog, min_user_interactions: int, min_item_interactions: int) -> IndexedLog:
    """Returns the k-core: the largest part of the log in which all users and items have enough interactions.

    If either minimum is positive, users and items without any interaction are dropped as well. If both are 0, the log
    is returned unchanged.

    Args:
        log: The interactions.
        min_user_interactions: Minimum number of interactions per user.
        min_item_interactions: Minimum number of interactions per item.
    """
    if max(min_user_interactions, min_item_interactions) <= 0:
        return log

    # Dropping a user lowers the counts of items, and dropping an item lowers the counts of users, so repeat until no
    # interaction is dropped.
    rows = np.arange(len(log.user))  # indices of the remaining interactions
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
            f"no interactions are left if every user needs at least {min_user_interactions} interactions and every "
            f"item at least {min_item_interactions}; lower min_user_interactions or min_item_interactions"
        )
    return _without_unused(log.take(rows))


def is_repeated(log: IndexedLog) -> np.ndarray:
    """Returns a boolean per interaction: whether an earlier row of the log has the same user and item."""
    # The sort is stable, so equal pairs of user and item stay in the order of the log.
    order = np.lexsort((log.item, log.user))
    same = (np.diff(log.user[order]) == 0) & (np.diff(log.item[order]) == 0)
    repeated = np.empty(len(order), bool)
    repeated[order] = np.concatenate([[False], same])[: len(order)]
    return repeated


def drop_repeats(log: IndexedLog, kept: str) -> IndexedLog:
    """Returns the log with only the `"first"` or only the `"last"` interaction of each user with each item."""
    if kept == "first":
        return log.take(np.flatnonzero(~is_repeated(log)))
    # In the reversed log, a user's last interaction with an item comes first, so it is the one that is not repeated.
    backwards = np.arange(len(log.user))[::-1]
    return log.take(np.sort(backwards[~is_repeated(log.take(backwards))]))


def _without_unused(log: IndexedLog) -> IndexedLog:
    """Removes users and items without interactions. The remaining ones keep their order and get new indices."""
    user, kept_users = _renumbered(log.user, log.users.num_rows)
    item, kept_items = _renumbered(log.item, log.items.num_rows)
    return replace(log, users=log.users.take(kept_users), items=log.items.take(kept_items), user=user, item=item)


def _renumbered(indices: np.ndarray, size: int) -> tuple[np.ndarray, pa.Array]:
    """Returns the indices renumbered without gaps, and an array that maps new indices to old ones."""
    used = np.bincount(indices, minlength=size) > 0  # (size,)
    new_index = np.cumsum(used) - 1  # (size,)
    return new_index[indices].astype(np.int32), pa.array(np.flatnonzero(used))
