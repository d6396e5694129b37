"""Evaluates rankings of the whole catalogue against the items that the users chose next.

Errors of a decoder stay visible in the metrics. An index outside the catalogue, and an item that repeats an earlier
item of its list, keep their ranks and never count as hits. The metric `invalid` is the number of indices outside the
catalogue, and `duplicates` is the number of repeated items.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from trl_rec.data.item_rows import Rows, item_rows
from trl_rec.evaluation import metrics
from trl_rec.items.catalog import ItemCatalog
from trl_rec.ragged import Ragged


BLOCK = 1 << 16  # number of users whose hits are looked up at a time


def evaluate_rankings(
    ranked: np.ndarray,
    relevant: Rows,
    *,
    ks: Sequence[int] = (1, 5, 10),
    catalog: ItemCatalog | None = None,
    histories: Rows | None = None,
    popularity: np.ndarray | None = None,
    num_items: int | None = None,
) -> dict[str, float]:
    """Computes metrics of accuracy, diversity and fairness from one ranking per user.

    Args:
        ranked (`np.ndarray` of shape `(N, K)`):
            Item indices, best first; -1 marks a missing rank.
        relevant (`Ragged`, Arrow list column or list of lists):
            The items that each of the N users chose next, at least one per user.
        ks (`Sequence[int]`, *optional*, defaults to `(1, 5, 10)`):
            The cutoffs k of the metrics, each at most K.
        catalog (`ItemCatalog`, *optional*):
            Determines the number of items and, if it has a `group_column`, the groups of items (such as genres) for
            `ild`, `mgu` and `dgu`.
        histories (like `relevant`, *optional*):
            The items that each user chose before, for the metrics `mgu` and `dgu`.
        popularity (`np.ndarray` of shape `(num_items,)`, *optional*):
            Number of interactions with each item in the training split, for the metric `popularity`.
        num_items (`int`, *optional*):
            Size of the catalogue. Not needed if `catalog` or `popularity` is given.

    Returns:
        `dict[str, float]`, with these entries (`trl_rec.evaluation.metrics` defines the metrics):

        - for every k: `recall@k hit@k ndcg@k mrr@k` (means over users) and `div_ratio@k or_ratio@k`;
        - for every k, if the number of items is known: `coverage@k gini@k`;
        - for every k, if `popularity` is given: `popularity@k`;
        - for every k above 1, if the catalogue has groups: `ild@k`;
        - for every k, if the catalogue has groups and `histories` is given: `mgu@k dgu@k`;
        - over all K ranks: `invalid` (number of indices outside the catalogue) and `duplicates` (number of items that
          repeat an earlier item of their list);
        - `num_users`.
    """
    num_items = _catalog_size(catalog, popularity, num_items)
    ranked = _checked_ranking(ranked, ks)

    # 1. Compute the accuracy metrics of each user, and average them over the users.
    result = {name: float(values.mean()) for name, values in _per_user(ranked, relevant, ks, num_items).items()}

    # 2. Replace invalid indices by -1, because the metrics below cannot look them up.
    upper = np.inf if num_items is None else num_items
    invalid = (ranked < -1) | (ranked >= upper)
    valid = np.where(invalid, -1, ranked)

    # 3. Divide each item equally among its groups, and compute the share of each group in the histories.
    shares = None
    consumed = None
    if catalog is not None and catalog.group_column is not None:
        shares = catalog.group_shares()[1]  # (num_items, num_groups)
        if histories is not None:
            rows = item_rows(histories, "histories", len(catalog))  # a history may contain retired items
            _check_same_users(rows, ranked, "histories")
            consumed = metrics.group_share(rows.values, shares)  # (num_groups,)

    # 4. Compute the metrics over all lists together, and count the errors.
    for k in ks:
        result |= _list_metrics(valid[:, :k], num_items, popularity, shares, consumed)
    repeated = (valid >= 0) & ~metrics.first_occurrences(valid)
    return result | {"invalid": int(invalid.sum()), "duplicates": int(repeated.sum()), "num_users": len(ranked)}


def per_user_metrics(ranked: np.ndarray, relevant: Rows, *, ks: Sequence[int] = (1, 5, 10)) -> dict[str, np.ndarray]:
    """Computes `recall@k hit@k ndcg@k mrr@k` for each user. Intervals and paired tests are computed from these values.

    The arguments are the same as for [`evaluate_rankings`]. Each array of the result has the shape `(N,)`.
    """
    return _per_user(_checked_ranking(ranked, ks), relevant, ks, None)


def _per_user(ranked: np.ndarray, relevant: Rows, ks: Sequence[int], num_items: int | None) -> dict[str, np.ndarray]:
    rows = item_rows(relevant, "relevant", num_items)
    _check_same_users(rows, ranked, "relevant")
    if not rows.lengths.all():
        row = int(np.flatnonzero(rows.lengths == 0)[0])
        raise ValueError(
            f"relevant, row {row}: the user has no relevant items; leave such users out of 'ranked' and 'relevant'"
        )

    # Looking up hits needs several times the memory of the rankings, so do it for one block of users at a time.
    parts: dict[str, list[np.ndarray]] = {}
    for start in range(0, len(ranked), BLOCK):
        block = rows.take(np.arange(start, min(start + BLOCK, len(ranked))))
        hits, num_relevant = metrics.find_hits(ranked[start : start + BLOCK], block.row_ids, block.values)
        for k in ks:
            parts.setdefault(f"recall@{k}", []).append(metrics.recall(hits, num_relevant, k))
            parts.setdefault(f"hit@{k}", []).append(metrics.hit(hits, k))
            parts.setdefault(f"ndcg@{k}", []).append(metrics.ndcg(hits, num_relevant, k))
            parts.setdefault(f"mrr@{k}", []).append(metrics.mrr(hits, k))
    return {name: np.concatenate(values) for name, values in parts.items()}


def _list_metrics(
    ranked: np.ndarray,
    num_items: int | None,
    popularity: np.ndarray | None,
    shares: np.ndarray | None,
    consumed: np.ndarray | None,
) -> dict[str, float]:
    """Computes the metrics that describe all lists `(N, k)` together. Metrics whose inputs are None are left out."""
    k = ranked.shape[1]
    result: dict[str, float] = {}

    if num_items is not None:
        result[f"coverage@{k}"] = metrics.coverage(ranked, num_items)
        result[f"gini@{k}"] = metrics.gini(ranked, num_items)
    if popularity is not None:
        result[f"popularity@{k}"] = metrics.mean_popularity(ranked, popularity)
    if shares is not None and k > 1:  # a list of one item has no pairs to compare
        result[f"ild@{k}"] = float(metrics.ild(ranked, shares).mean())

    result[f"div_ratio@{k}"] = metrics.div_ratio(ranked)
    result[f"or_ratio@{k}"] = metrics.or_ratio(ranked)

    if shares is not None and consumed is not None:
        recommended = metrics.group_share(ranked, shares)
        result[f"mgu@{k}"] = float(metrics.mgu(recommended, consumed))
        result[f"dgu@{k}"] = float(metrics.dgu(recommended, consumed))
    return result


def _checked_ranking(ranked: np.ndarray, ks: Sequence[int]) -> np.ndarray:
    """Returns the ranking as int64, after checking its shape and type, and that every k is at most K."""
    ranked = np.asarray(ranked)
    if ranked.ndim != 2 or len(ranked) == 0:
        raise ValueError(
            f"ranked has the shape {ranked.shape}; give item indices as an array (num_users, K) of at least one user"
        )
    if not np.issubdtype(ranked.dtype, np.integer):
        raise ValueError(
            f"ranked has the type {ranked.dtype}; give item indices of an integer type, with -1 for a missing rank"
        )

    num_ranks = ranked.shape[1]
    if not ks or min(ks) < 1 or max(ks) > num_ranks:
        raise ValueError(
            f"ks={tuple(ks)} is empty or contains a value outside 1 to {num_ranks}, the number of ranks; change ks, "
            "or rank more items"
        )
    return ranked.astype(np.int64, copy=False)


def _check_same_users(rows: Ragged, ranked: np.ndarray, name: str) -> None:
    if len(rows) != len(ranked):
        raise ValueError(
            f"{name} has {len(rows)} rows, but ranked has {len(ranked)}; give the same users, in the same order"
        )


def _catalog_size(catalog: ItemCatalog | None, popularity: np.ndarray | None, num_items: int | None) -> int | None:
    """Returns the number of items, or None if it is unknown. Raises `ValueError` if the arguments are for different
    numbers of items, or if a popularity is not finite."""
    sizes: dict[str, int] = {}
    if catalog is not None:
        sizes["catalog"] = catalog.num_recommendable
    if num_items is not None:
        sizes["num_items"] = num_items
    if popularity is not None:
        sizes["popularity"] = len(popularity)

    if len(set(sizes.values())) > 1:
        listed = " and ".join(f"{name} ({size})" for name, size in sizes.items())
        raise ValueError(f"{listed} disagree on the number of items; give arguments of the same catalogue")
    if popularity is not None and not np.isfinite(popularity).all():
        item = int(np.flatnonzero(~np.isfinite(popularity))[0])
        raise ValueError(f"the popularity of item {item} is {popularity[item]}; give one finite number per item")
    return next(iter(sizes.values()), None)
