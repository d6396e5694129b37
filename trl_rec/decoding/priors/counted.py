"""Defines two priors made from counts of the training split. `PopularityPrior` counts how often each item was chosen,
and `TransitionPrior` counts how often one item followed another."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

import numpy as np
import torch
from torch import Tensor

from trl_rec.data.item_rows import item_rows
from trl_rec.data.train_interactions import TrainInteractions
from trl_rec.data.transitions import TransitionCounts, sum_by_key
from trl_rec.decoding.priors.files import (
    check_counts,
    check_kind,
    count_tensors,
    read_counts,
    read_prior_file,
    write_prior_file,
)
from trl_rec.decoding.weights import ItemWeights
from trl_rec.ragged import Ragged, within
from trl_rec.ranges import COUNT, NOT_NEGATIVE, POSITIVE


if TYPE_CHECKING:
    from datasets import Dataset

EPS = 0.5  # default weight of the popularity
PRIOR_ITEMS = 1000  # default of the argument `prior_items`


@dataclass(frozen=True, eq=False)
class PopularityPrior:
    """A prior that prefers popular items. The weight of an item is `(count + 1) / (total + num_items)`, where `count`
    is how often the item was chosen in training, and `total` is the sum of the counts of all items.

    Args:
        popularity (`np.ndarray` of shape `(num_items,)`): How often each item was chosen.
        strength (`float`, *optional*, defaults to `1.0`): Exponent of the weights.
    """

    kind: ClassVar[str] = "popularity"

    popularity: np.ndarray
    strength: float = 1.0

    def __post_init__(self) -> None:
        check_counts("popularity", self.popularity)
        NOT_NEGATIVE.check("strength", self.strength)

    @classmethod
    def fit(cls, train: Dataset, num_items: int | None = None, *, strength: float = 1.0) -> PopularityPrior:
        """Counts how often each item was chosen in the training split. An interaction that is part of several rows is
        counted once. `num_items` defaults to the largest item index in `train` plus 1."""
        return cls(TrainInteractions.from_split(train, num_items).popularity, strength)

    def weights(self, histories: Ragged) -> ItemWeights:
        """Returns the same weights for all histories."""
        return ItemWeights(shared=self._shared, strength=self.strength)

    @cached_property
    def _shared(self) -> Tensor:
        """The weight of each item, `(num_items,)`."""
        return torch.from_numpy(popularity_shares(self.popularity)).float()

    def save(self, path: str | Path) -> None:
        """Writes the prior to a safetensors file, atomically."""
        write_prior_file(
            path, self.kind, {"popularity": self.popularity.astype(np.int64)}, {"strength": self.strength}
        )

    @classmethod
    def load(cls, path: str | Path) -> PopularityPrior:
        """Reads what `save` wrote. Raises `ValueError` if the file is damaged or contains another kind of prior."""
        content = read_prior_file(path)
        check_kind(path, content, cls.kind)
        with content.explained():
            return cls(content.array("popularity", np.int64, 1), content.number("strength"))


@dataclass(frozen=True, eq=False)
class TransitionPrior:
    """A prior that prefers items that often followed the items of the history in training.

    The weight of item j is the sum of two terms. The first is the score of j after the history, as in
    [`TransitionCounts`], divided by the sum of the scores of all items. The second is `eps` times the weight of j in
    [`PopularityPrior`], so every item has a positive weight. If no recent item of the history was followed by another
    item in training, the first term is 0 for all items.

    Args:
        counts (`TransitionCounts`): How often each item followed each other item in training.
        popularity (`np.ndarray` of shape `(num_items,)`): How often each item was chosen in training.
        strength (`float`, *optional*, defaults to `1.0`): Exponent of the weights.
        eps (`float`, *optional*, defaults to `0.5`): Weight of the popularity.
        prior_items (`int`, *optional*, defaults to `1000`): Maximum number of items per history that keep their first
            term. The largest first terms are kept, and all others are set to 0.
    """

    kind: ClassVar[str] = "transition"

    counts: TransitionCounts
    popularity: np.ndarray
    strength: float = 1.0
    eps: float = EPS
    prior_items: int = PRIOR_ITEMS

    def __post_init__(self) -> None:
        check_counts("popularity", self.popularity)
        self.counts.check(len(self.popularity))
        NOT_NEGATIVE.check("strength", self.strength)
        POSITIVE.check("eps", self.eps)
        COUNT.check("prior_items", self.prior_items)

    @classmethod
    def fit(
        cls,
        train: Dataset,
        num_items: int | None = None,
        *,
        window: int = 3,
        max_history: int = 10,
        strength: float = 1.0,
        eps: float = EPS,
        prior_items: int = PRIOR_ITEMS,
    ) -> TransitionPrior:
        """Counts the transitions in the training split. A transition that is part of several rows is counted once.

        Args:
            train: The training split.
            num_items (*optional*): Size of the catalogue. Defaults to the largest index in `train` plus 1.
            window, max_history (*optional*): As in [`TransitionCounts.from_interactions`].
            strength, eps, prior_items (*optional*): As in the class.
        """
        interactions = TrainInteractions.from_split(train, num_items)
        counts = TransitionCounts.from_interactions(interactions, window=window, max_history=max_history)
        return cls(counts, interactions.popularity, strength, eps, prior_items)

    def weights(self, histories: Ragged) -> ItemWeights:
        """Returns the weights of all items after each history."""
        histories = item_rows(histories, "histories", len(self.popularity))
        followers, scores = self.counts.followers(histories)
        items, values = largest_shares(followers.row_ids, followers.values, scores, len(histories), self.prior_items)
        return ItemWeights(shared=self._shared, items=items, values=values, strength=self.strength)

    @cached_property
    def _shared(self) -> Tensor:
        """The second term of each item's weight, `(num_items,)`. It does not depend on the history."""
        return torch.from_numpy(self.eps * popularity_shares(self.popularity)).float()

    def save(self, path: str | Path) -> None:
        """Writes the prior to a safetensors file, atomically."""
        settings = {
            "strength": self.strength,
            "eps": self.eps,
            "prior_items": self.prior_items,
            "max_history": self.counts.max_history,
            "decay": self.counts.decay,
        }
        tensors = {"popularity": self.popularity.astype(np.int64), **count_tensors(self.counts)}
        write_prior_file(path, self.kind, tensors, settings)

    @classmethod
    def load(cls, path: str | Path) -> TransitionPrior:
        """Reads what `save` wrote. Raises `ValueError` if the file is damaged or contains another kind of prior."""
        content = read_prior_file(path)
        check_kind(path, content, cls.kind)
        with content.explained():
            return cls(
                read_counts(content, "", content.whole("max_history"), content.settings.get("decay", 1.0)),
                content.array("popularity", np.int64, 1),
                content.number("strength"),
                content.number("eps"),
                content.whole("prior_items"),
            )


