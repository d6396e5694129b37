"""Which items each user chose in training: a sorted array of numbers, one for each pair, that is searched by halving.

Items that are written the same are one to the model; codes take their place.
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
    """The distinct pairs of a user and an item, or a code that stands for it.

    Args:
        keys (`np.ndarray`): What [`pair_keys`] makes of each pair, ascending.
    """

    keys: np.ndarray

    @classmethod
    def read(cls, train: Dataset, codes: np.ndarray | None = None) -> TrainingPairs:
        """The pairs of a training split's histories and targets; `codes` `(num_items,)` replace the items."""
        check_is_train(train, "a preference")
        sequences = join(split_rows(train, "history"), split_rows(train, "targets"))
        items = sequences.values if codes is None else codes[sequences.values]
        return cls(np.unique(pair_keys(column(train, "user")[sequences.row_ids], items)))

    def hold(self, users: np.ndarray, items: np.ndarray) -> np.ndarray:
        """Whether each user chose each item, by numpy's rules of broadcasting."""
        if not len(self.keys):
            return np.zeros(np.broadcast_shapes(users.shape, items.shape), bool)
        keys = pair_keys(users, items)
        return self.keys[np.minimum(np.searchsorted(self.keys, keys), len(self.keys) - 1)] == keys


def pair_keys(users: np.ndarray, items: np.ndarray) -> np.ndarray:
    """One int64 for each pair, in the order of users and then items, both of which are int32 in a dataset."""
    return users.astype(np.int64) * (1 << 32) + items


def surface_codes(catalog: ItemCatalog) -> np.ndarray:
    """`(num_items,)`: the same number for items that are written the same, counted up from 0 by first appearance."""
    return encode(pa.chunked_array([pa.array(catalog.surfaces, pa.string())]))[0]
