"""Items that got the same codes are told apart: first by other codes of the last level, then by one more number.

Only the last level is touched, so that the leading codes keep their meaning. The items that share all codes but the
last stand in one cell, and a cell can tell apart as many of them as the last level has codes.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from trl_rec.ragged import within


CHUNK = 1 << 22  # distances that are held at a time


def repair_last_level(codes: Tensor, last_residuals: Tensor, last_codebook: Tensor) -> Tensor:
    """Codes `(num_items, levels)` in which a cell repeats a code only where it has more items than there are codes.

    Of the items with equal codes the one nearest to the last code's centroid keeps it. The others take free codes of
    their cell, the nearest pair of item and code first (ties: the lower item, then the lower code). Items that shared
    their codes with none, and items for which no code is left, keep what they have.

    Args:
        codes (`Tensor` of shape `(num_items, levels)`): The codes as they were found.
        last_residuals (`Tensor` of shape `(num_items, width)`): What the last level has to tell apart.
        last_codebook (`Tensor` of shape `(num_codes, width)`): The last level's centroids.
    """
    codes, cell = codes.clone(), group_of(codes[:, :-1])
    distance = (last_residuals - last_codebook[codes[:, -1]]).square().sum(1)
    waiting = _without_code(codes, distance, last_residuals, len(last_codebook))
    is_waiting = torch.zeros(len(codes), dtype=torch.bool)
    is_waiting[waiting] = True
    for items in _by_cells(waiting, cell, max(CHUNK // len(last_codebook), 1)):
        cells, row = cell[items].unique(return_inverse=True)
        settled = (torch.isin(cell, cells) & ~is_waiting).nonzero().squeeze(1)
        taken = torch.zeros(len(cells), len(last_codebook), dtype=torch.bool)
        taken[torch.searchsorted(cells, cell[settled]), codes[settled, -1]] = True
        found = _matched(_distances(last_residuals[items], last_codebook), row, taken)
        codes[items, -1] = torch.where(found < 0, codes[items, -1], found)
    return codes


def number_within_group(codes: Tensor) -> Tensor:
    """0, 1, 2, ... for the items with equal codes, in order; -1 for an item whose codes nobody shares.
    `(num_items,)`."""
    group = group_of(codes)
    sizes = torch.bincount(group)
    numbers = torch.empty_like(group)
    numbers[torch.argsort(group, stable=True)] = torch.from_numpy(within(sizes.numpy()).astype(np.int64))
    return torch.where(sizes[group] > 1, numbers, -1)


def group_of(codes: Tensor) -> Tensor:
    """The number of each row among the distinct rows, which are sorted; all 0 where there are no columns.
    `(num_items,)`."""
    group = torch.zeros(len(codes), dtype=torch.int64)
    for column in codes.unbind(1):
        group = torch.unique(group * (int(codes.max()) + 1) + column, return_inverse=True)[1]
    return group


def _without_code(codes: Tensor, distance: Tensor, residuals: Tensor, most: int) -> Tensor:
    """The items with equal codes, less the nearest of each group. Of items that are the same, such as those without a
    vector, only the first `most` can get a code, and the others are left out: there may be as many as a catalogue
    has."""
    group = group_of(codes)
    order = torch.argsort(distance, stable=True)
    order = order[torch.argsort(group[order], stable=True)]
    follows = group[order][1:] == group[order][:-1]
    alike = follows & (distance[order][1:] == distance[order][:-1])
    alike[alike.clone()] = (residuals[order[1:][alike]] == residuals[order[:-1][alike]]).all(1)
    place = torch.arange(1, len(order))
    copies = place - torch.where(alike, 0, place).cummax(0).values  # how many the same stand before it
    return order[1:][follows & (copies < most)].sort().values


def _by_cells(items: Tensor, cell: Tensor, most: int) -> Iterator[Tensor]:
    """The items, whole cells together, about `most` at a time, ascending within a cell."""
    items = items[torch.argsort(cell[items], stable=True)]
    sizes = cell[items].unique_consecutive(return_counts=True)[1]
    part = (sizes.cumsum(0) - sizes) // most
    per_part = torch.zeros(int(part.max()) + 1 if len(part) else 0, dtype=torch.int64).index_add_(0, part, sizes)
    return (chosen for chosen in items.split(per_part.tolist()) if len(chosen))


def _distances(vectors: Tensor, centroids: Tensor) -> Tensor:
    """Half the squared distances, `(num_vectors, num_centroids)`."""
    norms = centroids.square().sum(1) / 2 + vectors.square().sum(1, keepdim=True) / 2
    return torch.addmm(norms, vectors, centroids.T, alpha=-1)


def _matched(distances: Tensor, row: Tensor, taken: Tensor) -> Tensor:
    """The code that each item gets, -1 for none: again and again the pairs that are each other's nearest are joined.

    `distances` `(num_items, num_codes)`, `row` `(num_items,)` the row of the item's cell in `taken` `(num_cells,
    num_codes)`.
    """
    found, left = torch.full((len(distances),), -1), torch.arange(len(distances))
    while len(left := left[~taken[row[left]].all(1)]):
        free = distances[left].masked_fill(taken[row[left]], torch.inf)
        nearest, code = free.min(1)
        index = row[left].unsqueeze(1).expand_as(free)
        least = torch.full_like(taken, torch.inf, dtype=free.dtype).scatter_reduce_(0, index, free, "amin")
        claims = torch.where(free == least[row[left]], left.unsqueeze(1), len(distances))
        first = torch.full_like(taken, len(distances), dtype=torch.int64).scatter_reduce_(0, index, claims, "amin")
        mutual = first[row[left], code] == left
        found[left[mutual]] = code[mutual]
        taken[row[left][mutual], code[mutual]] = True
        left = left[~mutual & nearest.isfinite()]
    return found
