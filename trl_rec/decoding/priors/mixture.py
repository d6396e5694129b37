"""Defines `MixturePrior`, which mixes several tables of item pairs that are counted in the training split. The weights
of the mixture are fitted to the validation split.

[`TransitionPrior`] has one table, with one fixed rule for how much the distance and the order of two items matter, and
how much older items of a history matter. `MixturePrior` mixes several tables, each with its own rule. Such a table is
called a count here. `mixture_counts.py` lists the counts, `similar_titles.py` adds a count that compares titles, and
`mixture_fit.py` fits the weights.

A count of pairs of items with the same group, such as a genre, was tried too. Its weight was 0.000 on MovieLens-100k,
so it was left out.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

import numpy as np
import torch
from torch import Tensor

from trl_rec.data.dataset import split_rows
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
from trl_rec.decoding.priors.mixture_counts import MOST_FOLLOWERS, make_counts, partial_shares
from trl_rec.decoding.priors.mixture_fit import fit_mixture, fitting_rows, target_shares
from trl_rec.decoding.priors.similar_titles import similar_titles
from trl_rec.decoding.weights import ItemWeights
from trl_rec.ragged import Ragged
from trl_rec.ranges import COUNT, NOT_NEGATIVE, POSITIVE


if TYPE_CHECKING:
    from datasets import Dataset

NEGLIGIBLE = 1e-4  # counts with a lower mixture weight are left out
SMALLEST = 1e-6  # lower bound of the popularity's weight, and of the sum of the counts' weights, before scaling


@dataclass(frozen=True, eq=False)
class MixturePrior:
    """A prior that mixes several counts, with mixture weights that are fitted to the validation split.

    Each count gives every item a share after a history: the item's score as in [`TransitionCounts`], divided by the
    sum of the scores of all items. The weight of an item is the sum of its shares, each multiplied by the mixture
    weight of its count, plus `eps * (n + 1) / (total + num_items)`. Here `n` is the number of interactions with the
    item in the training split, and `total` is the sum of `n` over all items.

    Args:
        counts (`Mapping[str, TransitionCounts]`): The counts by name.
        shares (`Mapping[str, float]`): The mixture weight of each count, by name. The weights of [`fit`] add up to
            about 1: they are scaled to the sum 1, and then counts with a weight below 0.0001 are left out.
        popularity (`np.ndarray` of shape `(num_items,)`): Number of interactions with each item in the
            training split.
        eps (`float`): Weight of the popularity. [`fit`] determines it.
        strength (`float`, *optional*, defaults to `1.0`): Exponent of the item weights.
        prior_items (`int`, *optional*, defaults to `1000`): Maximum number of items per history that keep their
            shares. The items with the largest weighted sums of shares keep them; the shares of all other items are set
            to 0.
        exclude_history (`bool`, *optional*, defaults to `True`): Whether the shares of items of the history are 0. If
            True, the sum of the scores leaves these items out as well.
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
            raise ValueError("counts and shares must have the same names, and at least one name")
        for name, counts in self.counts.items():
            counts.check(len(self.popularity))
            NOT_NEGATIVE.check(f"the weight of {name!r}", self.shares[name])
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
        titles: Sequence[str] | None = None,
        strength: float = 1.0,
        prior_items: int = PRIOR_ITEMS,
        exclude_history: bool = True,
    ) -> MixturePrior:
        """Makes the counts from the training split, and fits the mixture weights to the validation split.

        An interaction that is part of several rows is counted once. With `titles`, there is one more count, in which
        items with similar titles count as if they followed each other (see [`similar_titles`]).

        Args:
            train: The training split.
            validation: The validation split. At most about 10,000 of its targets are used.
            num_items (*optional*): Size of the catalogue. Defaults to the largest index in `train` plus 1.
            titles (*optional*): The title of each item of the catalogue.
            strength, prior_items, exclude_history (*optional*): As in the class.
        """
        # 1. Make the counts, and fit a weight for each of them and for the popularity.
        interactions = TrainInteractions.from_split(train, num_items)
        counts = make_counts(interactions)
        if titles is not None:
            if len(titles) != interactions.num_items:
                raise ValueError(f"there are {len(titles)} titles for a catalogue of {interactions.num_items} items")
            counts["similar titles"] = similar_titles(titles, interactions.popularity, MOST_FOLLOWERS)
        rows = fitting_rows(validation, exclude_history=exclude_history)
        likelihoods = target_shares(
            counts,
            interactions.popularity,
            item_rows(split_rows(rows, "history"), "validation", interactions.num_items),
            item_rows(split_rows(rows, "targets"), "validation", interactions.num_items),
            exclude_history,
        )
        fitted = fit_mixture(likelihoods)  # (len(counts) + 1,), the popularity last

        # 2. Scale the weights so that the weights of the counts add up to 1. The weight of the popularity is then
        # `eps`. If the fit leaves almost no weight to the counts (for example, because no count gives any target a
        # share), all counts get the same weight.
        of_counts = fitted[:-1]
        total = float(of_counts.sum())
        if total < SMALLEST:
            of_counts = np.full(len(counts), SMALLEST / len(counts))
            total = SMALLEST
        eps = max(float(fitted[-1]), SMALLEST) / total
        shares = dict(zip(counts, (of_counts / total).tolist(), strict=True))

        # 3. Leave out the counts with a negligible weight.
        kept = {name: share for name, share in shares.items() if share >= NEGLIGIBLE}
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
            partial_shares(counts, histories, len(self.popularity), self.exclude_history, self.shares[name])
            for name, counts in self.counts.items()
        ]
        rows, items, shares = (np.concatenate(part) for part in zip(*parts, strict=True))
        kept, values = largest_shares(rows, items, shares, len(histories), self.prior_items)  # (B, S) each

        # `largest_shares` divided the shares of each history by their sum, which is below 1 if a count gives no item a
        # share. Undo the division, because the other counts must not gain weight in this case.
        sums = torch.from_numpy(np.bincount(rows, shares, len(histories))).float().unsqueeze(1)
        return ItemWeights(shared=self._shared, items=kept, values=values * sums, strength=self.strength)

    @cached_property
    def _shared(self) -> Tensor:
        """The part of each item's weight that comes from its popularity, `(num_items,)`."""
        return torch.from_numpy(self.eps * popularity_shares(self.popularity)).float()

    def save(self, path: str | Path) -> None:
        """Writes the prior to a safetensors file, atomically."""
        # The arrays of a count are named after its position in the setting `counts`.
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
            # 1. Check the settings that are not numbers.
            described = content.settings.get("counts")
            if not isinstance(described, list) or not all(isinstance(one, dict) for one in described):
                raise ValueError("the setting 'counts' must be a list of mappings")
            if not isinstance(content.settings.get("exclude_history"), bool):
                raise ValueError("exclude_history must be true or false")

            # 2. Read the counts, and make the prior.
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
