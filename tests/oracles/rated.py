"""Builds ALRO's lists of rated items, one row and one item at a time, and computes metrics of rankings in loops."""

import math
from itertools import combinations


Row = dict[str, list]


def _first_times(row: Row) -> list[int]:
    """Returns the positions, in history + targets, of the targets whose item does not occur earlier."""
    sequence = row["history"] + row["targets"]
    return [place for place in range(len(row["history"]), len(sequence)) if sequence[place] not in sequence[:place]]


def _list(row: Row, places: list[int], max_history: int | None) -> tuple | None:
    sequence, ratings = row["history"] + row["targets"], row["history_ratings"] + row["target_ratings"]
    start = 0 if max_history is None else max(0, places[0] - max_history)
    chosen = [ratings[place] for place in places]
    if len(set(chosen)) < 2:
        return None
    candidates = [sequence[place] for place in places]
    return row["user"], sequence[start : places[0]], ratings[start : places[0]], candidates, chosen


def training_lists(split: list[Row], most: int, stride: int, max_history: int | None) -> list[tuple]:
    lists = []
    for row in split:
        new = _first_times(row)
        lists += [_list(row, new[begin : begin + most], max_history) for begin in range(0, len(new), stride)]
    return [(*one, number) for number, one in enumerate(one for one in lists if one is not None)]


def held_out_lists(split: list[Row], most: int, max_history: int | None) -> list[tuple]:
    lists = [(number, row, _first_times(row)[:most]) for number, row in enumerate(split)]
    found = [(number, _list(row, new, max_history)) for number, row, new in lists if new]
    return [(*one, number) for number, one in found if one is not None]


def graded_ndcg(places: list[int], ratings: list[float], k: int) -> float:
    """Returns the graded NDCG@k of a ranking of all candidates. `places` contains the rank of each candidate."""

    def dcg(order: list[float]) -> float:
        return sum((2**rating - 1) / math.log2(rank + 2) for rank, rating in enumerate(order[:k]))

    best = dcg(sorted(ratings, reverse=True))
    return dcg([rating for _, rating in sorted(zip(places, ratings, strict=True))]) / best if best else 0.0


def kendall(first: list[float], second: list[float]) -> float:
    """Returns Kendall's tau. Pairs that are tied in either ranking are left out."""
    signs = [(a - b) * (c - d) for (a, c), (b, d) in combinations(zip(first, second, strict=True), 2)]
    untied = [sign for sign in signs if sign]
    return sum(1 if sign > 0 else -1 for sign in untied) / len(untied) if untied else 0.0
