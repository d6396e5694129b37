"""Computes the rewards of recommended lists, for training and evaluation. A reward is one number per list: a metric
such as NDCG, or the value of another function.

To add a named reward, write a function below, and add the function to `REWARDS` at the end of this file. Then do the
same for tensors in `torch_rewards.py`.

Rewards are computed from item indices, never from text, and are rounded to 12 decimals. Without rounding, the last
bits of a sum would depend on the order of the items and on the number of lists that are scored at a time. Equally good
lists could then have different rewards, which would change rankings of lists by reward.

Legend: B: users, G: lists per user, K: ranks.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple, TypeAlias

import numpy as np
from datasets import Dataset
from torch import Tensor

from trl_rec.data.dataset import split_rows
from trl_rec.data.item_rows import item_rows
from trl_rec.evaluation import metrics
from trl_rec.items import ItemCatalog
from trl_rec.ragged import Ragged
from trl_rec.ranges import FINITE


DECIMALS = 12


@dataclass(frozen=True, eq=False)
class ListBatch:
    """Lists to score, with the data that rewards may use.

    Args:
        lists (`np.ndarray` of shape `(B, G, K)`): Item indices, best first. A negative index marks a missing rank. The
            array is stored as a read-only view, so that no reward function can change it for other reward functions.
        targets (`Ragged`): The items that each of the B users chose next.
        histories (`Ragged`): The items that each user chose before.
        shares (`np.ndarray` of shape `(num_items, num_groups)`, *optional*): `shares[i, g]` is the fraction of
            item `i` that belongs to group `g`, as returned by [`ItemCatalog.group_shares`].
    """

    lists: np.ndarray
    targets: Ragged
    histories: Ragged
    shares: np.ndarray | None = None

    def __post_init__(self) -> None:
        if self.lists.ndim != 3 or not np.issubdtype(self.lists.dtype, np.integer):
            raise ValueError(
                f"lists has the dtype {self.lists.dtype} and the shape {self.lists.shape}; give integer item indices "
                "of the shape (users, lists, ranks)"
            )

        view = self.lists.view()
        view.flags.writeable = False
        object.__setattr__(self, "lists", view)

        num_items = None if self.shares is None else len(self.shares)
        if num_items is not None and self.lists.max(initial=-1) >= num_items:
            row, number, rank = np.argwhere(self.lists >= num_items)[0]
            item = self.lists[row, number, rank]
            raise ValueError(
                f"lists, row {row}, list {number}: item {item} is not in the catalogue of {num_items} items; give "
                f"indices below {num_items}"
            )

        for name, rows in (("targets", self.targets), ("histories", self.histories)):
            if len(item_rows(rows, name, num_items)) != len(self.lists):
                raise ValueError(
                    f"{name} has {len(rows)} rows, but lists has {len(self.lists)}; give one row of each per user"
                )

    @cached_property
    def hits(self) -> tuple[np.ndarray, np.ndarray]:
        """Whether each rank contains a target for the first time in its list, `(B, G, K)`, and the number of distinct
        targets of the list's user, `(B, G)`.

        Raises `ValueError` if a user has no target.
        """
        if not self.targets.lengths.all():
            row = int(np.flatnonzero(self.targets.lengths == 0)[0])
            raise ValueError(f"targets, row {row}: the user has no targets; leave such users out")

        # Make one row per list, and repeat the targets of each user for every list of the user.
        num_users, num_lists, num_ranks = self.lists.shape
        repeated = self.targets.take(np.repeat(np.arange(num_users), num_lists))
        hits, num_relevant = metrics.find_hits(self.lists.reshape(-1, num_ranks), repeated.row_ids, repeated.values)
        return hits.reshape(self.lists.shape), num_relevant.reshape(num_users, num_lists)

    @property
    def groups(self) -> np.ndarray:
        """`shares`, for rewards that need groups. Raises `ValueError` if `shares` is None."""
        if self.shares is None:
            raise ValueError("the rewards ild and mgu need groups of items; set group_column when preparing the data")
        return self.shares


ListReward: TypeAlias = Callable[[ListBatch], np.ndarray]


class ListRewards(NamedTuple):
    """The rewards of a batch of lists, all float64 of shape `(B, G)`.

    Args:
        total: The weighted sum of the rewards, which training optimises.
        parts: The unweighted rewards by name, for logging.
    """

    total: np.ndarray
    parts: dict[str, np.ndarray]


def score_lists(
    batch: ListBatch, weights: Mapping[str, float], functions: Mapping[str, ListReward] | None = None
) -> ListRewards:
    """Scores each list by a weighted sum of rewards. Every reward is higher for better lists.

    Args:
        batch (`ListBatch`): The lists.
        weights (`Mapping[str, float]`): Weight of each reward by name, for example `{"ndcg": 1, "mgu": 4}`. The name
            is a key of `REWARDS` (`"ndcg"`, `"recall"`, `"hit"`, `"ild"`, `"mgu"`) or of `functions`. A reward with
            weight 0 is computed only for logging. A negative weight turns a reward into a penalty.
        functions (`Mapping[str, ListReward]`, *optional*): Additional reward functions by name. Each maps the batch to
            an array `(B, G)` of finite numbers, as in `{"novelty": lambda batch: -popularity[batch.lists].mean(-1)}`.

    Returns:
        The weighted sum and the unweighted rewards.
    """
    known = {**REWARDS, **(functions or {})}
    _check_weights(weights, known)

    total = np.zeros(batch.lists.shape[:2])  # (B, G)
    parts = {}
    for name, weight in weights.items():
        parts[name] = _checked(known[name](batch), name, total.shape)
        with np.errstate(over="ignore", invalid="ignore"):
            total = total + weight * parts[name]
    if not np.isfinite(total).all():
        raise ValueError(f"the weighted sum of the rewards {', '.join(parts)} is too large; lower their weights")
    return ListRewards(total.round(DECIMALS), parts)


def _check_weights(weights: Mapping[str, float], known: Mapping[str, ListReward]) -> None:
    """Raises `ValueError` if `weights` is empty or is not a mapping from known rewards to finite numbers."""
    if weights is not None and not isinstance(weights, Mapping):
        raise ValueError(f"rewards must map names to weights, as in {{'ndcg': 1.0, 'mgu': 4.0}}, not {weights!r:.60}")
    if not weights:
        raise ValueError(f"rewards is empty; give a weight to at least one of {', '.join(sorted(known))}")
    for name, weight in weights.items():
        if name not in known:
            raise ValueError(
                f"there is no reward {name!r}; choose from {', '.join(sorted(known))}, or pass your own function"
            )
        if not callable(known[name]):
            raise ValueError(f"reward {name!r} is {known[name]!r:.60}; pass a function that takes a ListBatch")
        FINITE.check(f"the weight of reward {name!r}", weight)


def score_split(
    lists: np.ndarray,
    rows: Dataset,
    catalog: ItemCatalog,
    weights: Mapping[str, float],
    functions: Mapping[str, ListReward] | None = None,
) -> ListRewards:
    """Scores lists `(B, G, K)` for the B rows of a split, as in [`score_lists`]."""
    shares = None if catalog.group_column is None else catalog.group_shares()[1]
    batch = ListBatch(lists, split_rows(rows, "targets"), split_rows(rows, "history"), shares)
    return score_lists(batch, weights, functions)


def _checked(returned: object, name: str, shape: tuple[int, ...]) -> np.ndarray:
    """Returns the rounded values of a reward, after checking that there is one finite number per list."""
    values = _as_floats(returned, name, shape)
    if values.shape != shape:
        raise ValueError(
            f"reward {name!r} returned values of the shape {values.shape}; return one value per list, of the shape "
            f"{shape}"
        )
    if not np.isfinite(values).all():
        row, number = np.argwhere(~np.isfinite(values))[0]
        raise ValueError(
            f"reward {name!r} returned {values[row, number]} for list {number} of row {row}; return finite numbers"
        )
    return values.round(DECIMALS)


def _as_floats(returned: object, name: str, shape: tuple[int, ...]) -> np.ndarray:
    """Converts the return value of a reward function to a float64 array. Tensors may be on any device.

    Raises `ValueError` if the values are not numbers.
    """
    try:
        if isinstance(returned, Tensor) and not returned.is_meta:
            returned = returned.detach().cpu().double()  # numpy has no bfloat16
        values = np.asarray(returned)
        if returned is None or values.dtype.kind not in "biufO":  # refuses texts, complex numbers and dates
            raise TypeError(values.dtype)
        return values.astype(np.float64)
    except (TypeError, ValueError, OverflowError) as error:  # numpy raises these if it cannot convert the values
        raise ValueError(
            f"reward {name!r} returned {_in_words(returned)}, which is not an array of real numbers; return one "
            f"value per list, of the shape {shape}"
        ) from error


def _in_words(value: object) -> str:
    """Returns the `repr` of a value on one line, shortened to 60 characters."""
    text = " ".join(repr(value).split())
    return text if len(text) <= 60 else f"{text[:57]}..."


def ndcg(batch: ListBatch) -> np.ndarray:
    """Computes NDCG over all ranks of each list, `(B, G)`."""
    return metrics.ndcg(*batch.hits, batch.lists.shape[-1])


def recall(batch: ListBatch) -> np.ndarray:
    """Computes the share of the user's targets that each list contains, `(B, G)`."""
    return metrics.recall(*batch.hits, batch.lists.shape[-1])


