"""Finds twins: items with the same title, which are indistinguishable if items are written as titles.

If the items of a user's history are excluded from recommendations, their twins are excluded too, because the user
would see the same titles again. Items that share a semantic ID but have different titles are not twins, because a user
can tell them apart.
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
        groups (`np.ndarray` of shape `(num_items,)`): The group of each item. An item without twins is a group of
            its own.
        members (`Ragged`): Row `g` contains the items of group `g`, in ascending order.
    """

    groups: np.ndarray
    members: Ragged

    @classmethod
    def of_titles(cls, titles: pa.ChunkedArray) -> Twins | None:
        """Groups items by their titles. Returns None if all titles are distinct."""
        encoded = titles.combine_chunks().dictionary_encode()
        num_groups = len(encoded.dictionary)
        if num_groups == len(titles):
            return None
        groups = encoded.indices.to_numpy()
        order = np.argsort(groups, kind="stable")
        return cls(groups, Ragged.from_lengths(order, np.bincount(groups, minlength=num_groups)))

    def complete(self, rows: Ragged) -> Ragged:
        """Adds to each row the twins of the row's items. The items of a returned row are distinct and unsorted."""
        # Find the distinct groups of each row first, so that each group is expanded only once per row.
        num_groups = len(self.members)
        keys = np.unique(rows.row_ids * num_groups + self.groups[rows.values])
        row, group = np.divmod(keys, num_groups)
        return Ragged.from_lengths(group, np.bincount(row, minlength=len(rows))).flatten(self.members)
