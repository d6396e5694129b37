"""What the two towers read: text and behaviour of items and of users, and the pairs of both that training tells of.

All of it comes from the training split. The last training item of every fifth user is left out of everything (vectors,
pooling, profiles, pairs), so that it can tell how well users find what they choose.

Legend: I items, U users, T items of the longest history.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import pyarrow as pa
import torch
from datasets import Dataset
from torch import Tensor

from trl_rec.data.dataset import RecDataset, check_is_train, split_rows
from trl_rec.data.profiles import item_texts, user_profiles
from trl_rec.ragged import Ragged
from trl_rec.semantic_ids.collaborative import collaborative_vectors, pooled
from trl_rec.semantic_ids.cooccurrence import popularity, training_sequences
from trl_rec.semantic_ids.item_vectors import cooccurrence_vectors
from trl_rec.semantic_ids.text_encoders import TextEncoder, text_vectors


NEWEST = 50  # training items of a user that are pooled
EVERY = 5
MOST_SCALED = 100_000  # users that mean and scale are taken from


@dataclass(frozen=True, eq=False)
class Block:
    """Vectors brought to mean 0 and mean squared length 1.

    Args:
        mean (`Tensor` of shape `(width,)`): What was taken off.
        scale (`Tensor`, a scalar): What the rest was divided by.
    """

    mean: Tensor
    scale: Tensor

    @classmethod
    def of(cls, vectors: Tensor) -> Block:
        """The scale of these."""
        mean = vectors.mean(0)
        return cls(mean, (vectors - mean).square().sum(1).mean().sqrt().clamp(min=1e-6))

    def __call__(self, vectors: Tensor) -> Tensor:
        return (vectors - self.mean) / self.scale


@dataclass(frozen=True, eq=False)
class DualInputs:
    """The signals, which a side without one holds with a width of 0.

    Args:
        item_text (`Tensor` of shape `(I, ...)`), user_text (`Tensor` of shape `(U, ...)`): Scaled vectors of the
            texts.
        behaviour (`Tensor` of shape `(I, ...)`): Collaborative vectors as they were trained.
        known (`Tensor` of shape `(I,)`): The items that training tells of.
        scales (`dict`): The `Block` of `item_text`, of items' and of users' behaviour.
        histories (`Tensor` of shape `(U, T)`), mask (`Tensor` of shape `(U, T)`): The newest training items of each
            user.
        pairs (`Tensor` of shape `(2, number of pairs)`): Users and items they chose, each pair once.
        held_out (`Tensor` of shape `(2, number of pairs)`): Those that nothing above tells of.
        popularity (`Tensor` of shape `(I,)`): How often each item was chosen in training.
    """

    item_text: Tensor
    user_text: Tensor
    behaviour: Tensor
    known: Tensor
    scales: dict[str, Block]
    histories: Tensor
    mask: Tensor
    pairs: Tensor
    held_out: Tensor
    popularity: Tensor

    def items(self, rows: Tensor, keep: Tensor | None = None) -> Tensor:
        """`(len(rows), W)`; an item that training does not tell of, or that `keep` leaves out, has zeros for
        behaviour."""
        told = self.known[rows] if keep is None else self.known[rows] & keep
        behaviour = self.scales["item_behaviour"](self.behaviour[rows]) * told.unsqueeze(1)
        return torch.cat([self.item_text[rows], behaviour], 1)

    def users(self, rows: Tensor, without: Tensor | None = None) -> Tensor:
        """`(len(rows), W)`; `without` is an item that is left out of each user's pool."""
        mask = self.mask[rows]
        if without is not None:
            mask = mask & (self.histories[rows] != without.unsqueeze(1))
        behaviour = self.scales["user_behaviour"](pooled(self.behaviour, self.histories[rows], mask))
        return torch.cat([self.user_text[rows], behaviour * mask.any(1, keepdim=True)], 1)

    def chose(self, users: Tensor, items: Tensor) -> Tensor:
        """`(len(users), len(items))`: which of the items each user chose in training, the held-out pairs included."""
        distinct, place = items.unique(return_inverse=True)
        column = torch.full((len(self.known),), -1)
        column[distinct] = torch.arange(len(distinct))
        starts = torch.searchsorted(self._keys, torch.stack([users, users + 1]) * len(self.known))
        counts = starts[1] - starts[0]
        row = torch.arange(len(users)).repeat_interleave(counts)
        within = torch.arange(len(row)) - (counts.cumsum(0) - counts)[row]
        chosen = column[self._keys[starts[0][row] + within] % len(self.known)]
        found = torch.zeros(len(users), len(distinct), dtype=torch.bool)
        found[row[chosen >= 0], chosen[chosen >= 0]] = True
        return found[:, place]

    @cached_property
    def _keys(self) -> Tensor:
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
    """The towers' inputs for a dataset; vectors are kept in its folder `vectors`.

    Args:
        dataset: Where everything comes from.
        encoder: For the texts.
        signals: `"both"`, `"text"` or `"behaviour"`.
        behaviour: `"cooccurrence"` or `"sequence"`.
        width: Of the collaborative vectors.
        item_template: As in [`item_texts`].
        seed: Of the collaborative vectors.
    """
    num_items, cache = len(dataset.catalog), dataset.path / "vectors"
    train, held_out = hold_out(dataset.train)
    told = replace(dataset, train=train)
    empty = torch.zeros(num_items, 0), torch.zeros(dataset.users.num_rows, 0)
    texts, profiles, vectors, scales = *empty, empty[0], {}
    if signals != "behaviour":
        texts = text_vectors(item_texts(dataset.catalog, item_template), encoder, cache=cache)
        profiles = text_vectors(user_profiles(told), encoder, cache=cache)
        scales["item_text"] = Block.of(texts)
        texts, profiles = scales["item_text"](texts), Block.of(profiles)(profiles)
    if signals != "text" and behaviour == "sequence":
        vectors = collaborative_vectors(train, num_items, width=width, seed=seed, cache=cache)
    elif signals != "text":
        vectors = cooccurrence_vectors(train, num_items, width=width, seed=seed)
    chosen = _chosen(train, dataset.users.num_rows)
    newest = chosen.tail(NEWEST)
    histories, mask = torch.from_numpy(newest.padded(fill=0)), torch.from_numpy(newest.padded() >= 0)
    counts = torch.from_numpy(popularity(train, num_items))
    scales["item_behaviour"] = Block.of(vectors[counts > 0])
    asked = mask.any(1).nonzero().squeeze(1)
    asked = asked[torch.linspace(0, len(asked) - 1, min(len(asked), MOST_SCALED)).round().long()]
    scales["user_behaviour"] = Block.of(pooled(vectors, histories[asked], mask[asked]))
    pairs = np.unique(chosen.row_ids * num_items + chosen.values)
    again = torch.isin(held_out[0] * num_items + held_out[1], torch.from_numpy(pairs))  # chosen before as well
    return DualInputs(
        item_text=texts,
        user_text=profiles,
        behaviour=vectors,
        known=counts > 0,
        scales=scales,
        histories=histories,
        mask=mask,
        pairs=torch.from_numpy(np.stack(np.divmod(pairs, num_items))),
        held_out=held_out[:, ~again],
        popularity=counts,
    )


