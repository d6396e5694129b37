"""Computes the training data of the item and user towers: text vectors, behaviour vectors, and user-item pairs.

The towers are two models (see `tower`). They compute the codes of the semantic IDs of items and users.

All interactions come from the training split. For every fifth user, the last training target is held out, unless it is
the user's only target. The held-out targets are used to measure how well the towers match users with items. They are
excluded from the collaborative vectors (the behaviour vectors of items), the user profiles (the texts of users), the
training pairs, and the items that are pooled into the behaviour vector of a user.

Legend: I items, U users, T items in the longest history, P training pairs, H held-out pairs, W width of tower inputs.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import pyarrow as pa
import torch
from datasets import Dataset
from torch import Tensor

from trl_rec.data.dataset import RecDataset, check_is_train, split_rows, split_users
from trl_rec.data.profiles import item_texts, user_profiles
from trl_rec.ragged import Ragged
from trl_rec.semantic_ids.collaborative import collaborative_vectors, pooled
from trl_rec.semantic_ids.cooccurrence import popularity, training_sequences
from trl_rec.semantic_ids.item_vectors import cooccurrence_vectors
from trl_rec.semantic_ids.text_encoders import TextEncoder, text_vectors


NEWEST = 50  # maximum number of training items that are pooled per user
EVERY = 5  # an item is held out for one user in EVERY
MOST_SCALED = 100_000  # maximum number of users from which mean and scale of the pooled vectors are computed


@dataclass(frozen=True, eq=False)
class Scaling:
    """Standardises vectors: subtracts `mean` and divides by `scale`.

    Args:
        mean (`torch.Tensor` of shape `(width,)`): The mean vector.
        scale (`torch.Tensor`, a scalar): The root mean square norm of the centred vectors.
    """

    mean: Tensor
    scale: Tensor

    @classmethod
    def of(cls, vectors: Tensor) -> Scaling:
        """Returns the scaling that gives these vectors `(N, width)` mean 0 and mean squared norm 1."""
        mean = vectors.mean(0)
        return cls(mean, (vectors - mean).square().sum(1).mean().sqrt().clamp(min=1e-6))

    def __call__(self, vectors: Tensor) -> Tensor:
        return (vectors - self.mean) / self.scale


@dataclass(frozen=True, eq=False)
class DualInputs:
    """The training data of the towers. If texts or behaviour are switched off (see the argument `signals` of
    [`dual_inputs`]), their vectors have width 0.

    Args:
        item_text (`torch.Tensor` of shape `(I, text_width)`): Scaled vectors of the items' texts.
        user_text (`torch.Tensor` of shape `(U, text_width)`): Scaled vectors of the users' texts.
        behaviour (`torch.Tensor` of shape `(I, width)`): Collaborative vectors of the items, unscaled.
        known (`torch.Tensor` of shape `(I,)`): True for items that occur in the training split.
        scales (`dict`): The scalings of `"item_text"` (missing if texts are switched off), `"item_behaviour"` and
            `"user_behaviour"`.
        histories (`torch.Tensor` of shape `(U, T)`): The newest training items of each user, padded with 0.
        mask (`torch.Tensor` of shape `(U, T)`): False for padding in `histories`.
        pairs (`torch.Tensor` of shape `(2, P)`): Pairs of a user and an item that the user chose, without duplicates.
        held_out (`torch.Tensor` of shape `(2, H)`): Held-out pairs of a user and an item. These interactions are
            excluded from all other fields.
        popularity (`torch.Tensor` of shape `(I,)`): Number of interactions with each item in the training split.
    """

    item_text: Tensor
    user_text: Tensor
    behaviour: Tensor
    known: Tensor
    scales: dict[str, Scaling]
    histories: Tensor
    mask: Tensor
    pairs: Tensor
    held_out: Tensor
    popularity: Tensor

    def items(self, rows: Tensor, keep: Tensor | None = None) -> Tensor:
        """Returns the inputs of the item tower.

        Args:
            rows (`torch.Tensor` of shape `(N,)`): Item indices.
            keep (`torch.Tensor` of shape `(N,)`, *optional*): False for the items whose behaviour is replaced with
                zeros. By default, no behaviour is replaced.

        Returns:
            `torch.Tensor` of shape `(N, W)`: Text and behaviour. An item that does not occur in the training split
            always has zeros as its behaviour.
        """
        is_shown = self.known[rows] if keep is None else self.known[rows] & keep
        behaviour = self.scales["item_behaviour"](self.behaviour[rows]) * is_shown.unsqueeze(1)
        return torch.cat([self.item_text[rows], behaviour], 1)

    def users(self, rows: Tensor, without: Tensor | None = None) -> Tensor:
        """Returns the inputs of the user tower.

        Args:
            rows (`torch.Tensor` of shape `(N,)`): User indices.
            without (`torch.Tensor` of shape `(N,)`, *optional*): For each user, an item to exclude from the items
                whose behaviour is pooled.

        Returns:
            `torch.Tensor` of shape `(N, W)`: Text and pooled behaviour. If there is no item to pool, the behaviour is
            zeros.
        """
        mask = self.mask[rows]
        if without is not None:
            mask = mask & (self.histories[rows] != without.unsqueeze(1))
        behaviour = self.scales["user_behaviour"](pooled(self.behaviour, self.histories[rows], mask))
        return torch.cat([self.user_text[rows], behaviour * mask.any(1, keepdim=True)], 1)

    def chose(self, users: Tensor, items: Tensor) -> Tensor:
        """Returns whether each user chose each item in the training split, `(len(users), len(items))`.

        Held-out pairs count as chosen.
        """
        num_items = len(self.known)

        # 1. Assign a column to each distinct item of `items`. All other items get -1.
        distinct, place = items.unique(return_inverse=True)
        column = torch.full((num_items,), -1)
        column[distinct] = torch.arange(len(distinct))

        # 2. Look up all items that the users chose. The pairs are sorted, so the pairs of a user are adjacent.
        starts, ends = torch.searchsorted(self._sorted_pairs, torch.stack([users, users + 1]) * num_items)
        counts = ends - starts
        row = torch.arange(len(users)).repeat_interleave(counts)
        position = torch.arange(len(row)) - (counts.cumsum(0) - counts)[row]
        chosen = column[self._sorted_pairs[starts[row] + position] % num_items]

        # 3. Mark the chosen items that occur in `items`.
        is_chosen = torch.zeros(len(users), len(distinct), dtype=torch.bool)
        is_chosen[row[chosen >= 0], chosen[chosen >= 0]] = True
        return is_chosen[:, place]

    @cached_property
    def _sorted_pairs(self) -> Tensor:
        """All pairs, including held-out pairs, encoded as user * I + item and sorted."""
        pairs = torch.cat([self.pairs, self.held_out], 1)
        return (pairs[0] * len(self.known) + pairs[1]).sort().values


def dual_inputs(
    dataset: RecDataset,
    encoder: TextEncoder,
    *,
    signals: str,
    behaviour: str,
    width: int,
    item_template: str | None,
    seed: int,
) -> DualInputs:
    """Computes the training data of the towers.

    The vectors of texts are cached in the dataset folder, under `vectors`. With `behaviour="sequence"`, the
    collaborative vectors are cached there too.

    Args:
        dataset (`RecDataset`): The dataset.
        encoder (`TextEncoder`): Embeds texts.
        signals (`str`): What the towers read: `"text"`, `"behaviour"` or `"both"`.
        behaviour (`str`): How the collaborative vectors are computed: `"cooccurrence"` (from how often items occur
            near each other) or `"sequence"` (as the item embeddings of a small model that predicts the next item).
        width (`int`): Width of the collaborative vectors.
        item_template (`str`, *optional*): Template for the text of an item, as in [`item_texts`].
        seed (`int`): Seed for the collaborative vectors.
    """
    num_items = len(dataset.catalog)
    num_users = dataset.users.num_rows
    cache = dataset.path / "vectors"
    scales: dict[str, Scaling] = {}

    # 1. Hold out pairs before anything is computed from the training split.
    train, held_out = hold_out(dataset.train)

    # 2. Embed the texts. User profiles describe training items, so they are made without the held-out targets.
    item_text = torch.zeros(num_items, 0)
    user_text = torch.zeros(num_users, 0)
    if signals != "behaviour":
        item_text = text_vectors(item_texts(dataset.catalog, item_template), encoder, cache=cache)
        user_text = text_vectors(user_profiles(replace(dataset, train=train)), encoder, cache=cache)
        scales["item_text"] = Scaling.of(item_text)
        item_text = scales["item_text"](item_text)
        user_text = Scaling.of(user_text)(user_text)

    # 3. Compute the collaborative vectors of the items.
    vectors = torch.zeros(num_items, 0)
    if signals != "text" and behaviour == "sequence":
        vectors = collaborative_vectors(train, num_items, width=width, seed=seed, cache=cache)
    elif signals != "text":
        vectors = cooccurrence_vectors(train, num_items, width=width, seed=seed)
    counts = torch.from_numpy(popularity(train, num_items))
    scales["item_behaviour"] = Scaling.of(vectors[counts > 0])

    # 4. Collect the newest items of each user. The vectors of these items are pooled into the user's behaviour.
    chosen = _chosen_items(train, num_users)
    newest = chosen.tail(NEWEST)
    histories = torch.from_numpy(newest.padded(fill=0))  # (U, T)
    mask = torch.from_numpy(newest.padded() >= 0)
    scales["user_behaviour"] = _user_scaling(vectors, histories, mask)

    # 5. Collect the training pairs. A held-out pair that is also a training pair is not evaluated, because the towers
    # are trained on it.
    pairs = np.unique(chosen.row_ids * num_items + chosen.values)
    is_repeated = torch.isin(held_out[0] * num_items + held_out[1], torch.from_numpy(pairs))

    return DualInputs(
        item_text=item_text,
        user_text=user_text,
        behaviour=vectors,
        known=counts > 0,
        scales=scales,
        histories=histories,
        mask=mask,
        pairs=torch.from_numpy(np.stack(np.divmod(pairs, num_items))),
        held_out=held_out[:, ~is_repeated],
        popularity=counts,
    )


def _user_scaling(vectors: Tensor, histories: Tensor, mask: Tensor) -> Scaling:
    """Returns the scaling of pooled vectors.

    The scaling is computed from at most `MOST_SCALED` users, which are evenly spaced among the users that have items.
    """
    users = mask.any(1).nonzero().squeeze(1)
    users = users[torch.linspace(0, len(users) - 1, min(len(users), MOST_SCALED)).round().long()]
    return Scaling.of(pooled(vectors, histories[users], mask[users]))


def hold_out(train: Dataset, every: int = EVERY) -> tuple[Dataset, Tensor]:
    """Removes the last target of every fifth user from the training split, unless it is the user's only target.

    Args:
        train (`Dataset`): The training split. Any other split raises a ValueError.
        every (`int`, *optional*, defaults to `5`): A target is held out for one user in `every`.

    Returns:
        `tuple[Dataset, torch.Tensor]`: The training split without these targets, and the removed pairs of a user and
        an item, `(2, H)`.
    """
    check_is_train(train, "semantic IDs")
    targets = split_rows(train, "targets")
    users = split_users(train).astype(np.int64)

    # 1. Select the last row of every fifth user. Skip the user if this row has no target, or if its target is the only
    # target of the user.
    is_last_row = np.full(len(users), False)
    is_last_row[len(users) - 1 - np.unique(users[::-1], return_index=True)[1]] = True
    has_another = np.bincount(users, targets.lengths)[users] > 1
    is_chosen = is_last_row & (users % every == every - 1) & has_another & (targets.lengths > 0)
    rows = np.flatnonzero(is_chosen)
    items = targets.values[targets.offsets[1:][rows] - 1].astype(np.int64)

    # 2. Remove the last target of these rows.
    lengths = targets.lengths.copy()
    lengths[rows] -= 1
    shorter = targets.slice(0 * lengths, lengths).to_arrow()
    table = train.with_format("arrow")[:]
    table = table.set_column(train.column_names.index("targets"), "targets", pa.chunked_array([shorter]))
    return Dataset(table, split=train.split), torch.from_numpy(np.stack([users[rows], items]))


def _chosen_items(train: Dataset, num_users: int) -> Ragged:
    """Returns the training items of each user, oldest first; row `u` belongs to user `u`."""
    sequences, is_new = training_sequences(train)
    users = split_users(train).astype(np.int64)[sequences.row_ids[is_new]]
    order = np.argsort(users, kind="stable")
    items = sequences.values[is_new].astype(np.int64)[order]
    return Ragged.from_lengths(items, np.bincount(users, minlength=num_users))