def hit(batch: ListBatch) -> np.ndarray:
    """Returns 1 for lists that contain a target, else 0, `(B, G)`."""
    return metrics.hit(batch.hits[0], batch.lists.shape[-1])


def ild(batch: ListBatch) -> np.ndarray:
    """Computes intra-list diversity, `(B, G)`: the mean cosine distance over the pairs of items in a list.

    The vector of an item contains the fractions of the item that belong to each group.
    """
    return metrics.ild(batch.lists, batch.groups)


def mgu(batch: ListBatch) -> np.ndarray:
    """Computes -MGU, `(B, G)`. MGU is |share of a group in the list - share of the group in the user's history|,
    averaged over the groups.

    Reconstruction: BLADE's paper scores each list by MGU, but gives no formula for single lists. As an evaluation
    metric, MGU compares all recommendations with all histories. Here, a list is compared with its user's history.
    """
    # Make one row of items per list, without missing ranks. The rows are in the order of a flattened (B, G) array.
    present = batch.lists >= 0
    listed = Ragged.from_lengths(batch.lists[present], present.sum(-1).ravel())
    recommended = _group_shares(listed, batch.groups).reshape(*batch.lists.shape[:2], batch.groups.shape[1])
    consumed = _group_shares(batch.histories, batch.groups)  # (B, num_groups)
    return -metrics.mgu(recommended, consumed[:, None])


def _group_shares(items: Ragged, shares: np.ndarray) -> np.ndarray:
    """Computes the share of each group in each row of items, `(len(items), num_groups)`.

    All shares are 0 for rows without items, and for rows in which no item belongs to any group.
    """
    mass = np.zeros((len(items), shares.shape[1]))

    # Process the rows in blocks, to bound the memory of the gathered shares.
    step = max(1, metrics.GATHERED_VALUES // max(1, shares.shape[1] * int(items.lengths.max(initial=0))))
    for start in range(0, len(items), step):
        part = items.take(np.arange(start, min(start + step, len(items))))
        filled = np.flatnonzero(part.lengths)  # `reduceat` would return a wrong value for an empty row
        mass[start + filled] = np.add.reduceat(shares[part.values], part.offsets[filled], axis=0, dtype=np.float64)
    shares_of_rows: np.ndarray = mass / np.maximum(mass.sum(-1, keepdims=True), np.finfo(np.float64).tiny)
    return shares_of_rows


REWARDS: dict[str, ListReward] = {"ndcg": ndcg, "recall": recall, "hit": hit, "ild": ild, "mgu": mgu}
