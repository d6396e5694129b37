"""What each of several lists a user is worth, as a reward to learn from: the metrics of `metrics.py`, or any function.

Rewards are of item indices, never of text, and are rounded to 12 decimals: the last bits of a sum depend on how many
lists are scored at a time and on the order of their items, and would tell equal lists apart where only their ranking
counts.

Legend: B users, G lists a user, K ranks.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple, TypeAlias

import numpy as np
from datasets import Dataset

from trl_rec.data.dataset import split_rows
from trl_rec.evaluation import metrics
from trl_rec.evaluation.inputs import item_rows
from trl_rec.items import ItemCatalog
from trl_rec.ragged import Ragged


DECIMALS = 12


@dataclass(frozen=True, eq=False)
class ListBatch:
    """Lists, and what their rewards may be made from.

    Args:
        lists (`np.ndarray` of shape `(B, G, K)`): Item indices, best first; a negative one is a missing rank.
        targets (`Ragged`): The items that each of the B users went on to choose.
        histories (`Ragged`): The items that each user chose before.
        shares (`np.ndarray` of shape `(num_items, num_groups)`, *optional*): The groups of each item, as
            [`ItemCatalog.group_shares`] gives them.
    """

    lists: np.ndarray
    targets: Ragged
    histories: Ragged
    shares: np.ndarray | None = None

    def __post_init__(self) -> None:
        if self.lists.ndim != 3 or not np.issubdtype(self.lists.dtype, np.integer):
            raise ValueError(
                f"lists is {self.lists.dtype} of the shape {self.lists.shape}; give item indices of shape (users, lists, ranks)"
            )
        num_items = None if self.shares is None else len(self.shares)
        if num_items is not None and self.lists.max(initial=-1) >= num_items:
            row, place, rank = np.argwhere(self.lists >= num_items)[0]
            item = self.lists[row, place, rank]
            raise ValueError(
                f"lists, row {row}, list {place}: item {item} is not in the catalogue of {num_items} items"
            )
        for name, rows in (("targets", self.targets), ("histories", self.histories)):
            if len(item_rows(rows, name, num_items)) != len(self.lists):
                raise ValueError(
                    f"{name} has {len(rows)} rows and lists has {len(self.lists)}; give the same users to both"
                )

    @cached_property
    def hits(self) -> tuple[np.ndarray, np.ndarray]:
        """Which ranks hold a target, `(B, G, K)`, and the user's number of targets, `(B, G)`; a user without any is
        refused."""
        if not self.targets.lengths.all():
            row = int(np.flatnonzero(self.targets.lengths == 0)[0])
            raise ValueError(f"targets, row {row} is empty; leave users without a target out of training")
        num_users, num_lists, num_ranks = self.lists.shape
        repeated = self.targets.take(np.repeat(np.arange(num_users), num_lists))
        hits, num_relevant = metrics.find_hits(self.lists.reshape(-1, num_ranks), repeated.row_ids, repeated.values)
        return hits.reshape(self.lists.shape), num_relevant.reshape(num_users, num_lists)

    @property
    def groups(self) -> np.ndarray:
        """`shares`, refused where there are none."""
        if self.shares is None:
            raise ValueError(
                "the rewards ild and mgu need groups of items; name a group_column when preparing the data"
            )
        return self.shares


ListReward: TypeAlias = Callable[[ListBatch], np.ndarray]


class ListRewards(NamedTuple):
    """The rewards of some lists, all float64 of shape `(B, G)`.

    Args:
        total: The weighted sum, which is learned from.
        parts: Each reward by its name, not weighted, to be logged.
    """

    total: np.ndarray
    parts: dict[str, np.ndarray]


def score_lists(
    batch: ListBatch, weights: Mapping[str, float], functions: Mapping[str, ListReward] | None = None
) -> ListRewards:
    """The weighted sum of some rewards, one value a list, and the rewards themselves.

    Args:
        batch (`ListBatch`): The lists.
        weights (`Mapping[str, float]`): From the name of a reward, `"ndcg" "recall" "hit" "ild" "mgu"` or one of
            `functions`, to its weight: `{"ndcg": 1, "mgu": 4}`. All are higher for better lists. One of weight 0 is
            only logged.
        functions (`Mapping[str, ListReward]`, *optional*): Further rewards. Each is given the batch and returns an
            array `(B, G)` of finite numbers, as in `{"novelty": lambda batch: -popularity[batch.lists].mean(-1)}`.
    """
    known = {**NAMED, **(functions or {})}
    if not weights:
        raise ValueError(f"no reward is given; weigh at least one of {', '.join(sorted(known))}")
    total, parts = np.zeros(batch.lists.shape[:2]), {}
    for name, weight in weights.items():
        if name not in known:
            raise ValueError(
                f"no reward is called {name!r}; choose from {', '.join(sorted(known))}, or give its function"
            )
        if not np.isfinite(weight):
            raise ValueError(f"the weight of reward {name!r} is {weight}; give a finite number")
        parts[name] = _checked(known[name](batch), name, total.shape)
        total = total + weight * parts[name]
    return ListRewards(total.round(DECIMALS), parts)


def score_split(
    lists: np.ndarray,
    rows: Dataset,
    catalog: ItemCatalog,
    weights: Mapping[str, float],
    functions: Mapping[str, ListReward] | None = None,
) -> ListRewards:
    """[`score_lists`] of lists `(B, G, K)` for the rows of a split, whose targets and histories the rewards go by."""
    shares = None if catalog.group_column is None else catalog.group_shares()[1]
    batch = ListBatch(lists, split_rows(rows, "targets"), split_rows(rows, "history"), shares)
    return score_lists(batch, weights, functions)


def _checked(values: np.ndarray, name: str, shape: tuple[int, ...]) -> np.ndarray:
    values = np.asarray(values, np.float64)
    if values.shape != shape:
        raise ValueError(
            f"reward {name!r} has the shape {values.shape}; return one value for each of the {shape} lists"
        )
    if not np.isfinite(values).all():
        row, place = np.argwhere(~np.isfinite(values))[0]
        raise ValueError(f"reward {name!r}, row {row}, list {place} is {values[row, place]}; return finite numbers")
    return values.round(DECIMALS)


def ndcg(batch: ListBatch) -> np.ndarray:
    """NDCG of each list over all its ranks, `(B, G)`."""
    return metrics.ndcg(*batch.hits, batch.lists.shape[-1])


def recall(batch: ListBatch) -> np.ndarray:
    """Share of the user's targets in each list, `(B, G)`."""
    return metrics.recall(*batch.hits, batch.lists.shape[-1])


