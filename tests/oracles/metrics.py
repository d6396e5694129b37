"""Computes metrics in loops over users, items and pairs."""

from itertools import combinations, permutations
from math import log2, sqrt


def accuracy(lists, relevant, k):
    """Returns recall, hit, NDCG and MRR per user. Lists contain item indices, and -1 for missing ranks."""
    rows = []
    for ranking, wanted in zip(lists, relevant, strict=True):
        wanted, seen, dcg, reciprocal, found = set(wanted), set(), 0.0, 0.0, 0
        for rank, item in enumerate(ranking[:k], start=1):
            if item in wanted and item not in seen:
                found += 1
                dcg += 1 / log2(rank + 1)
                reciprocal = reciprocal or 1 / rank
            seen.add(item)
        ideal = sum(1 / log2(rank + 1) for rank in range(1, min(k, len(wanted)) + 1))
        rows.append((found / len(wanted), float(found > 0), dcg / ideal, reciprocal))
    return rows


def graded_ndcg(grades, relevant_grades, k):
    def dcg(values):
        return sum((2**grade - 1) / log2(rank + 1) for rank, grade in enumerate(values[:k], start=1))

    ideal = dcg(sorted(relevant_grades, reverse=True))
    return dcg(grades) / ideal if ideal else 0.0


def counts(lists, num_items):
    table = [0] * num_items
    for ranking in lists:
        for item in ranking:
            if 0 <= item < num_items:
                table[item] += 1
    return table


def coverage(lists, num_items):
    return sum(count > 0 for count in counts(lists, num_items)) / num_items


def gini(lists, num_items):
    table = counts(lists, num_items)
    if not sum(table):
        return 0.0
    return sum(abs(a - b) for a in table for b in table) / (2 * num_items * sum(table))


def mean_popularity(lists, popularity):
    values = [popularity[item] for ranking in lists for item in ranking if item >= 0]
    return sum(values) / len(values) if values else 0.0


def div_ratio(lists):
    return len({item for ranking in lists for item in ranking if item >= 0}) / sum(len(ranking) for ranking in lists)


def or_ratio(lists):
    items = [item for ranking in lists for item in ranking if item >= 0]
    most = sorted((items.count(item) for item in set(items)), reverse=True)[:3]
    return sum(most) / len(items) if items else 0.0


def ild(ranking, vectors):
    pairs = list(combinations([item for item in ranking if item >= 0], 2))
    return sum(cosine_distance(vectors[a], vectors[b]) for a, b in pairs) / len(pairs) if pairs else 0.0


def cosine_distance(a, b):
    norms = sqrt(sum(x * x for x in a)) * sqrt(sum(x * x for x in b))
    return 1 - sum(x * y for x, y in zip(a, b, strict=True)) / norms if norms else 1.0


def group_share(items, shares):
    mass = [0.0] * len(shares[0])
    for item in items:
        if item >= 0:
            for group, share in enumerate(shares[item]):
                mass[group] += share
    return [value / sum(mass) for value in mass] if sum(mass) else mass


def mgu(recommended, consumed):
    return sum(abs(a - b) for a, b in zip(recommended, consumed, strict=True)) / len(recommended)


def dgu(recommended, consumed):
    gaps = [a - b for a, b in zip(recommended, consumed, strict=True)]
    return max(gaps) - min(gaps)


def preferences(lists, scores, rows, k):
    """Returns `(liked@k, disliked@k, preference_accuracy)` per user, with None for undefined values. A row contains
    `(item, rating)` for each held-out item of a user. `scores` contains one score for each of these items."""
    result = []
    for ranking, values, row in zip(lists, scores, rows, strict=True):
        liked = {item for item, rating in row if rating >= 4}
        disliked = {item for item, rating in row if rating <= 2}
        shares = [len(wanted & set(ranking[:k])) / len(wanted) if wanted else None for wanted in (liked, disliked)]
        pairs = [
            1.0 if better > worse else 0.5 if better == worse else 0.0
            for (_, high), better in zip(row, values, strict=True)
            for (_, low), worse in zip(row, values, strict=True)
            if high >= 4 and low <= 2
        ]
        result.append((*shares, sum(pairs) / len(pairs) if pairs else None))
    return result


def orders_of_leaves(ranking, leaves, allowed):
    """Yields every ranking that results from reordering the items within each leaf of the trie. The items of a leaf
    have the same path. If the given ranking contains only some of the allowed items of a leaf, other allowed items of
    this leaf may take their places."""
    lists = [[]]
    for leaf in dict.fromkeys(leaves[item] for item in ranking if item >= 0):
        places = [place for place, item in enumerate(ranking) if item >= 0 and leaves[item] == leaf]
        members = [item for item in allowed if leaves[item] == leaf]
        lists = [[*chosen, (places, order)] for chosen in lists for order in permutations(members, len(places))]
    for chosen in lists:
        result = [-1] * len(ranking)
        for places, order in chosen:
            for place, item in zip(places, order, strict=True):
                result[place] = item
        yield result
