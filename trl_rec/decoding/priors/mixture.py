"""A prior that mixes several counts of the training split, with weights that are fitted to the validation split.

The counts of [`TransitionPrior`] fix how much the distance and the order of two items matter, and how much older items
of a history matter. Here, several counts differ in these choices, see `COUNTS`. The mixture weights maximise the
likelihood of the targets of the validation split. They are found by expectation maximisation, which converges to the
best weights because the log-likelihood is concave in them. With a dozen weights and thousands of targets, the fit does
not depend much on single users.

A count of items of the same group was tried too. Its weight was 0.000 on MovieLens-100k, so it was left out.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, NamedTuple

import numpy as np
import torch
from torch import Tensor

from trl_rec.data.dataset import at_most, split_rows
from trl_rec.data.item_rows import item_rows
from trl_rec.data.train_interactions import TrainInteractions
from trl_rec.data.transitions import TransitionCounts
from trl_rec.decoding.priors.counted import PRIOR_ITEMS, largest_shares, popularity_shares
from trl_rec.decoding.priors.files import (
    check_counts,
    check_kind,
    count_tensors,
    read_counts,
    read_prior_file,
    write_prior_file,
)
from trl_rec.decoding.weights import ItemWeights
from trl_rec.ragged import Ragged
from trl_rec.ranges import COUNT, NOT_NEGATIVE, POSITIVE


if TYPE_CHECKING:
    from datasets import Dataset


class Count(NamedTuple):
    """Which pairs of training interactions are counted, and how the counts are applied to a history.

    A pair predicts one of its items, the target, from the other one.

    Args:
        nearest, farthest (`int`): Smallest and largest distance between the two items of a pair.
        forward (`bool`): Whether the later item of a pair is predicted from the earlier one.
        backward (`bool`): Whether the earlier item of a pair is predicted from the later one.
        far (`float`): A pair at the distance d counts 1 / d ** far.
        rare (`float`): A pair counts 1 / (n + 1) ** rare, where n is how often the target was chosen in training.
        max_history (`int`): Maximum number of history items to use, the newest first.
        decay (`float`): How fast older items of the history lose weight, as in [`TransitionCounts`].
    """

    nearest: int
    farthest: int
    forward: bool = True
    backward: bool = False
    far: float = 1.0
    rare: float = 0.0
    max_history: int = 10
    decay: float = 1.0


COUNTS = {
    "counter": Count(1, 3),  # as in TransitionPrior
    "after the last": Count(1, 3, max_history=1),
    "next to the last": Count(1, 1, max_history=1),
    "next": Count(1, 1),
    "second": Count(2, 2),
    "third": Count(3, 3),
    "before": Count(1, 3, forward=False, backward=True),
    "near": Count(1, 10, backward=True),
    "near, long history": Count(1, 10, backward=True, max_history=50),
    "together": Count(1, 10, backward=True, far=0, max_history=50, decay=0.5),
    "similar": Count(1, 10, backward=True, far=0, rare=0.5, max_history=50, decay=0.5),
}
POPULARITY = "popularity"
# Per count and item of a history, only this number of targets is kept, those with the largest shares. This limits the
# time per history.
MOST_FOLLOWERS = 200
MOST_TARGETS = 10_000  # maximum number of validation targets that the weights are fitted to, approximately
BATCH = 256  # number of histories that are scored together
NUM_STEPS = 1000
TOLERANCE = 1e-9  # change of the mean log-likelihood per step at which the fit ends


@dataclass(frozen=True, eq=False)
class MixturePrior:
    """Weighs items by a mixture of counts. The mixture weights are fitted to the validation split.

    Each count gives every item a share after a history: its score as in [`TransitionCounts`], divided by the sum of
    the scores of all items. The weight of an item is the sum of its shares, each times the mixture weight of its
    count, plus `eps * (n + 1) / (total + num_items)`. Here `n` is how often the item was chosen in training, and
    `total` is the sum of `n` over all items.

    Args:
        counts (`Mapping[str, TransitionCounts]`): The counts by name.
        shares (`Mapping[str, float]`): The mixture weight of each count. The fit makes them add up to 1, apart from
            weights below 0.0001, which it leaves out.
        popularity (`np.ndarray` of shape `(num_items,)`): How often each item was chosen in training.
        eps (`float`): Weight of the popularity. The fit chooses it.
        strength (`float`, *optional*, defaults to `1.0`): Exponent of the weights.
        prior_items (`int`, *optional*, defaults to `1000`): Maximum number of items per history whose shares are used.
            These are the items with the largest weighted sum of shares. The shares of all other items are set to 0.
        exclude_history (`bool`, *optional*, defaults to `True`): Whether the shares of items of the history are 0.
    """

    kind: ClassVar[str] = "mixture"

    counts: Mapping[str, TransitionCounts]
    shares: Mapping[str, float]
    popularity: np.ndarray
    eps: float
    strength: float = 1.0
    prior_items: int = PRIOR_ITEMS
    exclude_history: bool = True

    def __post_init__(self) -> None:
        check_counts("popularity", self.popularity)
        if set(self.counts) != set(self.shares) or not self.counts:
            raise ValueError("counts and shares must have the same names, at least one")
        for name, counts in self.counts.items():
            counts.check(len(self.popularity))
            NOT_NEGATIVE.check(f"the weight of {name}", self.shares[name])
        NOT_NEGATIVE.check("strength", self.strength)
        POSITIVE.check("eps", self.eps)
        COUNT.check("prior_items", self.prior_items)

    @classmethod
    def fit(
        cls,
        train: Dataset,
        validation: Dataset,
        num_items: int | None = None,
        *,
        strength: float = 1.0,
        prior_items: int = PRIOR_ITEMS,
        exclude_history: bool = True,
    ) -> MixturePrior:
        """Makes the counts from the training split, and fits the mixture weights to the validation split. An
        interaction that is part of several rows is counted once.

        Args:
            train: The training split.
            validation: The validation split. If it has more than `MOST_TARGETS` targets, about this number is used.
            num_items (*optional*): Size of the catalogue. Defaults to the largest index in `train` plus 1.
            strength, prior_items, exclude_history (*optional*): As in the class.
        """
        interactions = TrainInteractions.from_split(train, num_items)
        counts = {name: _make_count(interactions, count) for name, count in COUNTS.items()}
        rows = fitting_rows(validation, exclude_history=exclude_history)
        likelihoods = target_shares(
            counts,
            interactions.popularity,
            item_rows(split_rows(rows, "history"), "validation", interactions.num_items),
            item_rows(split_rows(rows, "targets"), "validation", interactions.num_items),
            exclude_history,
        )
        fitted = fit_mixture(likelihoods)  # (len(counts) + 1,), the popularity last

        # Scale the weights so that the weights of the counts add up to 1. The weight of the popularity is then `eps`.
        # If no count gives any target a share, all counts get the same weight.
        known = float(fitted[:-1].sum())
        if known < 1e-6:
            fitted[:-1] = 1e-6 / len(counts)
            known = 1e-6
        eps = max(float(fitted[-1]), 1e-6) / known
        shares = dict(zip(counts, (fitted[:-1] / known).tolist(), strict=True))
        kept = {name: share for name, share in shares.items() if share >= 1e-4}
        return cls(
            {name: counts[name] for name in kept},
            kept,
            interactions.popularity,
            eps,
            strength,
            prior_items,
            exclude_history,
        )

    def weights(self, histories: Ragged) -> ItemWeights:
        """Returns the weights of all items after each history."""
        histories = item_rows(histories, "histories", len(self.popularity))
        parts = [
            _entries(counts, histories, len(self.popularity), self.exclude_history, self.shares[name])
            for name, counts in self.counts.items()
        ]
        rows, items, scores = (np.concatenate(part) for part in zip(*parts, strict=True))
        items_kept, values = largest_shares(rows, items, scores, len(histories), self.prior_items)

        # `largest_shares` divided the scores of each history by their sum, which is below 1 if a count gives no item a
        # score. Multiply by the sum again, because the other counts must not gain weight in this case.
        sums = torch.from_numpy(np.bincount(rows, scores, len(histories))).float().unsqueeze(1)
        return ItemWeights(shared=self._shared, items=items_kept, values=values * sums, strength=self.strength)

    @cached_property
    def _shared(self) -> Tensor:
        return torch.from_numpy(self.eps * popularity_shares(self.popularity)).float()

    def save(self, path: str | Path) -> None:
        """Writes the prior to a safetensors file, atomically."""
        arrays = {"popularity": self.popularity.astype(np.int64)}
        for number, counts in enumerate(self.counts.values()):
            arrays |= count_tensors(counts, f"{number}.")
        settings = {
            "strength": self.strength,
            "eps": self.eps,
            "prior_items": self.prior_items,
            "exclude_history": self.exclude_history,
            "counts": [
                {
                    "name": name,
                    "share": self.shares[name],
                    "max_history": counts.max_history,
                    "decay": counts.decay,
                }
                for name, counts in self.counts.items()
            ],
        }
        write_prior_file(path, self.kind, arrays, settings)

    @classmethod
    def load(cls, path: str | Path) -> MixturePrior:
        """Reads what `save` wrote. Raises `ValueError` if the file is damaged or contains another kind of prior."""
        content = read_prior_file(path)
        check_kind(path, content, cls.kind)
        with content.explained():
            described = content.settings.get("counts")
            if not isinstance(described, list) or not all(isinstance(one, dict) for one in described):
                raise ValueError("its setting 'counts' does not describe the counts")
            if not isinstance(content.settings.get("exclude_history"), bool):
                raise ValueError("exclude_history must be true or false")
            counts = {
                str(one.get("name")): read_counts(content, f"{number}.", one.get("max_history"), one.get("decay"))
                for number, one in enumerate(described)
            }
            return cls(
                counts,
                {str(one.get("name")): one.get("share") for one in described},
                content.array("popularity", np.int64, 1),
                content.number("eps"),
                content.number("strength"),
                content.whole("prior_items"),
                content.settings["exclude_history"],
            )


def fitting_rows(validation: Dataset, *, exclude_history: bool = True) -> Dataset:
    """Returns the validation rows that the mixture weights are fitted to, with at most about `MOST_TARGETS` targets.

    Raises `ValueError` if these rows have no target or, with `exclude_history`, no target outside of its history.
    """
    # 1. Select the rows, spread evenly over the split.
    num_targets = max(len(split_rows(validation, "targets").values), 1)
    rows = at_most(max(1, MOST_TARGETS * len(validation) // num_targets), validation)

    # 2. Check that there is a target to fit.
    targets = split_rows(rows, "targets")
    remains = np.ones(len(targets.values), bool)
    if exclude_history:
        histories = split_rows(rows, "history")
        width = int(max(histories.values.max(initial=0), targets.values.max(initial=0))) + 1
        known = histories.row_ids * width + histories.values
        remains = ~np.isin(targets.row_ids * width + targets.values, known)
    if not remains.any():
        raise ValueError(
            "a mixture cannot be fitted, because the validation split has no target outside of its history; choose "
            "another prior, such as 'transition'"
        )
    return rows


def target_shares(
    counts: Mapping[str, TransitionCounts],
    popularity: np.ndarray,
    histories: Ragged,
    targets: Ragged,
    exclude_history: bool = True,
) -> np.ndarray:
    """Returns the share that each count gives to each target, `(num_targets, len(counts) + 1)`.

    The last column contains the shares by popularity. With `exclude_history`, targets that are in their own history
    are left out, and items of the history have no share.
    """
    # 1. Make one row per target.
    num_items = len(popularity)
    histories = histories.take(targets.row_ids)
    wanted = targets.values
    if exclude_history:
        keys = histories.row_ids * num_items + histories.values
        is_new = ~np.isin(np.arange(len(wanted)) * num_items + wanted, keys)
        histories = histories.take(np.flatnonzero(is_new))
        wanted = wanted[is_new]

    # 2. Look up the share of each target.
    shares = np.zeros((len(wanted), len(counts) + 1))
    for start in range(0, len(wanted), BATCH):
        block = np.arange(start, min(start + BATCH, len(wanted)))
        some = histories.take(block)
        for column, one in enumerate(counts.values()):
            rows, items, scores = _entries(one, some, num_items, exclude_history)
            is_target = items == wanted[block][rows]
            shares[block, column] = np.bincount(rows[is_target], scores[is_target], len(block))

    # 3. Compute the share by popularity among the items that are not excluded.
    of_items = popularity_shares(popularity)
    left = np.ones(len(wanted))
    if exclude_history:
        distinct = np.unique(histories.row_ids * num_items + histories.values)
        left -= np.bincount(distinct // num_items, of_items[distinct % num_items], len(wanted))
    shares[:, -1] = of_items[wanted] / left
    return shares


def fit_mixture(likelihoods: np.ndarray) -> np.ndarray:
    """Returns the mixture weights `(M,)` that maximise the mean of `log(likelihoods @ weights)`.

    Args:
        likelihoods (`np.ndarray` of shape `(N, M)`): The probability of each observation under each component.
            Each observation must have a positive probability under at least one component.
    """
    weights = np.full(likelihoods.shape[1], 1 / likelihoods.shape[1])
    before = -np.inf
    for _ in range(NUM_STEPS):
        parts = likelihoods * weights
        totals = parts.sum(1, keepdims=True)  # (N, 1)
        now = float(np.log(totals).mean()) if len(totals) else 0.0
        if now - before < TOLERANCE:
            break
        before = now
        weights = (parts / totals).mean(0)
    return weights


def _make_count(interactions: TrainInteractions, count: Count) -> TransitionCounts:
    """Makes the counts that `count` describes."""
    first, second, distance = interactions.pairs(count.farthest)
    is_far = distance >= count.nearest
    first, second, distance = first[is_far], second[is_far], distance[is_far]
    forward = [(first, second)] if count.forward else []
    backward = [(second, first)] if count.backward else []
    sources, targets = (np.concatenate(part) for part in zip(*forward, *backward, strict=True))
    weights = np.tile(1 / distance**count.far, len(forward) + len(backward))
    weights = weights / (interactions.popularity[targets] + 1) ** count.rare
    counts = TransitionCounts.from_pairs(
        sources, targets, weights, interactions.num_items, max_history=count.max_history, decay=count.decay
    )
    return counts.largest(MOST_FOLLOWERS)


def _entries(
    counts: TransitionCounts, histories: Ragged, num_items: int, exclude_history: bool, share: float = 1.0
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns the items that a count gives a score, `(N,)` each: their rows, their indices and their scores.

    The scores of a row add up to `share`. A row contains an item once for each item of the history that it followed.
    """
    followers, scores = counts.followers(histories)
    rows = followers.row_ids
    items = followers.values
    if exclude_history:
        is_new = ~np.isin(rows * num_items + items, histories.row_ids * num_items + histories.values)
        rows, items, scores = rows[is_new], items[is_new], scores[is_new]
    totals = np.bincount(rows, scores, len(histories))
    return rows, items, share * scores / totals[rows]
