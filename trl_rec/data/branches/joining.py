"""Joins successive windows of a user to one sequence.

Some sources, such as BIGRec's, consist of windows: rows with one target and the items before it. The windows of a user
overlap in all but one item. Joined, they are one sequence with many targets.
"""

from __future__ import annotations

import numpy as np

from trl_rec.ragged import Ragged, join, within


def join_windows(history: Ragged, target: Ragged, users: np.ndarray) -> tuple[Ragged, Ragged, np.ndarray]:
    """Joins each row with one target to the previous row if it continues the previous row.

    A row continues the previous row if both belong to the same user and have one target, and if the history of the row
    is the end of the previous row, including the previous target.

    Returns:
        The history, the targets and the user of each sequence. The history is that of the first window.
    """
    # 1. Compare each history with the end of the previous row, item by item.
    rows = join(history, target)
    single = target.lengths == 1
    length = history.lengths[1:]
    can_continue = (users[1:] == users[:-1]) & single[1:] & single[:-1] & (length > 0) & (length <= rows.lengths[:-1])
    after = np.flatnonzero(can_continue) + 1
    here = history.take(after)
    shift = rows.offsets[after] - here.lengths  # of the last items of the previous row
    differs = here.values != rows.values[np.repeat(shift, here.lengths) + within(here.lengths)]
    num_differing = np.bincount(here.row_ids[differs], minlength=len(after))
    continues = np.zeros(len(users), bool)
    continues[after[num_differing == 0]] = True

    # 2. Join the targets of the rows from one beginning to the next.
    firsts = np.flatnonzero(~continues)
    bounds = np.append(firsts, len(users))
    return history.take(firsts), Ragged(target.values, target.offsets[bounds]), users[firsts]
