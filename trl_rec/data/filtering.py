"""k-core: users and items with few interactions are dropped, again and again, until all that are left have enough."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pyarrow as pa

from trl_rec.data.indexed_log import CodedLog


def k_core(log: CodedLog, min_user_interactions: int, min_item_interactions: int) -> CodedLog:
    """The largest part of the log in which every user and every item has that many interactions; two zeros change
    nothing."""
    if max(min_user_interactions, min_item_interactions) <= 0:
        return log
    left = np.arange(len(log.user))
    while True:
        user, item = log.user[left], log.item[left]
        kept = np.bincount(user, minlength=1)[user] >= min_user_interactions
        kept &= np.bincount(item, minlength=1)[item] >= min_item_interactions
        if kept.all():
            break
        left = left[kept]
    if not len(left):
        raise ValueError(
            f"no interaction is left with at least {min_user_interactions} a user and {min_item_interactions} an item; "
            "lower min_user_interactions or min_item_interactions"
        )
    return _without_idle(log.take(left))


def _without_idle(log: CodedLog) -> CodedLog:
    """Users and items without an interaction left out, the others renumbered in their order."""
    user, kept_users = _renumbered(log.user, log.users.num_rows)
    item, kept_items = _renumbered(log.item, log.items.num_rows)
    return replace(log, users=log.users.take(kept_users), items=log.items.take(kept_items), user=user, item=item)


def _renumbered(codes: np.ndarray, size: int) -> tuple[np.ndarray, pa.Array]:
    used = np.bincount(codes, minlength=size) > 0
    return (np.cumsum(used) - 1)[codes].astype(np.int32), pa.array(np.flatnonzero(used))