def hold_out(train: Dataset, every: int = EVERY) -> tuple[Dataset, Tensor]:
    """The training split without the last target of every so manieth user, and `(2, ...)`, the users and items taken
    out. A user's only target is left."""
    check_is_train(train, "a semantic ID")
    targets, users = split_rows(train, "targets"), train.with_format("numpy")[:]["user"].astype(np.int64)
    last = np.full(len(users), False)
    last[len(users) - 1 - np.unique(users[::-1], return_index=True)[1]] = True
    others = np.bincount(users, targets.lengths)[users] > 1
    taken = np.flatnonzero(last & (users % every == every - 1) & others & (targets.lengths > 0))
    items = targets.values[targets.offsets[1:][taken] - 1].astype(np.int64)
    kept = targets.lengths.copy()
    kept[taken] -= 1
    shorter = targets.slice(0 * kept, kept).to_arrow()
    place = train.column_names.index("targets")
    table = train.with_format("arrow")[:]
    table = table.set_column(place, "targets", pa.chunked_array([shorter]))
    return Dataset(table, split=train.split), torch.from_numpy(np.stack([users[taken], items]))


def _chosen(train: Dataset, num_users: int) -> Ragged:
    """Row `u`: the training items of user `u`, oldest first."""
    sequences, new = training_sequences(train)
    users = train.with_format("numpy")[:]["user"].astype(np.int64)[sequences.row_ids[new]]
    order = np.argsort(users, kind="stable")
    items = sequences.values[new].astype(np.int64)[order]
    return Ragged.from_lengths(items, np.bincount(users, minlength=num_users))
