"""Divides the users of an evaluation into slices in three ways: by how often their rarest target occurs in the
training split, by history length, and by the item group (such as a genre) of their first target."""

from __future__ import annotations

import numpy as np

from trl_rec.evaluation.kept.reading import KeptEvaluation
from trl_rec.evaluation.tables import aligned


MOST_GROUPS = 10  # maximum number of item groups with a slice of their own; all other users share one slice
NUM_HISTORIES = 3  # maximum number of slices by history length


def slices(kept: KeptEvaluation) -> dict[str, np.ndarray]:
    """Returns a mapping from the name of each slice to a boolean array `(num_users,)` that marks its users.

    Empty slices are left out. Each user belongs to one slice of every kind:

    - By target frequency: three slices by how often the rarest target of the user occurs in the training split.
    - By history length: up to three slices with about equally many users each, from short to long histories. Users
      with equally long histories are in the same slice.
    - By group of the first target, if the catalogue has groups: one slice for each of the ten groups with the most
      users, largest first, and one slice for all other users.
    """
    count = kept.users["target_count"]
    parts = {
        "target never in training": count == 0,
        "target 1 to 5 times in training": (count >= 1) & (count <= 5),
        "target more than 5 times in training": count > 5,
        **_by_history(kept.users["history_length"]),
        **_by_group(kept.users["group"]),
    }
    return {name: mask for name, mask in parts.items() if mask.any()}


def slices_table(kept: KeptEvaluation, metric: str) -> str:
    """Makes a text table with the mean of a metric for each slice (rows) and each recommender (columns).

    Args:
        kept (`KeptEvaluation`): The evaluation.
        metric (`str`): A metric that has a value per user, such as `"ndcg@10"`.
    """
    named = {name: one.per_user[metric] for name, one in kept.results.items() if metric in one.per_user}
    if not named:
        known = dict.fromkeys(metric for one in kept.results.values() for metric in one.per_user)
        raise ValueError(f"{kept.folder} has no values of {metric} per user; choose one of {', '.join(known)}")

    rows = [[metric, "users", *named]]
    everyone = np.ones(kept.num_users, bool)
    for name, mask in {"all users": everyone, **slices(kept)}.items():
        means = [_mean(values[mask]) for values in named.values()]
        rows.append([name, f"{mask.sum():,}", *means])
    return "\n".join(aligned(rows))


def _mean(values: np.ndarray) -> str:
    """Returns the mean over the users that the metric applies to, or "-" if there are none."""
    known = values[~np.isnan(values)]
    return f"{known.mean():.4f}" if len(known) else "-"


def _by_history(lengths: np.ndarray) -> dict[str, np.ndarray]:
    """Divides users by history length. Returns a mapping from the name of each slice to a boolean array."""
    edges = np.unique(np.quantile(lengths, np.arange(1, NUM_HISTORIES) / NUM_HISTORIES, method="lower"))
    part = np.searchsorted(edges, lengths)  # number of each user's slice; a length at an edge is in the lower slice
    parts = {}
    for number in np.unique(part):
        own = lengths[part == number]
        bounds = f"{own.min()}" if own.min() == own.max() else f"{own.min()} to {own.max()}"
        parts[f"history of {bounds} items"] = part == number
    return parts


def _by_group(groups: np.ndarray) -> dict[str, np.ndarray]:
    known = groups[groups != np.array(None)]
    names, counts = np.unique(known.astype(str), return_counts=True)
    if not len(names):
        return {}
    largest = names[np.argsort(-counts, kind="stable")][:MOST_GROUPS]
    parts = {f"first target in {name}": groups == name for name in largest.tolist()}
    return {**parts, "first target in another group, or in none": ~np.any(list(parts.values()), 0)}
