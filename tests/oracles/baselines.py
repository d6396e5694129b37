"""Computes the baselines `popularity` and `transition` in loops. Each sequence contains all items of one user, in
order. Scores are fractions, so that ties are exact."""

from fractions import Fraction


def popularity(sequences, num_items):
    counts = [0] * num_items
    for sequence in sequences:
        for item in sequence:
            counts[item] += 1
    return counts


def transitions(sequences, window):
    weights = {}
    for sequence in sequences:
        for i, first in enumerate(sequence):
            for j in range(i + 1, min(i + window, len(sequence) - 1) + 1):
                row = weights.setdefault(first, {})
                row[sequence[j]] = row.get(sequence[j], 0) + Fraction(1, j - i)
    return {first: {second: w / sum(row.values()) for second, w in row.items()} for first, row in weights.items()}


def rank_by_transitions(sequences, history, num_items, top_k, exclude_history, window=3, max_history=10):
    table = transitions(sequences, window)
    scores = [Fraction(0)] * num_items
    for age, item in enumerate(reversed(history[-max_history:])):
        for target, weight in table.get(item, {}).items():
            scores[target] += weight / (1 + age)
    return _top(scores, sequences, history, num_items, top_k, exclude_history)


def rank_by_popularity(sequences, history, num_items, top_k, exclude_history):
    return _top([0] * num_items, sequences, history, num_items, top_k, exclude_history)


def _top(scores, sequences, history, num_items, top_k, exclude_history):
    often = popularity(sequences, num_items)
    items = [item for item in range(num_items) if not (exclude_history and item in history)]
    items.sort(key=lambda item: (-scores[item], -often[item], item))
    return (items + [-1] * top_k)[:top_k]
