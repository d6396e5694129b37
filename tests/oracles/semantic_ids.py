"""Slow reference implementations of parts of the algorithms for semantic IDs: loops over pairs, points and items."""

import math
from fractions import Fraction


def associations(sequences, num_items, window):
    """Returns the positive pointwise mutual information of pairs of items, for both orders of each pair, as
    `{(i, j): value}`. Two items at distance d <= `window` in a sequence add 1/d to the count of their pair. Pairs with
    a value of 0 are left out."""
    counts = {}
    for sequence in sequences:
        for i, first in enumerate(sequence):
            for j in range(i + 1, min(i + window, len(sequence) - 1) + 1):
                if sequence[j] != first:
                    for pair in ((first, sequence[j]), (sequence[j], first)):
                        counts[pair] = counts.get(pair, 0) + Fraction(1, j - i)
    totals = [sum(count for (i, _), count in counts.items() if i == item) for item in range(num_items)]
    ratios = {(i, j): count * sum(totals) / (totals[i] * totals[j]) for (i, j), count in counts.items()}
    return {pair: math.log(ratio) for pair, ratio in ratios.items() if ratio > 1}


def squared_distance(a, b):
    return sum((x - y) ** 2 for x, y in zip(a, b, strict=True))


def nearest(vectors, centroids):
    return [
        min(range(len(centroids)), key=lambda code: squared_distance(vector, centroids[code])) for vector in vectors
    ]


def repair(codes, residuals, codebook):
    """Returns the last code of each item after collisions (items with equal codes) are repaired. A cell contains the
    items that share all codes but the last. Of the items with equal codes, the one nearest to the centroid of the last
    code keeps this code. The others get last codes that no item of the cell has, if there are any. The nearest pairs
    of an item and such a code are matched first."""
    groups, cells = {}, {}
    for item, row in enumerate(codes):
        groups.setdefault(tuple(row), []).append(item)
        cells.setdefault(tuple(row[:-1]), []).append(item)
    last = [row[-1] for row in codes]
    keepers = {
        min(group, key=lambda i: (squared_distance(residuals[i], codebook[last[i]]), i)) for group in groups.values()
    }
    for cell in cells.values():
        taken = {last[item] for item in cell}
        pairs = [
            (squared_distance(residuals[item], codebook[code]), item, code)
            for item in cell
            if item not in keepers
            for code in range(len(codebook))
        ]
        placed = set()
        for _, item, code in sorted(pairs):
            if item not in placed and code not in taken:
                last[item] = code
                placed.add(item)
                taken.add(code)
    return last
