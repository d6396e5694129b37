"""Joins successive windows of a user into one sequence.

Some data sources, such as the files of the recommender BIGRec, consist of windows: rows with one target and the items
before it. Successive windows of a user overlap in all but one item. When they are joined, they form one sequence with
many targets.
"""

from __future__ import annotations

import numpy as np

from trl_rec.ragged import Ragged, join, within


def join_windows(history: Ragged, target: Ragged, users: np.ndarray) -> tuple[Ragged, Ragged, np.ndarray]:
    """Joins rows that are successive windows of a user into sequences.

    A row is joined to the previous row under three conditions:

    - Both rows belong to the same user.
    - Both rows have exactly one target.
    - The history of the row is not empty, and its items are the last items of the previous row (the previous row's
      history followed by its target).

    Returns:
        The history, the targets and the user of each sequence. The history of a sequence is the history of its first
        row.
    """
    # 1. Compare each history with the end of the previous row, item by item.
    rows = join(history, target)
    single = target.lengths == 1
    length = history.lengths[1:]
    can_continue = (users[1:] == users[:-1]) & single[1:] & single[:-1] & (length > 0) & (length <= rows.lengths[:-1])
    after = np.flatnonzero(can_continue) + 1
    here = history.take(after)
    compared_from = rows.offsets[after] - here.lengths  # indices into `rows.values`
    differs = here.values != rows.values[np.repeat(compared_from, here.lengths) + within(here.lengths)]
    num_differing = np.bincount(here.row_ids[differs], minlength=len(after))
    continues = np.zeros(len(users), bool)
    continues[after[num_differing == 0]] = True

    # 2. A sequence begins with a row that does not continue the previous row. The targets of the sequence are those of
    # all its rows.
    firsts = np.flatnonzero(~continues)
    bounds = np.append(firsts, len(users))
    return history.take(firsts), Ragged(target.values, target.offsets[bounds]), users[firsts]
