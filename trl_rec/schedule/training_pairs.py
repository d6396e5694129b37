"""Stores the (user, item) pairs of the training split as a sorted array of integers, in which pairs can be looked up.

A model cannot distinguish items with the same text. Where this matters, each item is replaced by a code that is equal
for all items with the same text.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from datasets import Dataset

from trl_rec.data.columns import encode
from trl_rec.data.dataset import check_is_train, split_rows
from trl_rec.items.catalog import ItemCatalog
from trl_rec.ragged import join
from trl_rec.schedule.prefixes import column


@dataclass(frozen=True, eq=False)
class TrainingPairs:
    """The distinct pairs of a user and an item (or the code of an item's text) in the training split.

    Args:
        keys (`np.ndarray`): The key of each pair (see [`pair_keys`]), in ascending order.
    """

    keys: np.ndarray

    @classmethod
    def from_split(cls, train: Dataset, codes: np.ndarray | None = None) -> TrainingPairs:
        """Collects the pairs in a training split.

        If `codes` `(num_items,)` is given, item i is replaced by `codes[i]`.
        """
        check_is_train(train, "preferences")
        sequences = join(split_rows(train, "history"), split_rows(train, "targets"))
        items = sequences.values if codes is None else codes[sequences.values]
        return cls(np.unique(pair_keys(column(train, "user")[sequences.row_ids], items)))

    def contain(self, users: np.ndarray, items: np.ndarray) -> np.ndarray:
        """Returns whether each pair is in the training split. The two arrays are broadcast against each other.

        If the pairs were collected with `codes`, `items` must also contain codes.
        """
        if not len(self.keys):
            return np.zeros(np.broadcast_shapes(users.shape, items.shape), bool)
        keys = pair_keys(users, items)

        # For a key above all stored keys, `searchsorted` returns a position past the end. Such a key is compared with
        # the last stored key, which is different.
        place = np.minimum(np.searchsorted(self.keys, keys), len(self.keys) - 1)
        is_known: np.ndarray = self.keys[place] == keys
        return is_known


def pair_keys(users: np.ndarray, items: np.ndarray) -> np.ndarray:
    """Encodes each pair as one int64. Sorting the keys sorts the pairs by user, and then by item.

    Both indices fit into one key, because datasets store them as int32.
    """
    # The upper 32 bits contain the user, and the lower 32 bits contain the item.
    keys: np.ndarray = users.astype(np.int64) * (1 << 32) + items
    return keys


def surface_codes(catalog: ItemCatalog) -> np.ndarray:
    """Returns one code per item, `(num_items,)`. Items with the same text have the same code.

    Codes are numbered from 0, in the order in which the texts first occur.
    """
    return encode(pa.chunked_array([pa.array(catalog.surfaces, pa.string())]))[0]
