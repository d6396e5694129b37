"""Applies a prior of one catalogue to the items of another catalogue.

A prior refers to the items of the catalogue that it was fitted on. If items have been removed or added since then, or
have different indices, the prior still applies to the items that both catalogues contain.

Legend: I: items that can be recommended, O: items that the prior has weights for, F: filters (see [`ItemWeights`]),
N: items that can be recommended and that the prior has no weights for.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from trl_rec.decoding.priors.base import Prior
from trl_rec.decoding.weights import ItemWeights
from trl_rec.items.catalog import ItemCatalog
from trl_rec.ragged import Ragged


@dataclass(frozen=True, eq=False)
class MatchedPrior:
    """Gives weights to the items of a catalogue, from a prior that was fitted on another catalogue.

    Items that the prior has no weights for are ignored in histories. As recommendations, they get the smallest weight
    that is not 0, so the prior never excludes them. This weight is taken from the weights that are the same for all
    prompts (`ItemWeights.shared`). If there are none or all of them are 0, it is taken from the weights of each
    prompt. With a [`PopularityPrior`], for example, it is the weight of the item that was chosen least often.

    Args:
        prior (`Prior`): The prior.
        sources (`np.ndarray` of shape `(num_items,)`): For each item of the catalogue, its index in the prior; -1 if
            the prior has no weight for the item.
        num_recommendable (`int`): I. The first I items of the catalogue can be recommended; all others occur only
            in histories.
    """

    prior: Prior
    sources: np.ndarray
    num_recommendable: int

    def weights(self, histories: Ragged) -> ItemWeights:
        """Returns the weights of the items that can be recommended, after each history."""
        # 1. Compute the prior's weights after the known items of the histories.
        known = self.sources[histories.values]
        lengths = np.bincount(histories.row_ids[known >= 0], minlength=len(histories))
        weights = self.prior.weights(Ragged.from_lengths(known[known >= 0], lengths))

        # 2. Replace the prior's item indices in these weights by those of the catalogue.
        changes: dict[str, Any] = {}
        is_own = weights.items is not None and (weights.shared is None or not bool(weights.shared.any()))
        if weights.shared is not None:
            smallest = weights.shared.new_zeros(1) if is_own else smallest_positive(weights.shared)
            changes["shared"] = torch.cat([weights.shared, smallest])[self._known_to(weights.shared)]
        if weights.allowed is not None:
            allowed = torch.cat([weights.allowed, torch.ones_like(weights.allowed[:, :1])], 1)  # (F, O + 1)
            changes["allowed"] = allowed[:, self._known_to(weights.allowed)]
        if weights.items is not None:
            items = weights.items.long()
            targets = self._targets.to(items.device)
            inside = (items >= 0) & (items < len(targets))
            changes["items"] = torch.where(inside, targets[torch.where(inside, items, 0)], -1)

        # 3. If each prompt has weights of its own, and there are no shared weights or all of them are 0, add the items
        # that the prior has no weights for. For each prompt, they get the smallest positive weight of this prompt.
        if weights.items is not None and weights.values is not None and is_own:
            new = self._new.to(weights.items.device).expand(len(weights.items), -1)
            changes["items"] = torch.cat([changes["items"], new], 1)
            changes["values"] = torch.cat([weights.values, smallest_positive(weights.values).expand(new.shape)], 1)
        return replace(weights, **changes)

    def _known_to(self, table: Tensor) -> Tensor:
        """Returns `_sources` with -1 for items that a table of weights `(..., O)` does not contain."""
        sources = self._sources.to(table.device)
        return torch.where(sources < table.shape[-1], sources, -1)

    @cached_property
    def _sources(self) -> Tensor:
        """`(I,)`: for each item, its index in the prior; -1 if the prior lacks the item.

        An index of -1 selects the last entry of a table, which [`weights`] has appended for such items.
        """
        return torch.from_numpy(self.sources[: self.num_recommendable])

    @cached_property
    def _new(self) -> Tensor:
        """`(N,)`: the items that can be recommended, but for which the prior has no weights."""
        return torch.nonzero(self._sources < 0).squeeze(1)

    @cached_property
    def _targets(self) -> Tensor:
        """For each item of the prior, its index in the catalogue; -1 if the item cannot be recommended.

        The tensor ends with the last item of the prior that the catalogue contains.
        """
        targets = torch.full((int(self.sources.max(initial=-1)) + 1,), -1)
        known = torch.nonzero(self._sources >= 0).squeeze(1)
        targets[self._sources[known]] = known
        return targets


def smallest_positive(weights: Tensor) -> Tensor:
    """Returns the smallest positive weight along the last dimension, `(..., 1)`, or 1 if all weights are 0."""
    smallest = torch.where(weights > 0, weights, torch.inf).amin(-1, keepdim=True)
    return torch.where(smallest.isfinite(), smallest, 1)


def known_to(prior: Prior | None, catalog: ItemCatalog) -> Prior | None:
    """Wraps a prior that has weights only for items that can be recommended. The result ignores retired items in
    histories. If the catalogue has no retired items, the prior is returned unchanged."""
    if prior is None or not catalog.num_retired:
        return prior
    count = catalog.num_recommendable
    sources = np.concatenate([np.arange(count), np.full(catalog.num_retired, -1)])
    return MatchedPrior(prior, sources, count)