def hit(batch: ListBatch) -> np.ndarray:
    """1 where a list holds a target, else 0, `(B, G)`."""
    return metrics.hit(batch.hits[0], batch.lists.shape[-1])


def ild(batch: ListBatch) -> np.ndarray:
    """Mean cosine distance of the groups of each two items of a list, `(B, G)`."""
    return metrics.ild(batch.lists, batch.groups)


def mgu(batch: ListBatch) -> np.ndarray:
    """Minus the mean over groups of |share in the list - share in this user's own history|, `(B, G)`, 0 where they
    agree.

    Reconstruction: the paper scores each list so, but gives no formula. The metric [`metrics.mgu`] compares whole
    corpora.
    """
    present = batch.lists >= 0
    listed = Ragged.from_lengths(batch.lists[present], present.sum(-1).ravel())
    recommended = _group_shares(listed, batch.groups).reshape(*batch.lists.shape[:2], batch.groups.shape[1])
    return -metrics.mgu(recommended, _group_shares(batch.histories, batch.groups)[:, None])


def _group_shares(items: Ragged, shares: np.ndarray) -> np.ndarray:
    """Share of each group in each row of items, `(len(items), num_groups)`; zeros where no item is in any group."""
    mass = np.zeros((len(items), shares.shape[1]))
    step = max(1, metrics.GATHERED_VALUES // max(1, shares.shape[1] * int(items.lengths.max(initial=0))))
    for start in range(0, len(items), step):
        part = items.take(np.arange(start, min(start + step, len(items))))
        filled = np.flatnonzero(part.lengths)  # an empty row would be given the first item of the next
        mass[start + filled] = np.add.reduceat(shares[part.values], part.offsets[filled], axis=0, dtype=np.float64)
    return mass / np.maximum(mass.sum(-1, keepdims=True), np.finfo(np.float64).tiny)


NAMED: dict[str, ListReward] = {"ndcg": ndcg, "recall": recall, "hit": hit, "ild": ild, "mgu": mgu}
