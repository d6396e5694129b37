"""Trains the item and user towers (see `tower`): first aligns users with the items they chose, then learns the codes.

    L = alpha U2I + gamma (RQ of users + RQ of items)

U2I is the alignment loss (`u2i_loss`). RQ is the error of reconstructing a tower's inputs from their codes, plus the
loss of the quantiser (`Tower.rebuild`). Training has three phases:

- Aligning is Align3GR's stage 1, with alpha = 1 and gamma = 0. The SC vectors (see `tower`) are aligned until the
  ranks of held-out items no longer improve.
- Rebuilding trains encoder and decoder to reconstruct the inputs without quantisation. Afterwards, k-means over the
  encoded SC vectors initialises the codebooks.
- Quantising is Align3GR's stage 2, with gamma = 1, and alpha = 0.1 by default. All weights are trained until the
  reconstruction from the codes no longer improves.

Reconstruction: no source describes the second phase. The phase is needed because the outputs of an untrained encoder
would be a meaningless initialisation for the codebooks.

Legend: M held-out pairs of a user and an item that are evaluated, S width of the SC vectors.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator
from copy import deepcopy
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from trl_rec.semantic_ids.dual.inputs import DualInputs
from trl_rec.semantic_ids.dual.tower import Tower, u2i_loss


logger = logging.getLogger(__name__)

NUM_OTHERS = 60  # number of other items that a held-out item is ranked against
MOST_HELD_OUT = 10_000  # maximum number of held-out pairs that are evaluated
LEAST_GAIN = 0.001  # smallest rise over the best score that counts as an improvement, as a fraction of the best score
CHUNK = 8192  # number of items or users whose vectors are computed at a time outside training


class HeldOut(NamedTuple):
    """How well held-out items rank for their users.

    Each held-out item is ranked against `NUM_OTHERS` other items, which are drawn with probabilities proportional to
    their popularity. Of the drawn items, those that the user also chose are ignored.

    Args:
        accuracy (`float`): The share of pairs in which the held-out item ranks first.
        chance (`float`): The accuracy of a random ranking. It may exceed 1 / (1 + `NUM_OTHERS`), because some of the
            other items may be ignored or drawn twice.
        won (`float`): The share of the other items that rank below the held-out item, averaged over pairs. A random
            ranking gives 0.5. With few pairs, `won` fluctuates less than `accuracy`. Unlike a loss, `won` does not
            depend on how confident the towers are.
        pairs (`int`): M, the number of pairs that were evaluated.
    """

    accuracy: float
    chance: float
    won: float
    pairs: int


@dataclass
class DualTraining:
    """Trains and evaluates the towers.

    Args:
        inputs (`DualInputs`): The training data.
        item_tower (`Tower`): The tower of the items.
        user_tower (`Tower`, *optional*): The tower of the users. It is required if `align` is True. Without it, users
            get no codes.
        align (`bool`): Whether to use the U2I loss.
        alpha (`float`): Weight of the U2I loss in the third phase.
        learning_rate (`float`): Learning rate of AdamW.
        batch_size (`int`): Number of pairs per batch.
        max_epochs (`int`): Maximum number of epochs for each phase of the training.
        patience (`int`): Number of epochs without improvement after which a phase ends.
        without_behaviour (`float`): Probability that an item's behaviour vector (computed from interactions) is
            replaced with zeros during training, so that a new item can get an ID from its text alone.
        generator (`torch.Generator`): Generator for all random draws of the training.
        curve (`list`): The measurements after each epoch.
    """

    inputs: DualInputs
    item_tower: Tower
    user_tower: Tower | None
    align: bool
    alpha: float
    learning_rate: float
    batch_size: int
    max_epochs: int
    patience: int
    without_behaviour: float
    generator: torch.Generator
    curve: list[dict[str, Any]] = field(default_factory=list)

    def run(self) -> None:
        """Trains the towers in three phases, or in the last two of them if `align` is False.

        Each phase ends with the weights of its best epoch.
        """
        if self.align:
            # Without held-out pairs, the best epoch is the epoch with the lowest loss.
            self._train("aligning", self._alignment, lambda measured: measured.get("u2i_won", -measured["loss"]))
        self._train("rebuilding", self._autoencoding, lambda measured: -measured["loss"])
        self._start_codebooks()
        self._train("quantising", self._quantisation, lambda measured: -measured["error"], after=self._revive)

    def held_out(self) -> HeldOut | None:
        """Evaluates the towers on the held-out pairs. Returns None if there are no such pairs or no user tower."""
        if self.user_tower is None or not self.inputs.held_out.shape[1]:
            return None
        users, items, is_chosen = self._evaluation_set

        # 1. Score the held-out item (first column) and the other items.
        user_vectors = self.fused_users(users)  # (M, S)
        item_vectors = self.fused_items(items.flatten()).view(*items.shape, -1)  # (M, 1 + NUM_OTHERS, S)
        scores = torch.einsum("bs,bks->bk", user_vectors, item_vectors).masked_fill(is_chosen, -torch.inf)

        # 2. Compute the share of the other items that rank below the held-out item.
        ranks_below = scores[:, :1] > scores[:, 1:]
        counts = ~is_chosen[:, 1:]
        won = (ranks_below & counts).sum(1) / counts.sum(1).clamp(min=1)

        # 3. Compute the accuracy of a random ranking from the number of distinct other items. Ignored items are
        # replaced with -1. After sorting, only the items that differ from their predecessor are counted.
        others = items[:, 1:].masked_fill(is_chosen[:, 1:], -1).sort(1).values
        is_distinct = (others.diff(dim=1) > 0) & (others[:, 1:] >= 0)
        rivals = (others[:, :1] >= 0).sum(1) + is_distinct.sum(1)
        chance = (1 / (1 + rivals)).mean()

        return HeldOut(
            accuracy=float(ranks_below.all(1).float().mean()),
            chance=float(chance),
            won=float(won.mean()),
            pairs=len(users),
        )

    @cached_property
    def _evaluation_set(self) -> tuple[Tensor, Tensor, Tensor]:
        """The users and items that `held_out` evaluates, drawn once so that all epochs use the same items.

        Returns:
            The users `(M,)` of at most `MOST_HELD_OUT` evenly spaced pairs; the items `(M, 1 + NUM_OTHERS)`, with the
            held-out item in the first column; and a mask of the same shape, which is True for the other items that the
            user also chose.
        """
        pairs = self.inputs.held_out
        sample = torch.linspace(0, pairs.shape[1] - 1, min(pairs.shape[1], MOST_HELD_OUT)).round().long()
        users, own = pairs[:, sample]

        # A uniform draw from all interactions draws items in proportion to their popularity.
        generator = torch.Generator().manual_seed(0)
        ends = self.inputs.popularity.cumsum(0)
        interactions = torch.randint(int(ends[-1]), (len(users), NUM_OTHERS), generator=generator)
        items = torch.cat([own.unsqueeze(1), torch.searchsorted(ends, interactions, right=True)], 1)

        # Call `chose` once per row, because a single call for all rows would compare each user with the items of all
        # M rows.
        rows = [self.inputs.chose(user, row) for user, row in zip(users.split(1), items, strict=True)]
        is_chosen = torch.cat(rows)
        is_chosen[:, 0] = False
        return users, items, is_chosen

    @torch.no_grad()
    def fused_items(self, rows: Tensor) -> Tensor:
        """Returns the SC vectors of items, `(len(rows), S)`."""
        return torch.cat([self.item_tower.fuse(self.inputs.items(part)) for part in rows.split(CHUNK)])

    @torch.no_grad()
    def fused_users(self, rows: Tensor) -> Tensor:
        """Returns the SC vectors of users, `(len(rows), S)`."""
        assert self.user_tower is not None
        return torch.cat([self.user_tower.fuse(self.inputs.users(part)) for part in rows.split(CHUNK)])

    @torch.no_grad()
    def latents(self, tower: Tower, fused: Tensor) -> Tensor:
        """Returns the vectors that a tower quantises, `(N, code_width)`, from SC vectors `(N, S)`."""
        return torch.cat([tower.encode(part) for part in fused.split(CHUNK)])

    @torch.no_grad()
    def rebuilding_error(self) -> float:
        """Returns the relative error of reconstructing the inputs of the items that occur in the training split.

        This is the squared error, divided by the squared norm of the inputs.
        """
        error = 0.0
        total = 0.0
        for part in self.inputs.known.nonzero().squeeze(1).split(CHUNK):
            inputs = self.inputs.items(part)
            error += float(self.item_tower.rebuild(self.item_tower.fuse(inputs), inputs).error.sum())
            total += float(inputs.square().sum())
        return error / (total or 1.0)

    def _train(
        self,
        name: str,
        losses: Callable[[Tensor], dict[str, Tensor]],
        score: Callable[[dict[str, float]], float],
        after: Callable[[], None] | None = None,
    ) -> None:
        """Trains until the score stops improving, then restores the weights of the best epoch.

        Args:
            name: Name of this phase in the curve and the log.
            losses: Maps a batch, given as indices of pairs, to its losses. `"loss"` is minimised; other entries are
                only measured.
            score: Maps the measurements of an epoch to a score; higher is better.
            after: Called after each epoch, except after an epoch that ends the phase early.
        """
        towers = self._towers()
        optimizer = torch.optim.AdamW(towers.parameters(), lr=self.learning_rate, weight_decay=1e-4)

        best_weights = deepcopy(towers.state_dict())
        best_score = -math.inf
        stalled = 0
        progress = tqdm(range(1, self.max_epochs + 1), desc=name, unit="epoch")
        for epoch in progress:
            # 1. Train and measure.
            measured = self._epoch(losses, optimizer) | self._alignment_measures()
            rounded = {measure: round(value, 5) for measure, value in measured.items()}
            self.curve.append({"stage": name, "epoch": epoch, **rounded})
            if not all(map(math.isfinite, measured.values())):
                raise ValueError(
                    f"{name}: the loss or a metric of epoch {epoch} is not finite ({measured}); lower "
                    "learning_rate, or check the vectors of the text encoder"
                )
            progress.set_postfix({measure: f"{value:.3f}" for measure, value in measured.items()})

            # 2. Keep the best weights.
            least = best_score + (LEAST_GAIN * abs(best_score) if epoch > 1 else 0)
            if score(measured) > least:
                best_weights = deepcopy(towers.state_dict())
                best_score = score(measured)
                stalled = 0
            else:
                stalled += 1

            # 3. Stop early, or prepare the next epoch.
            if stalled == self.patience:
                break
            if after is not None:
                after()

        towers.load_state_dict(best_weights)
        summary = ", ".join(f"{measure} {value:.3f}" for measure, value in measured.items())
        logger.info("%s: ended after %d epochs; in the last epoch: %s", name, epoch, summary)

    def _epoch(
        self, losses: Callable[[Tensor], dict[str, Tensor]], optimizer: torch.optim.Optimizer
    ) -> dict[str, float]:
        """Trains for one pass over the pairs. Returns each loss, averaged over the batches."""
        order = torch.randperm(self.inputs.pairs.shape[1], generator=self.generator)
        batches = order.split(self.batch_size)

        sums: dict[str, float] = {}
        for batch in batches:
            parts = losses(batch)
            optimizer.zero_grad()
            parts["loss"].backward()
            optimizer.step()
            for name, part in parts.items():
                sums[name] = sums.get(name, 0.0) + float(part.detach())
        return {name: total / len(batches) for name, total in sums.items()}

    def _alignment(self, batch: Tensor) -> dict[str, Tensor]:
        """Computes the loss of the first phase, aligning."""
        loss = self._u2i(*self.inputs.pairs[:, batch]).mean()
        return {"loss": loss}

    def _autoencoding(self, batch: Tensor) -> dict[str, Tensor]:
        """Computes the loss of the second phase, rebuilding.

        The loss trains encoders and decoders. It also trains the layers that compute SC vectors, unless the first
        phase has trained these layers.
        """
        loss = torch.zeros(())
        for tower, fused, inputs in self._distinct(batch):
            loss = loss + tower.autoencode(fused.detach() if self.align else fused, inputs).mean()
        return {"loss": loss}

    def _quantisation(self, batch: Tensor) -> dict[str, Tensor]:
        """Computes the loss and the reconstruction error of the third phase, quantising."""
        loss = torch.zeros(())
        error = torch.zeros(())
        for tower, fused, inputs in self._distinct(batch):
            rebuilt = tower.rebuild(fused, inputs)
            loss = loss + rebuilt.loss.mean()
            error = error + rebuilt.error.mean()
        if self.align:
            loss = loss + self.alpha * self._u2i(*self.inputs.pairs[:, batch]).mean()
        return {"loss": loss, "error": error}

    def _u2i(self, users: Tensor, items: Tensor) -> Tensor:
        """Computes the alignment loss of pairs."""
        assert self.user_tower is not None
        # Leave the pair's item out of the user's behaviour vector, which pools the items that the user chose. Training
        # then matches the evaluation, where the held-out item is left out too.
        user_vectors = self.user_tower.fuse(self.inputs.users(users, without=items))
        item_vectors = self.item_tower.fuse(self._item_inputs(items))
        return u2i_loss(user_vectors, item_vectors, self.inputs.chose(users, items))

    def _distinct(self, batch: Tensor) -> Iterator[tuple[Tower, Tensor, Tensor]]:
        """Yields each tower, the SC vectors of the batch's distinct items or users, and the inputs to reconstruct.

        Because duplicates are removed, popular items do not dominate the loss.
        """
        users, items = (side.unique() for side in self.inputs.pairs[:, batch])
        yield self.item_tower, self.item_tower.fuse(self._item_inputs(items)), self.inputs.items(items)
        if self.user_tower is not None:
            inputs = self.inputs.users(users)
            yield self.user_tower, self.user_tower.fuse(inputs), inputs

    def _item_inputs(self, items: Tensor) -> Tensor:
        """Returns the inputs of items for training, in which the behaviour of some items is replaced with zeros."""
        keep = torch.rand(len(items), generator=self.generator) >= self.without_behaviour
        return self.inputs.items(items, keep)

    def _alignment_measures(self) -> dict[str, float]:
        held_out = self.held_out() if self.align else None
        return {} if held_out is None else {"u2i_accuracy": held_out.accuracy, "u2i_won": held_out.won}

    def _towers(self) -> nn.ModuleList:
        return nn.ModuleList([self.item_tower, *([] if self.user_tower is None else [self.user_tower])])

    def _latents(self) -> Iterator[tuple[Tower, Tensor]]:
        """Yields each tower with the vectors that it quantises, for all items or users in the training split."""
        with torch.no_grad():
            items = self.inputs.known.nonzero().squeeze(1)
            yield self.item_tower, self.latents(self.item_tower, self.fused_items(items))
            if self.user_tower is not None:
                users = self.inputs.mask.any(1).nonzero().squeeze(1)
                yield self.user_tower, self.latents(self.user_tower, self.fused_users(users))

    def _start_codebooks(self) -> None:
        for tower, latents in self._latents():
            tower.quantize.start(latents, generator=self.generator)

    def _revive(self) -> None:
        for tower, latents in self._latents():
            tower.quantize.revive(latents, generator=self.generator)