def popularity_shares(popularity: np.ndarray) -> np.ndarray:
    """Returns `(count + 1) / (total + num_items)` for each item, `(num_items,)`. The shares add up to 1."""
    shares: np.ndarray = (popularity.astype(np.int64) + 1) / (popularity.sum() + len(popularity))
    return shares


def largest_shares(
    rows: np.ndarray, items: np.ndarray, scores: np.ndarray, num_rows: int, most: int
) -> tuple[Tensor, Tensor]:
    """Sums the scores per row and item, divides the sums by the total of their row, and keeps the largest shares.

    Args:
        rows, items, scores (`np.ndarray` of shape `(N,)`): The row, the item and the score of each entry.
        num_rows: B, the number of rows.
        most: Maximum number of items per row. Of items with equal shares, those with lower indices are kept.

    Returns:
        The items, padded with -1, and their shares in float32, padded with 0. Both have the shape `(B, S)`, where S is
        the largest number of items that a row keeps. The kept shares are not rescaled, so they add up to less than 1
        in a row with more than `most` items.
    """
    # 1. Sum the scores of each item in a row, and divide the sums by their total. Items with the sum 0 are dropped.
    width = int(items.max(initial=0)) + 1
    keys, sums = sum_by_key(rows * width + items, scores)
    is_positive = sums > 0
    keys = keys[is_positive]
    sums = sums[is_positive]
    row, item = np.divmod(keys, width)
    shares = sums / np.bincount(row, sums, num_rows)[row]

    # 2. Keep the largest shares of each row.
    order = np.lexsort((item, -shares, row))
    lengths = np.bincount(row, minlength=num_rows)
    order = order[within(lengths) < most]
    num_kept = np.minimum(lengths, most)

    # 3. Pad the rows.
    padded_items = Ragged.from_lengths(item[order], num_kept).padded()
    padded_shares = Ragged.from_lengths(shares[order], num_kept).padded(fill=0.0)
    return torch.from_numpy(padded_items), torch.from_numpy(padded_shares).float()
