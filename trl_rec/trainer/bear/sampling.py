"""Draws the negatives for `BearConfig.sampled_items`: the items that the loss compares a target with.

The draws depend only on the seed, the epoch and the row. Every target has exactly K negatives. They are drawn with
replacement from all items but the target, in proportion to a distribution q over all items. The targets of a row share
one stream of draws from q: the negatives of a target are the first K draws that differ from the target. Conditioned on
being different, a draw has the probability q / (1 - q(target)), so the negatives of each target have exactly this
distribution. Targets of different rows have independent negatives.

Legend: B rows, N target tokens, K negatives per target, L draws of the longest stream.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from datasets import Dataset
from torch import Tensor

from trl_rec.data.branches.structure import IGNORED
from trl_rec.models.sampled_columns import SampledColumns
from trl_rec.ragged import Ragged
from trl_rec.trainer.base.sampling import EpochCounter
from trl_rec.trainer.bear.collator import NextItemCollator


SampledFrom = Literal["uniform", "popularity"]


class ItemSampler:
    """Draws items from q, and computes the logarithm of q.

    With `"uniform"`, all items are equally likely. With `"popularity"`, the probability of an item is proportional to
    1 plus the number of times that the item is a training target. The 1 is added because an item with probability 0
    would never be a negative. The loss estimates a sum over all items from the negatives, and without this item, the
    estimate would be too small on average.

    Args:
        item_tokens (`np.ndarray` of shape `(num_items,)`): Token of each item.
        target_tokens (`np.ndarray` of shape `(num_targets,)`): The target tokens of all training rows.
        num_negatives (`int`): K, the number of negatives per target.
        sampled_from (`str`): `"uniform"` or `"popularity"`.
    """

    def __init__(
        self, item_tokens: np.ndarray, target_tokens: np.ndarray, num_negatives: int, sampled_from: SampledFrom
    ) -> None:
        if len(item_tokens) < 2:
            raise ValueError("sampled_items needs a catalogue of at least 2 items; leave sampled_items out")
        # A draw from q is a random entry of `pool`, so the cost of a draw does not depend on the number of items.
        others = target_tokens if sampled_from == "popularity" else target_tokens[:0]
        self.pool = np.concatenate([item_tokens, others]).astype(np.int64)
        self.num_negatives = num_negatives

    def log_q(self, vocabulary_size: int) -> Tensor:
        """Returns log q for each token id, `(vocabulary_size,)`, or -inf for tokens that are not items."""
        counts = torch.from_numpy(np.bincount(self.pool, minlength=vocabulary_size))
        return (counts.double() / len(self.pool)).log().float()

    def stream(self, targets: np.ndarray, seed: list[int]) -> np.ndarray:
        """Returns a stream of draws in which, for each target, at least K draws differ from that target."""
        generator = np.random.default_rng(seed)
        draws = self._draw(generator, self.num_negatives)
        while missing := self._missing(draws, targets):
            draws = np.concatenate([draws, self._draw(generator, missing)])
        return draws

    def _draw(self, generator: np.random.Generator, size: int) -> np.ndarray:
        """Returns tokens of items, `(size,)`, drawn from q with replacement."""
        drawn: np.ndarray = self.pool[generator.integers(len(self.pool), size=size)]
        return drawn

    def _missing(self, draws: np.ndarray, targets: np.ndarray) -> int:
        """Returns the number of negatives that the target with the fewest negatives still needs.

        Draws that equal a target are not negatives of this target. So the target that was drawn most often has the
        fewest negatives.
        """
        hits = draws[np.isin(draws, targets)]
        most = int(np.unique(hits, return_counts=True)[1].max(initial=0))
        return self.num_negatives - (len(draws) - most)


@dataclass
class SamplingCollator(EpochCounter, NextItemCollator):
    """A [`NextItemCollator`] that adds the stream of draws of each training row.

    Rows without the field `row` (the index that [`numbered`] adds to each training row) get no draws. Evaluation rows
    are such rows.

    Args:
        sampler (`ItemSampler`): Draws the negatives.
        seed (`int`, *optional*, defaults to `0`): Seed of the draws.
    """

    sampler: ItemSampler | None = None
    seed: int = 0

    def __call__(self, rows: list[dict[str, Any]]) -> dict[str, Tensor]:
        """Returns the batch of [`NextItemCollator`], with the draws of each row in `negatives`, `(B, L)`.

        Shorter streams are padded with -1.
        """
        batch = super().__call__(rows)
        if "row" not in rows[0] or self.sampler is None:
            return batch
        streams = [self._stream(row, self.sampler) for row in rows]
        lengths = np.array([len(stream) for stream in streams])
        padded = Ragged.from_lengths(np.concatenate(streams), lengths).padded(fill=-1)
        return {**batch, "negatives": torch.from_numpy(padded)}

    def _stream(self, row: dict[str, Any], sampler: ItemSampler) -> np.ndarray:
        """Returns the draws of a row in this epoch."""
        labels = np.asarray(row["labels"])
        return sampler.stream(labels[labels != IGNORED], [self.seed, int(self.epoch), row["row"]])


def numbered(rows: Dataset) -> Dataset:
    """Adds a column `row` with the index of each row. The index is part of the seed of the row's draws."""
    rows = rows.remove_columns([name for name in ("row",) if name in rows.column_names])
    return rows.add_column("row", np.arange(len(rows)))


def counted_negatives(streams: Tensor, columns: SampledColumns, num_negatives: int) -> Tensor:
    """Returns a mask `(N, L)` of each target's negatives: the first K draws of its row that differ from the target.

    Args:
        streams: `(B, L)`, the draws of each row, followed by -1.
        columns: The row of each target token, and the token itself.
        num_negatives: K.
    """
    draws = streams[columns.owners]  # (N, L)
    differs = (draws >= 0) & (draws != columns.targets.unsqueeze(1))
    return differs & (differs.cumsum(1) <= num_negatives)


def log_probabilities(log_q: Tensor, columns: SampledColumns) -> Tensor:
    """Returns the log-probability of each draw, `(N, L)`, given that the draw differs from the target.

    The values of padding and of draws that equal the target have no meaning.

    Args:
        log_q: The result of [`ItemSampler.log_q`].
        columns: The row of each target token, the token itself, and the draws of each row.
    """
    remaining = torch.log1p(-log_q[columns.targets].exp())  # (N,)
    return log_q[columns.negatives][columns.owners] - remaining.unsqueeze(1)
