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
    # interaction is dropped. Each step subtracts the dropped interactions from the counts, which is faster than
    # counting the remaining interactions again.
    per_user = np.diff(log.offsets)  # (num_users,)
    user_counts = per_user.copy()  # (num_users,)
    item_counts = np.bincount(log.item, minlength=log.items.num_rows)  # (num_items,)
    kept = np.ones(len(log.user), bool)
    while True:
        dropped = np.repeat(user_counts < min_user_interactions, per_user)  # the log is sorted by user
        dropped |= (item_counts < min_item_interactions)[log.item]
        rows = np.flatnonzero(dropped & kept)
        if not len(rows):
            break
        kept[rows] = False
        user_counts -= np.bincount(log.user[rows], minlength=len(user_counts))
        item_counts -= np.bincount(log.item[rows], minlength=len(item_counts))

    if not kept.any():
        raise ValueError(
            f"no interactions are left if every user needs at least {min_user_interactions} interactions and every "
            f"item at least {min_item_interactions}; lower min_user_interactions or min_item_interactions"
        )
    return _without_unused(log.take(kept))


def is_repeated(log: IndexedLog, kept: str = "first") -> np.ndarray:
    """Returns a boolean per interaction: whether another interaction of the same user and item is kept instead.

    Args:
        log: The interactions.
        kept (*optional*, defaults to `"first"`): Which interaction of a user with an item is kept: the `"first"` or
            the `"last"`.
    """
    repeated = np.zeros(len(log.user), bool)
    for _, block in log.blocks():
        # The sort is stable, so equal pairs of user and item stay in the order of the log.
        user = log.user[block]
        item = log.item[block]
        order = np.lexsort((item, user))
        same = (np.diff(user[order]) == 0) & (np.diff(item[order]) == 0)
        others = order[1:] if kept == "first" else order[:-1]
        repeated[block][others[same]] = True
    return repeated


def drop_repeats(log: IndexedLog, kept: str) -> IndexedLog:
    """Returns the log with only the `"first"` or only the `"last"` interaction of each user with each item."""
    return log.take(~is_repeated(log, kept))


def _without_unused(log: IndexedLog) -> IndexedLog:
    """Removes users and items without interactions. The others keep their order and are numbered without gaps."""
    user, kept_users = _renumbered(log.user, log.users.num_rows)
    item, kept_items = _renumbered(log.item, log.items.num_rows)
    return replace(log, users=log.users.take(kept_users), items=log.items.take(kept_items), user=user, item=item)


def _renumbered(indices: np.ndarray, size: int) -> tuple[np.ndarray, pa.Array]:
    """Returns the indices renumbered without gaps, and an array that maps the new indices to the old indices."""
    used = np.bincount(indices, minlength=size) > 0  # (size,)
    new_index = (np.cumsum(used) - 1).astype(np.int32)  # (size,)
    return new_index[indices], pa.array(np.flatnonzero(used))
