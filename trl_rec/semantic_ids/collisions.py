"""Tells items with equal codes apart: first by free codes of the last level, then by one more number.

Only the last level changes, so the leading codes keep their meaning. The items that share all codes but the last form
a *cell*. A cell can tell as many items apart as the last level has codes.

Legend: N items, C codes of the last level, D width, W waiting items (those that need another code).
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from trl_rec.ragged import within


CHUNK = 1 << 22  # distances that are held at a time


def repair_last_level(codes: Tensor, last_residuals: Tensor, last_codebook: Tensor) -> Tensor:
    """Changes last codes so that a cell repeats a code only if the cell has more items than there are codes.

    Of the items with equal codes, the one nearest to the centroid of its last code keeps it. The others take free
    codes of their cell, starting with the nearest pair of item and code (ties: the lower item, then the lower code).
    Items whose codes were unique keep them, and so do items for which no code is left.

    Args:
        codes (`torch.Tensor` of shape `(N, levels)`): The codes as quantised.
        last_residuals (`torch.Tensor` of shape `(N, D)`): The input of the last level.
        last_codebook (`torch.Tensor` of shape `(C, D)`): The centroids of the last level.

    Returns:
        `torch.Tensor` of shape `(N, levels)`: The codes after the repair.
    """
    codes = codes.clone()
    num_codes = len(last_codebook)

    # 1. Find the items that need another code.
    cell = group_of(codes[:, :-1])
    distance = (last_residuals - last_codebook[codes[:, -1]]).square().sum(1)  # (N,), to the own centroid
    waiting = _waiting_items(codes, distance, last_residuals, num_codes)
    is_waiting = torch.zeros(len(codes), dtype=torch.bool)
    is_waiting[waiting] = True

    # 2. Cells do not affect each other, so they are handled in chunks of whole cells.
    for items in _by_cells(waiting, cell, max(CHUNK // num_codes, 1)):
        cells, row = cell[items].unique(return_inverse=True)

        # 3. Mark the codes that the other items of these cells keep.
        settled = (torch.isin(cell, cells) & ~is_waiting).nonzero().squeeze(1)
        taken = torch.zeros(len(cells), num_codes, dtype=torch.bool)
        taken[torch.searchsorted(cells, cell[settled]), codes[settled, -1]] = True

        # 4. Give each item the nearest free code; an item without one keeps the code it has.
        assigned = _match(_half_squared_distances(last_residuals[items], last_codebook), row, taken)
        codes[items, -1] = torch.where(assigned < 0, codes[items, -1], assigned)
    return codes


def number_within_group(codes: Tensor) -> Tensor:
    """Numbers the items with equal codes 0, 1, 2, ... by item index, `(N,)`; -1 for an item with unique codes."""
    group = group_of(codes)
    sizes = torch.bincount(group)
    numbers = torch.empty_like(group)
    numbers[torch.argsort(group, stable=True)] = torch.from_numpy(within(sizes.numpy()).astype(np.int64))
    return torch.where(sizes[group] > 1, numbers, -1)


def group_of(codes: Tensor) -> Tensor:
    """Index of each row among the sorted distinct rows, `(N,)`; all 0 if there are no columns."""
    group = torch.zeros(len(codes), dtype=torch.int64)
    # Renumbering after every column keeps the numbers below N, so they never overflow.
    for column in codes.unbind(1):
        group = torch.unique(group * (int(codes.max()) + 1) + column, return_inverse=True)[1]
    return group


def _waiting_items(codes: Tensor, distance: Tensor, residuals: Tensor, most: int) -> Tensor:
    """The items that need another code, ascending: all items with equal codes but the nearest item of each group.

    Of identical items, such as those without a vector, only the first `most` can get a code. The others are left out
    here, because they may be most of the catalogue.
    """
    # 1. Sort by group, and by distance within a group; all but the first item of a group follow another one.
    group = group_of(codes)
    order = torch.argsort(distance, stable=True)
    order = order[torch.argsort(group[order], stable=True)]
    follows = group[order][1:] == group[order][:-1]

    # 2. Find the items that are identical to their predecessor. Comparing distances first avoids comparing most
    # vectors.
    identical = follows & (distance[order][1:] == distance[order][:-1])
    # Without the clone, the mask would be written while it is read.
    identical[identical.clone()] = (residuals[order[1:][identical]] == residuals[order[:-1][identical]]).all(1)

    # 3. Count the identical items directly before each one.
    place = torch.arange(1, len(order))
    copies = place - torch.where(identical, 0, place).cummax(0).values
    return order[1:][follows & (copies < most)].sort().values


def _by_cells(items: Tensor, cell: Tensor, most: int) -> Iterator[Tensor]:
    """The items in chunks of whole cells, of about `most` items each; ascending within a cell."""
    items = items[torch.argsort(cell[items], stable=True)]
    sizes = cell[items].unique_consecutive(return_counts=True)[1]
    chunk = (sizes.cumsum(0) - sizes) // most  # the chunk in which each cell starts
    chunk_sizes = torch.zeros(int(chunk.max()) + 1 if len(chunk) else 0, dtype=torch.int64).index_add_(0, chunk, sizes)
    return (part for part in items.split(chunk_sizes.tolist()) if len(part))


def _half_squared_distances(vectors: Tensor, centroids: Tensor) -> Tensor:
    """Half the squared distances, `(W, C)`."""
    norms = centroids.square().sum(1) / 2 + vectors.square().sum(1, keepdim=True) / 2
    return torch.addmm(norms, vectors, centroids.T, alpha=-1)


def _match(distances: Tensor, row: Tensor, taken: Tensor) -> Tensor:
    """Assigns free codes to items. Each round joins the items and codes that are each other's nearest.

    The result is the same as if all pairs were taken one by one in order of their distance, but few rounds are needed.

    Args:
        distances: From item to code, `(W, C)`.
        row: The row in `taken` of each item's cell, `(W,)`.
        taken: The codes that are not free in each cell, `(num_cells, C)`. Changed in place.

    Returns:
        The code of each item, `(W,)`; -1 for an item for which no code is left.
    """
    assigned = torch.full((len(distances),), -1)
    left = torch.arange(len(distances))
    while len(left := left[~taken[row[left]].all(1)]):
        # 1. The nearest free code of each item that is left.
        free = distances[left].masked_fill(taken[row[left]], torch.inf)  # (number left, C)
        nearest, code = free.min(1)

        # 2. The nearest item of each code in each cell, `(num_cells, C)`; the lowest item among equally near ones.
        index = row[left].unsqueeze(1).expand_as(free)
        least = torch.full_like(taken, torch.inf, dtype=free.dtype).scatter_reduce_(0, index, free, "amin")
        claims = torch.where(free == least[row[left]], left.unsqueeze(1), len(distances))
        first = torch.full_like(taken, len(distances), dtype=torch.int64).scatter_reduce_(0, index, claims, "amin")

        # 3. Join the pairs that are each other's nearest.
        mutual = first[row[left], code] == left
        assigned[left[mutual]] = code[mutual]
        taken[row[left][mutual], code[mutual]] = True
        left = left[~mutual & nearest.isfinite()]
    return assigned
