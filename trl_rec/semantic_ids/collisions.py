"""Resolves collisions (items whose semantic IDs are equal) by changing the last code or adding one more code.

A semantic ID has one code per level. [`repair_last_level`] changes only the last code of an item, so the leading codes
keep their meaning. The items that share all codes except the last form a *cell*. Collisions remain only in cells that
contain more items than the last level has codes. [`number_within_group`] numbers the items that still collide. The
number can be added as a code.

Legend: N items, C codes of the last level, D width of the item vectors, W waiting items (that need another code).
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from trl_rec.ragged import within


CHUNK = 1 << 22  # number of distances that are held in memory at a time


def repair_last_level(codes: Tensor, last_residuals: Tensor, last_codebook: Tensor) -> Tensor:
    """Changes last codes so that items collide only in cells with more than C items.

    Among the items with equal codes, the item nearest to the centroid of the last code keeps this code. The other
    items are assigned free codes of their cell, starting with the nearest pair of item and code. Equally near pairs
    are ordered by item index, and then by code. Items with unique codes keep their codes. An item also keeps its code
    if no code of its cell is free.

    Args:
        codes (`torch.Tensor` of shape `(N, levels)`): The codes before the repair.
        last_residuals (`torch.Tensor` of shape `(N, D)`): The input of the last level: the item vectors minus their
            centroids of all earlier levels.
        last_codebook (`torch.Tensor` of shape `(C, D)`): The centroids of the last level.

    Returns:
        `torch.Tensor` of shape `(N, levels)`: The codes after the repair.
    """
    codes = codes.clone()
    num_codes = len(last_codebook)

    # 1. Find the items that need another code.
    cell = group_of(codes[:, :-1])
    distance = (last_residuals - last_codebook[codes[:, -1]]).square().sum(1)  # (N,), to the item's centroid
    waiting = _waiting_items(codes, distance, last_residuals, num_codes)
    is_waiting = torch.zeros(len(codes), dtype=torch.bool)
    is_waiting[waiting] = True

    # 2. Process whole cells in chunks, since cells do not affect each other.
    for items in _by_cells(waiting, cell, max(CHUNK // num_codes, 1)):
        cells, row = cell[items].unique(return_inverse=True)

        # 3. Mark the codes that are taken in these cells: the codes of the items that are not waiting.
        settled = (torch.isin(cell, cells) & ~is_waiting).nonzero().squeeze(1)
        taken = torch.zeros(len(cells), num_codes, dtype=torch.bool)
        taken[torch.searchsorted(cells, cell[settled]), codes[settled, -1]] = True

        # 4. Assign free codes to the waiting items. An item keeps its code if no code is free.
        assigned = _match(_half_squared_distances(last_residuals[items], last_codebook), row, taken)
        codes[items, -1] = torch.where(assigned < 0, codes[items, -1], assigned)
    return codes


def number_within_group(codes: Tensor) -> Tensor:
    """Returns the position of each item among the items with equal codes, `(N,)`; -1 for items with unique codes.

    Positions start at 0 and are in the order of the item indices.
    """
    group = group_of(codes)
    sizes = torch.bincount(group)
    numbers = torch.empty_like(group)
    numbers[torch.argsort(group, stable=True)] = torch.from_numpy(within(sizes.numpy()).astype(np.int64))
    return torch.where(sizes[group] > 1, numbers, -1)


def group_of(codes: Tensor) -> Tensor:
    """Returns the index of each row among the sorted distinct rows, `(N,)`; zeros if there are no columns."""
    group = torch.zeros(len(codes), dtype=torch.int64)
    # Renumbering after every column keeps the numbers below N, so they never overflow.
    for column in codes.unbind(1):
        group = torch.unique(group * (int(codes.max()) + 1) + column, return_inverse=True)[1]
    return group


def _waiting_items(codes: Tensor, distance: Tensor, residuals: Tensor, num_codes: int) -> Tensor:
    """Returns the indices of the items that need another code, ascending.

    Items with equal codes form a group. All items of a group need another code, except the item nearest to the
    centroid of their last code. If items of a group also have equal residuals (such as items without a vector), they
    get codes in the order of their indices. All but the first `num_codes` of these items are left out, because they
    would find no free code. This saves time, because the items left out can be most of the catalogue.
    """
    # 1. Sort by group, and within a group by distance. Every item except the first of its group needs another code.
    group = group_of(codes)
    order = torch.argsort(distance, stable=True)
    order = order[torch.argsort(group[order], stable=True)]
    follows = group[order][1:] == group[order][:-1]

    # 2. Find the items with the same residual as their predecessor. Comparing the distances first avoids comparing
    # most residuals.
    identical = follows & (distance[order][1:] == distance[order][:-1])
    # The clone is needed because the mask would otherwise be overwritten while it is read.
    identical[identical.clone()] = (residuals[order[1:][identical]] == residuals[order[:-1][identical]]).all(1)

    # 3. For each item, count the items directly before it that have the same residual.
    place = torch.arange(1, len(order))
    copies = place - torch.where(identical, 0, place).cummax(0).values
    return order[1:][follows & (copies < num_codes)].sort().values


def _by_cells(items: Tensor, cell: Tensor, chunk_size: int) -> Iterator[Tensor]:
    """Yields the items in chunks of about `chunk_size` items.

    All items of a cell are in the same chunk, in ascending order.
    """
    items = items[torch.argsort(cell[items], stable=True)]
    sizes = cell[items].unique_consecutive(return_counts=True)[1]
    chunk = (sizes.cumsum(0) - sizes) // chunk_size  # index of the chunk that contains each cell
    chunk_sizes = torch.zeros(int(chunk.max()) + 1 if len(chunk) else 0, dtype=torch.int64).index_add_(0, chunk, sizes)
    return (part for part in items.split(chunk_sizes.tolist()) if len(part))


def _half_squared_distances(vectors: Tensor, centroids: Tensor) -> Tensor:
    """Returns half the squared distance from each vector to each centroid, `(W, C)`."""
    norms = centroids.square().sum(1) / 2 + vectors.square().sum(1, keepdim=True) / 2
    return torch.addmm(norms, vectors, centroids.T, alpha=-1)


def _match(distances: Tensor, row: Tensor, taken: Tensor) -> Tensor:
    """Assigns free codes to items greedily, nearest pair of item and code first.

    Each round assigns all pairs in which the item and the code are each other's nearest. The result is the same as if
    the pairs were assigned one by one in the order of their distance, but few rounds are needed.

    Args:
        distances: Distance from each item to each code, `(W, C)`.
        row: Row of each item's cell in `taken`, `(W,)`.
        taken: For each cell, True for the codes that are not free, `(num_cells, C)`. Changed in place.

    Returns:
        The code of each item, `(W,)`; -1 if no code was free.
    """
    assigned = torch.full((len(distances),), -1)
    left = torch.arange(len(distances))
    while len(left := left[~taken[row[left]].all(1)]):
        # 1. Find the nearest free code for each unassigned item.
        free = distances[left].masked_fill(taken[row[left]], torch.inf)  # (unassigned items, C)
        nearest, code = free.min(1)

        # 2. Find the nearest item for each code in each cell, `(num_cells, C)`; the first of equally near items.
        index = row[left].unsqueeze(1).expand_as(free)
        least = torch.full_like(taken, torch.inf, dtype=free.dtype).scatter_reduce_(0, index, free, "amin")
        claims = torch.where(free == least[row[left]], left.unsqueeze(1), len(distances))
        first = torch.full_like(taken, len(distances), dtype=torch.int64).scatter_reduce_(0, index, claims, "amin")

        # 3. Assign the pairs in which item and code are each other's nearest.
        mutual = first[row[left], code] == left
        assigned[left[mutual]] = code[mutual]
        taken[row[left][mutual], code[mutual]] = True
        left = left[~mutual & nearest.isfinite()]
    return assigned
