"""Items with the same title, which nobody can tell apart where items are written as titles.

A user who has one of them has the others, so excluding a history excludes them all. Items with the same semantic ID
are no twins: these are different products, and a model cannot help writing them alike.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from trl_rec.ragged import Ragged


@dataclass(frozen=True, eq=False)
class Twins:
    """Groups of items with the same title.

    Args:
        groups (`np.ndarray` of shape `(num_items,)`): The group of each item. Most groups have a single member.
        members (`Ragged`): Row `g`: the items of group `g`, in ascending order.
    """

    groups: np.ndarray
    members: Ragged

    @classmethod
    def of_titles(cls, titles: pa.ChunkedArray) -> Twins | None:
        """The groups of items with these titles; None if all titles are different."""
        encoded = titles.combine_chunks().dictionary_encode()
        num_groups = len(encoded.dictionary)
        if num_groups == len(titles):
            return None
        groups = encoded.indices.to_numpy()
        order = np.argsort(groups, kind="stable")
        return cls(groups, Ragged.from_lengths(order, np.bincount(groups, minlength=num_groups)))

    def complete(self, rows: Ragged) -> Ragged:
        """The rows, each with all twins of its items. The items of a row are distinct and in no particular order."""
        # The distinct groups of each row: a large group is then written out once, however many members the row has.
        num_groups = len(self.members)
        keys = np.unique(rows.row_ids * num_groups + self.groups[rows.values])
        row, group = np.divmod(keys, num_groups)
        return Ragged.from_lengths(group, np.bincount(row, minlength=len(rows))).flatten(self.members)
