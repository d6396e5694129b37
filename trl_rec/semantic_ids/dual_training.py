"""How the two towers are trained: first to find each other, then to be written in codes.

    L = alpha U2I + gamma (RQ of users + RQ of items)

Stage 1, (alpha, gamma) = (1, 0): the SC vectors are aligned until held-out items beat no more of the others. Then
k-means over all aligned vectors starts the codebooks. Stage 2, (.1, 1): all is trained until the inputs are no longer
rebuilt better. Reconstruction: between the two, encoder and decoder learn to rebuild without codes, as k-means over
the output of an encoder that nothing has trained would start from its noise.
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

from trl_rec.semantic_ids.dual_inputs import DualInputs
from trl_rec.semantic_ids.dual_model import Tower, u2i_loss


logger = logging.getLogger(__name__)
CHANCES = 60  # other items among which a held-out one has to be found
MOST_ASKED = 10_000  # held-out pairs that are looked at
LEAST_GAIN = 0.001  # of a quantity that is to improve, relative to it
PARTS = 8192  # rows that are computed at a time where nothing is trained


class HeldOut(NamedTuple):
    """How well users find what they chose among `CHANCES` other items, drawn by popularity, that they did not choose.

    Args:
        accuracy (`float`): The share of pairs whose item comes first.
        chance (`float`): The same for towers that know nothing: others that were drawn twice, or chosen as well, count
            less.
        won (`float`): The mean share of the others that the item comes before; half would by chance. It jumps about
            less than `accuracy` where few pairs are held out, and unlike a loss does not ask how sure the towers are.
        pairs (`int`): How many there are.
    """

    accuracy: float
    chance: float
    won: float
    pairs: int


@dataclass
class DualTraining:
    """One training of the towers.

    Args:
        inputs (`DualInputs`): What they read.
        item_tower (`Tower`): The items'.
        user_tower (`Tower`, *optional*): The users'; without it there is nothing to align.
        align (`bool`): Whether the U2I loss counts.
        alpha (`float`): Its weight in stage 2.
        learning_rate, batch_size, max_epochs, patience: Of both stages.
        without_behaviour (`float`): Share of items whose behaviour is left out in training, so that a new item can do
            without.
        generator (`torch.Generator`): Of all draws.
        curve (`list`): What was measured after each epoch.
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
        """Trains the towers, which end as they were at their best."""
        if self.align:
            self._train("aligning", self._alignment, lambda told: told.get("u2i_won", -told["loss"]))
        self._train("rebuilding", self._autoencoding, lambda told: -told["loss"])
        self._start_codebooks()
        self._train("quantising", self._quantisation, lambda told: -told["error"], after=self._revive)

    def held_out(self) -> HeldOut | None:
        """How well users find what they chose; None where nothing is held out, or users have no tower."""
        if self.user_tower is None or not self.inputs.held_out.shape[1]:
            return None
        users, items, chosen = self._asked
        ours, theirs = self.fused_users(users), self.fused_items(items.flatten()).view(*items.shape, -1)
        scores = torch.einsum("bs,bks->bk", ours, theirs).masked_fill(chosen, -torch.inf)
        is_before, is_other = scores[:, :1] > scores[:, 1:], ~chosen[:, 1:]
        won = (is_before & is_other).sum(1) / is_other.sum(1).clamp(min=1)
        others = items[:, 1:].masked_fill(chosen[:, 1:], -1).sort(1).values
        rivals = (others[:, :1] >= 0).sum(1) + ((others.diff(dim=1) > 0) & (others[:, 1:] >= 0)).sum(1)
        chance = (1 / (1 + rivals)).mean()
        return HeldOut(float(is_before.all(1).float().mean()), float(chance), float(won.mean()), len(users))

    @cached_property
    def _asked(self) -> tuple[Tensor, Tensor, Tensor]:
        """Users `(M,)`, at most `MOST_ASKED`; items `(M, 1 + CHANCES)`, the own one first; which others were chosen as
        well."""
        pairs = self.inputs.held_out
        users, own = pairs[:, torch.linspace(0, pairs.shape[1] - 1, min(pairs.shape[1], MOST_ASKED)).round().long()]
        drawing = torch.Generator().manual_seed(0)  # the same others each time
        ends = self.inputs.popularity.cumsum(0)
        drawn = torch.randint(int(ends[-1]), (len(users), CHANCES), generator=drawing)
        items = torch.cat([own.unsqueeze(1), torch.searchsorted(ends, drawn, right=True)], 1)
        chosen = torch.cat([self.inputs.chose(one, row) for one, row in zip(users.split(1), items, strict=True)])
        chosen[:, 0] = False
        return users, items, chosen

    @torch.no_grad()
    def fused_items(self, rows: Tensor) -> Tensor:
        """SC vectors of items."""
        return torch.cat([self.item_tower.fuse(self.inputs.items(part)) for part in rows.split(PARTS)])

    @torch.no_grad()
    def fused_users(self, rows: Tensor) -> Tensor:
        """SC vectors of users."""
        assert self.user_tower is not None
        return torch.cat([self.user_tower.fuse(self.inputs.users(part)) for part in rows.split(PARTS)])

    @torch.no_grad()
    def latents(self, tower: Tower, fused: Tensor) -> Tensor:
        """What is quantised, of SC vectors."""
        return torch.cat([tower.encode(part) for part in fused.split(PARTS)])

    @torch.no_grad()
    def lost(self) -> float:
        """The share of the squared length of the items' inputs that is lost between input and codes."""
        error, whole = 0.0, 0.0
        for part in self.inputs.known.nonzero().squeeze(1).split(PARTS):
            wanted = self.inputs.items(part)
            error += float(self.item_tower.rebuild(self.item_tower.fuse(wanted), wanted).error.sum())
            whole += float(wanted.square().sum())
        return error / (whole or 1.0)

    def _train(
        self,
        name: str,
        losses: Callable[[Tensor], dict[str, Tensor]],
        worth: Callable[[dict[str, float]], float],
        after: Callable[[], None] | None = None,
    ) -> None:
        """Epochs until `worth` no longer grows; the weights of the best are kept."""
        towers = self._towers()
        optimizer = torch.optim.AdamW(towers.parameters(), lr=self.learning_rate, weight_decay=1e-4)
        best, best_worth, stalled = deepcopy(towers.state_dict()), -math.inf, 0
        progress = tqdm(range(1, self.max_epochs + 1), desc=name, unit="epoch")
        for epoch in progress:
            told = self._epoch(losses, optimizer) | self._measured()
            self.curve.append(
                {"stage": name, "epoch": epoch, **{part: round(value, 5) for part, value in told.items()}}
            )
            if not all(map(math.isfinite, told.values())):
                raise ValueError(
                    f"{name}: not all of {told} is finite in epoch {epoch}; lower learning_rate, or look at the texts"
                )
            progress.set_postfix({part: f"{value:.3f}" for part, value in told.items()})
            if worth(told) > best_worth + (LEAST_GAIN * abs(best_worth) if epoch > 1 else 0):
                best, best_worth, stalled = deepcopy(towers.state_dict()), worth(told), 0
            else:
                stalled += 1
            if stalled == self.patience:
                break
            if after is not None:
                after()
        towers.load_state_dict(best)
        logger.info("%s: %d epochs, %s", name, epoch, ", ".join(f"{part} {value:.3f}" for part, value in told.items()))

    def _epoch(
        self, losses: Callable[[Tensor], dict[str, Tensor]], optimizer: torch.optim.Optimizer
    ) -> dict[str, float]:
        """One pass over the pairs; the mean of each part of the loss over its batches."""
        order = torch.randperm(self.inputs.pairs.shape[1], generator=self.generator)
        batches, sums = order.split(self.batch_size), dict[str, float]()
        for batch in batches:
            parts = losses(batch)
            optimizer.zero_grad()
            parts["loss"].backward()
            optimizer.step()
            for name, part in parts.items():
                sums[name] = sums.get(name, 0.0) + float(part.detach())
        return {name: total / len(batches) for name, total in sums.items()}

    def _alignment(self, batch: Tensor) -> dict[str, Tensor]:
        loss = self._u2i(*self.inputs.pairs[:, batch]).mean()
        return {"loss": loss}

    def _autoencoding(self, batch: Tensor) -> dict[str, Tensor]:
        """Encoder and decoder alone: SC stays aligned."""
        loss = torch.zeros(())
        for tower, fused, wanted in self._unique(batch):
            loss = loss + tower.autoencode(fused.detach() if self.align else fused, wanted).mean()
        return {"loss": loss}

    def _quantisation(self, batch: Tensor) -> dict[str, Tensor]:
        loss, error = torch.zeros(()), torch.zeros(())
        for tower, fused, wanted in self._unique(batch):
            rebuilt = tower.rebuild(fused, wanted)
            loss, error = loss + rebuilt.loss.mean(), error + rebuilt.error.mean()
        if self.align:
            loss = loss + self.alpha * self._u2i(*self.inputs.pairs[:, batch]).mean()
        return {"loss": loss, "error": error}

    def _u2i(self, users: Tensor, items: Tensor) -> Tensor:
        """The item chosen is left out of its user's pool: held-out ones are not in it either."""
        assert self.user_tower is not None
        ours = self.user_tower.fuse(self.inputs.users(users, without=items))
        return u2i_loss(ours, self.item_tower.fuse(self._item_inputs(items)), self.inputs.chose(users, items))

    def _unique(self, batch: Tensor) -> Iterator[tuple[Tower, Tensor, Tensor]]:
        """Each tower, SC vectors of the batch's different items or users, and what they should tell of. Whoever is
        popular counts once."""
        users, items = (side.unique() for side in self.inputs.pairs[:, batch])
        yield self.item_tower, self.item_tower.fuse(self._item_inputs(items)), self.inputs.items(items)
        if self.user_tower is not None:
            inputs = self.inputs.users(users)
            yield self.user_tower, self.user_tower.fuse(inputs), inputs

    def _item_inputs(self, items: Tensor) -> Tensor:
        keep = torch.rand(len(items), generator=self.generator) >= self.without_behaviour
        return self.inputs.items(items, keep)

    def _measured(self) -> dict[str, float]:
        told = self.held_out() if self.align else None
        return {} if told is None else {"u2i_accuracy": told.accuracy, "u2i_won": told.won}

    def _towers(self) -> nn.ModuleList:
        return nn.ModuleList([self.item_tower, *([] if self.user_tower is None else [self.user_tower])])

    def _latents(self) -> Iterator[tuple[Tower, Tensor]]:
        """Of all that training tells of."""
        with torch.no_grad():
            known = self.inputs.known.nonzero().squeeze(1)
            yield self.item_tower, self.latents(self.item_tower, self.fused_items(known))
            if self.user_tower is not None:
                users = self.inputs.mask.any(1).nonzero().squeeze(1)
                yield self.user_tower, self.latents(self.user_tower, self.fused_users(users))

    def _start_codebooks(self) -> None:
        for tower, latents in self._latents():
            tower.quantize.start(latents, generator=self.generator)

    def _revive(self) -> None:
        for tower, latents in self._latents():
            tower.quantize.revive(latents, generator=self.generator)
