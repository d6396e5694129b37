"""Priors from counts of the training split: how often each item was chosen, and which items followed which."""

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

EPS = 0.5
PRIOR_ITEMS = 1000


@dataclass(frozen=True, eq=False)
class PopularityPrior:
    """Weighs items by how often they were chosen in training: `(count + 1) / (total + num_items)`.

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
        """Counts each training interaction once. `num_items` defaults to the largest index in `train` plus 1."""
        return cls(TrainInteractions.from_split(train, num_items).popularity, strength)

    def weights(self, histories: Ragged) -> ItemWeights:
        """Returns the same weights for all histories."""
        return ItemWeights(shared=self._shared, strength=self.strength)

    @cached_property
    def _shared(self) -> Tensor:
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
    """Weighs items by how often they followed the items of the history in training.

    The weight of item j is the sum of two terms. The first is the score of j after this history, as in
    [`TransitionCounts`], divided by the sum of the scores of all items. The second is
    `eps * (count(j) + 1) / (total + num_items)`, so every item has a positive weight. If no recent item of the history
    was followed by another item in training, the first term is 0 for all items.

    Args:
        counts (`TransitionCounts`): What followed what in training.
        popularity (`np.ndarray` of shape `(num_items,)`): How often each item was chosen in training.
        strength (`float`, *optional*, defaults to `1.0`): Exponent of the weights.
        eps (`float`, *optional*, defaults to `0.5`): Weight of the popularity.
        prior_items (`int`, *optional*, defaults to `1000`): Maximum number of items per history whose first term is
            used, those with the largest ones. For all other items, it is 0.
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
        """Counts each training transition once.

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
        return torch.from_numpy(self.eps * popularity_shares(self.popularity)).float()

    def save(self, path: str | Path) -> None:
        """Writes the prior to a safetensors file, atomically."""
        numbers = {"strength": self.strength, "eps": self.eps, "prior_items": self.prior_items}
        tensors = {"popularity": self.popularity.astype(np.int64), **count_tensors(self.counts)}
        write_prior_file(path, self.kind, tensors, {**numbers, "max_history": self.counts.max_history})

    @classmethod
    def load(cls, path: str | Path) -> TransitionPrior:
        """Reads what `save` wrote. Raises `ValueError` if the file is damaged or contains another kind of prior."""
        content = read_prior_file(path)
        check_kind(path, content, cls.kind)
        with content.explained():
            return cls(
                read_counts(content),
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
    """Sums the scores per row and item, divides them by the sum of the row, and keeps the largest shares.

    Args:
        rows, items, scores (`np.ndarray` of shape `(N,)`): The row, the item and the score of each entry.
        num_rows: B, the number of rows.
        most: Maximum number of items per row. Of items with equal shares, those with lower indices are kept.

    Returns:
        The items, padded with -1, and their shares in float32, padded with 0. Both have the shape `(B, S)`. The shares
        of a row add up to 1 if the row has entries and no more than `most` items.
    """
    # 1. Sum the scores, and convert them to shares.
    width = int(items.max(initial=0)) + 1
    keys, totals = sum_by_key(rows * width + items, scores)
    keys, totals = keys[totals > 0], totals[totals > 0]
    row, item = np.divmod(keys, width)
    shares = totals / np.bincount(row, totals, num_rows)[row]

    # 2. Keep the largest shares of each row.
    order = np.lexsort((item, -shares, row))
    lengths = np.bincount(row, minlength=num_rows)
    order = order[within(lengths) < most]
    kept = np.minimum(lengths, most)
    padded_items = Ragged.from_lengths(item[order], kept).padded()
    padded_shares = Ragged.from_lengths(shares[order], kept).padded(fill=0.0)
    return torch.from_numpy(padded_items), torch.from_numpy(padded_shares).float()
