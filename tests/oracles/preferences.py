"""Computes the negatives of preference training for one row and one item at a time.

A training split is a list of rows `(user, history, targets)`. The scores of a split are the ratings that its users
gave. They are a list with one entry per row: a list with one score for each item of the history, followed by one for
each target.
"""


def prefixes(rows, max_history=None):
    """Returns `(user, history, target)` for every target of every row."""
    return [
        (user, (history + targets[:place])[-max_history if max_history else None :], target)
        for user, history, targets in rows
        for place, target in enumerate(targets)
    ]


def chosen_by(rows, user):
    return {item for owner, history, targets in rows if owner == user for item in history + targets}


def common_prefix(first, second):
    count = 0
    for one, other in zip(first, second, strict=False):
        if one != other:
            break
        count += 1
    return count


def buckets(rows, prompts, beams, surfaces, semantic_ids=None):
    """Returns the difficulty of the item of every beam, from 0 (easy) to 2 (hard), or -1 if the item cannot be a
    negative.

    With semantic IDs, the difficulty is the number of leading codes that the item shares with the target, at most 2.
    Otherwise, it depends on the rank of the item among the possible negatives: the first third is hard, and the last
    third is easy.
    """
    out = []
    for (user, _, target), ranked in zip(prompts, beams, strict=True):
        refused = {surfaces[item] for item in chosen_by(rows, user) | {target}}
        left = []
        for item in ranked:
            if item >= 0 and surfaces[item] not in refused:
                left.append(item)
                refused.add(surfaces[item])
        row = []
        for place, item in enumerate(ranked):
            if item not in left or item in ranked[:place]:
                row.append(-1)
            elif semantic_ids is not None:
                row.append(min(common_prefix(semantic_ids[item], semantic_ids[target]), 2))
            else:
                third = left.index(item) / len(left)
                row.append(2 if third < 1 / 3 else 1 if third < 2 / 3 else 0)
        out.append(row)
    return out


def feedback(rows, scores, liked, rejected):
    """Returns `(user, history, chosen, possible rejected items)` for every liked target."""
    told = []
    for (user, history, targets), row_scores in zip(rows, scores, strict=True):
        for place, item in enumerate(targets):
            if liked[0] <= row_scores[len(history) + place] <= liked[1]:
                good, bad = set(), set()
                for (owner, *lists), others in zip(rows, scores, strict=True):
                    for other, score in zip(sum(lists, []), others, strict=True):
                        if owner == user and liked[0] <= score <= liked[1]:
                            good.add(other)
                        if owner == user and rejected[0] <= score <= rejected[1]:
                            bad.add(other)
                told.append((user, history + targets[:place], item, bad - good))
    return told


def is_prefix(rows, user, history, chosen):
    """Returns whether the user has a row in which the chosen item is a target and the items before this target end
    with the history."""
    return any(
        owner == user and target == chosen and (before[len(before) - len(history) :] if history else []) == history
        for owner, before, target in prefixes(rows)
        if len(before) >= len(history)
    )
