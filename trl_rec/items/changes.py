"""Matches the items of two catalogues by their ids: which items are kept, which are new, and which were removed.

The joint catalogue contains the items of both. A removed item stays in it as a retired item: a model can still read
the item in histories, but never recommends it. The first rows of the joint catalogue are exactly the rows of the new
catalogue. Indices into the new catalogue, such as those in a dataset, are therefore also indices into the joint
catalogue.

    old    A B C D            (indices 0 1 2 3)
    new    D X B              X is new, A and C were removed
    joint  D X B | A C        old indices (`sources`) 3 -1 1 | 0 2; the items after the bar are retired
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from trl_rec.items.catalog import ItemCatalog
from trl_rec.ragged import append


@dataclass(frozen=True, eq=False)
class CatalogChange:
    """The change from the old catalogue of a trained model to a new catalogue. Make it with [`match_items`].

    Args:
        old (`ItemCatalog`): The old catalogue.
        catalog (`ItemCatalog`): The joint catalogue: the items of the new catalogue, then the removed items, which
            are retired.
        sources (`np.ndarray` of shape `(len(catalog),)`): For each item of the joint catalogue, its index in the old
            catalogue, or -1 if the item is new.
    """

    old: ItemCatalog
    catalog: ItemCatalog
    sources: np.ndarray

    @property
    def num_new(self) -> int:
        """Number of items that the old catalogue lacks."""
        return int((self.sources < 0).sum())

    @property
    def num_kept(self) -> int:
        """Number of items of the old catalogue that can be recommended with the joint catalogue."""
        return int((self.sources[: self.catalog.num_recommendable] >= 0).sum())

    @property
    def num_removed(self) -> int:
        """Number of items that could be recommended with the old catalogue and are retired in the joint catalogue."""
        retired = self.sources[self.catalog.num_recommendable :]
        return int(((retired >= 0) & (retired < self.old.num_recommendable)).sum())

    @property
    def keeps_indices(self) -> bool:
        """Whether the joint catalogue has the same items as the old catalogue, at the same indices."""
        return len(self.catalog) == len(self.old) and bool((self.sources == np.arange(len(self.sources))).all())

    def describe(self) -> str:
        """Returns the numbers of kept, new and removed items as text."""
        text = f"{self.num_kept:,} items kept, {self.num_new:,} new, {self.num_removed:,} removed"
        if self.num_removed:
            text += " (removed items stay readable in histories, and are not recommended)"
        return text


def match_items(old: ItemCatalog, new: ItemCatalog) -> CatalogChange:
    """Matches the items of two catalogues by `item_id`. The joint catalogue has the surface of the new catalogue.

    Raises ValueError if the surface is `"semantic_id"` and the old catalogue has no semantic IDs for its items.
    """
    # 1. Find the old index of each item of the new catalogue, and the old items that the new catalogue lacks.
    known = pc.index_in(_ids(new), _ids(old)).fill_null(-1).to_numpy().astype(np.int64)  # (len(new),)
    removed = np.setdiff1d(np.arange(len(old)), known)

    # 2. Append the removed items. Their values in a column other than `item_id` and `title` are kept only if both
    # catalogues have this column with the same type.
    columns = [_joined(new.items, old.items.take(pa.array(removed)), name) for name in new.items.column_names]
    items = pa.table(columns, schema=new.items.schema)
    semantic_ids = None
    if new.semantic_ids is not None and old.semantic_ids is not None:
        semantic_ids = append(new.semantic_ids, old.semantic_ids.take(removed))
    elif new.surface == "semantic_id":
        raise ValueError("the old catalogue has no semantic IDs, so its items cannot be kept; choose another surface")
    # With removed items, the joint catalogue contains data of both catalogues. Its licence is None if theirs differ.
    license = new.license if new.license == old.license or not len(removed) else None
    catalog = replace(
        new, items=items, semantic_ids=semantic_ids, num_retired=new.num_retired + len(removed), license=license
    )
    return CatalogChange(old, catalog, np.concatenate([known, removed]))


def changed_ids(change: CatalogChange) -> np.ndarray:
    """Returns the items of the old catalogue whose semantic IDs have changed, as indices into the joint catalogue."""
    ids = change.catalog.semantic_ids
    old = change.old.semantic_ids
    assert ids is not None and old is not None
    known = np.flatnonzero(change.sources >= 0)
    width = int(max(ids.lengths.max(), old.lengths.max()))
    before = old.take(change.sources[known]).padded(fill="", width=width)
    now = ids.take(known).padded(fill="", width=width)
    changed: np.ndarray = known[(before.astype(str) != now.astype(str)).any(1)]
    return changed


def _ids(catalog: ItemCatalog) -> pa.Array:
    return catalog.items["item_id"].cast(pa.large_string()).combine_chunks()


def _joined(new: pa.Table, removed: pa.Table, name: str) -> pa.Array:
    """Returns a column of the joint catalogue.

    Removed items get null if the old catalogue lacks the column or has it with another type.
    """
    column = new[name]
    is_text = name in ("item_id", "title")  # these may be `string` in one catalogue and `large_string` in the other
    if is_text or (name in removed.column_names and removed[name].type == column.type):
        more = removed[name].cast(column.type)
    else:
        more = pa.chunked_array([pa.nulls(len(removed), column.type)])
    return pa.chunked_array([*column.chunks, *more.chunks], column.type).combine_chunks()
