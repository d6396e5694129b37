"""Rankings against what users went on to choose, over the whole catalogue and at the level of items.

An index off the catalogue, or an item twice in a list, takes up its rank, earns nothing, and is reported as `invalid`
or `duplicates`: a decoder that errs is seen, not repaired.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from trl_rec.evaluation import metrics
from trl_rec.evaluation.inputs import Rows, item_rows
from trl_rec.items.catalog import ItemCatalog
from trl_rec.ragged import Ragged


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
    """Accuracy, diversity and fairness of one ranking a user.

    Args:
        ranked (`np.ndarray` of shape `(N, K)`):
            Item indices, best first; -1 is a missing rank.
        relevant (`Ragged`, Arrow list column or list of lists):
            What each of the N users went on to choose, at least one item each.
        ks (`Sequence[int]`, *optional*, defaults to `(1, 5, 10)`):
            Lengths to cut the lists at, none above K.
        catalog (`ItemCatalog`, *optional*):
            Gives `num_items` and, when it has a `group_column`, the groups of `ild`, `mgu` and `dgu`.
        histories (like `relevant`, *optional*):
            What each user chose before, for `mgu` and `dgu`.
        popularity (`np.ndarray` of shape `(num_items,)`, *optional*):
            How often each item was chosen in training, for `popularity`.
        num_items (`int`, *optional*):
            Size of the catalogue, where no `catalog` is given.

    Returns:
        `dict[str, float]`: for every k `recall@k hit@k ndcg@k mrr@k` (means over users) and `div_ratio@k or_ratio@k`;
        given the number of items `coverage@k gini@k`; given popularities `popularity@k`; given groups `ild@k` (k > 1);
        given groups and histories `mgu@k dgu@k`. Over all K ranks `invalid` (indices off the catalogue) and
        `duplicates` (items that a list repeats). And `num_users`.
    """
    num_items = _catalog_size(catalog, popularity, num_items)
    ranked = _checked_ranking(ranked, ks)
    result = {name: float(values.mean()) for name, values in _per_user(ranked, relevant, ks, num_items).items()}
    invalid = (ranked < -1) | (ranked >= (np.inf if num_items is None else num_items))
    valid = np.where(invalid, -1, ranked)
    shares = catalog.group_shares()[1] if catalog is not None and catalog.group_column is not None else None
    consumed = None
    if shares is not None and histories is not None:
        consumed = metrics.group_share(
            _matched(item_rows(histories, "histories", num_items), ranked, "histories").values, shares
        )
    for k in ks:
        result |= _corpus_metrics(valid[:, :k], num_items, popularity, shares, consumed)
    repeated = (valid >= 0) & ~metrics.first_occurrences(valid)
    return result | {"invalid": int(invalid.sum()), "duplicates": int(repeated.sum()), "num_users": len(ranked)}


def per_user_metrics(ranked: np.ndarray, relevant: Rows, *, ks: Sequence[int] = (1, 5, 10)) -> dict[str, np.ndarray]:
    """`recall@k hit@k ndcg@k mrr@k` before the mean over users, `(N,)` each: what intervals and paired tests take.

    Arguments and refusals as in [`evaluate_rankings`].
    """
    return _per_user(_checked_ranking(ranked, ks), relevant, ks, None)


def _per_user(ranked: np.ndarray, relevant: Rows, ks: Sequence[int], num_items: int | None) -> dict[str, np.ndarray]:
    rows = _matched(item_rows(relevant, "relevant", num_items), ranked, "relevant")
    if not rows.lengths.all():
        row = int(np.flatnonzero(rows.lengths == 0)[0])
        raise ValueError(
            f"relevant, row {row}: the user has no relevant item; leave users without any out of ranking and measuring"
        )
    hits, num_relevant = metrics.find_hits(ranked, rows.row_ids, rows.values)
    result = {}
    for k in ks:
        result[f"recall@{k}"] = metrics.recall(hits, num_relevant, k)
        result[f"hit@{k}"] = metrics.hit(hits, k)
        result[f"ndcg@{k}"] = metrics.ndcg(hits, num_relevant, k)
        result[f"mrr@{k}"] = metrics.mrr(hits, k)
    return result


def _corpus_metrics(
    ranked: np.ndarray,
    num_items: int | None,
    popularity: np.ndarray | None,
    shares: np.ndarray | None,
    consumed: np.ndarray | None,
) -> dict[str, float]:
    k = ranked.shape[1]
    result: dict[str, float] = {}
    if num_items is not None:
        result |= {f"coverage@{k}": metrics.coverage(ranked, num_items), f"gini@{k}": metrics.gini(ranked, num_items)}
    if popularity is not None:
        result[f"popularity@{k}"] = metrics.mean_popularity(ranked, popularity)
    if shares is not None and k > 1:
        result[f"ild@{k}"] = float(metrics.ild(ranked, shares).mean())
    result |= {f"div_ratio@{k}": metrics.div_ratio(ranked), f"or_ratio@{k}": metrics.or_ratio(ranked)}
    if shares is not None and consumed is not None:
        recommended = metrics.group_share(ranked, shares)
        result |= {
            f"mgu@{k}": float(metrics.mgu(recommended, consumed)),
            f"dgu@{k}": float(metrics.dgu(recommended, consumed)),
        }
    return result


def _checked_ranking(ranked: np.ndarray, ks: Sequence[int]) -> np.ndarray:
    ranked = np.asarray(ranked)
    if ranked.ndim != 2 or len(ranked) == 0:
        raise ValueError(
            f"ranked has the shape {ranked.shape}; give one row of item indices a user, (num_users, K), and a user at least"
        )
    if not np.issubdtype(ranked.dtype, np.integer):
        raise ValueError(
            f"ranked holds {ranked.dtype} (NaN included, if any); give integer item indices, -1 for a missing rank"
        )
    if not ks or min(ks) < 1 or max(ks) > ranked.shape[1]:
        raise ValueError(
            f"ks={tuple(ks)} does not fit lists of {ranked.shape[1]}; choose k from 1 to {ranked.shape[1]}, or rank more"
        )
    return ranked.astype(np.int64, copy=False)


def _matched(rows: Ragged, ranked: np.ndarray, name: str) -> Ragged:
    if len(rows) != len(ranked):
        raise ValueError(
            f"{name} has {len(rows)} rows and ranked has {len(ranked)}; give the same users, in the same order"
        )
    return rows


def _catalog_size(catalog: ItemCatalog | None, popularity: np.ndarray | None, num_items: int | None) -> int | None:
    sizes = {"catalog": None if catalog is None else len(catalog), "num_items": num_items}
    sizes["popularity"] = None if popularity is None else len(popularity)
    known = {name: size for name, size in sizes.items() if size is not None}
    if len(set(known.values())) > 1:
        raise ValueError(
            f"{' and '.join(f'{name} ({size})' for name, size in known.items())} disagree on the number of items"
        )
    if popularity is not None and not np.isfinite(popularity).all():
        item = int(np.flatnonzero(~np.isfinite(popularity))[0])
        raise ValueError(f"popularity of item {item} is {popularity[item]}; give a finite number an item")
    return next(iter(known.values()), None)
