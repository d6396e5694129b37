"""Items as vectors that tell who chooses them: the embeddings of a small encoder of sequences, trained to tell the
next item.

The encoder reads the training split alone. Deviation: the paper's target-attention network (DIN) reads a sequence once
for each candidate that it scores; causal self-attention reads it once for all its positions, which a CPU can afford. A
user's vector is pooled from those of the items chosen, as in the authors' code: w = softmax(e_i . mean(e) /
sqrt(width)), u = sum of w_i e_i.

Legend: B sequences, T items of the longest, D width, K negatives.
"""

from __future__ import annotations

import hashlib
import logging
import math
from copy import deepcopy
from pathlib import Path

import numpy as np
import torch
from datasets import Dataset
from torch import Tensor, nn
from torch.nn import functional
from tqdm.auto import tqdm

from trl_rec.ragged import Ragged, within
from trl_rec.semantic_ids.cooccurrence import popularity, training_sequences
from trl_rec.semantic_ids.storage import kept_tensor


logger = logging.getLogger(__name__)
LENGTH = 50  # items of a sequence that are read together
BATCH = 128
NEGATIVES = 512  # shared by a batch; a catalogue that is no larger is scored whole
HELD_OUT = 20  # every so manieth sequence tells when to stop
PATIENCE = 3


def collaborative_vectors(
    train: Dataset, num_items: int, *, width: int = 64, max_epochs: int = 60, seed: int = 0, cache: Path | None = None
) -> Tensor:
    """`(num_items, width)` float32; zeros for an item that does not occur in training.

    Args:
        train (`Dataset`): The training split; any other is refused.
        num_items (`int`): Size of the catalogue.
        width (`int`, *optional*, defaults to `64`): Width of the vectors, a multiple of 2.
        max_epochs (`int`, *optional*, defaults to `60`): Most passes; the encoder stops when it no longer tells the
            next items of held-out sequences better, a twentieth of all pieces of 50 items.
        seed (`int`, *optional*, defaults to `0`): Seed of weights, order and negatives.
        cache (`Path`, *optional*): A folder in which vectors are kept, and looked for first.
    """
    seen = torch.from_numpy(popularity(train, num_items) > 0)
    windows, learned = _windows(train)
    digest = hashlib.sha256(f"{num_items} {width} {max_epochs} {seed}".encode())
    for part in (windows.values, windows.offsets, learned.values):
        digest.update(np.ascontiguousarray(part).tobytes())

    def train_encoder() -> Tensor:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return _train(windows, learned, num_items, width, max_epochs) * seen.unsqueeze(1)

    return kept_tensor(cache, "collaborative", digest.hexdigest()[:16], train_encoder)


def pooled(vectors: Tensor, items: Tensor, mask: Tensor) -> Tensor:
    """`(B, D)`: what users choose. `vectors (num_items, D)`, `items (B, T)`, `mask (B, T)`: which of them count; zeros
    where none does."""
    chosen = vectors[items] * mask.unsqueeze(-1)
    mean = chosen.sum(1) / mask.sum(1, keepdim=True).clamp(min=1)
    scores = torch.einsum("btd,bd->bt", chosen, mean) / math.sqrt(vectors.shape[1])
    weights = torch.where(mask, scores, -torch.inf).softmax(1).nan_to_num(0.0)
    return torch.einsum("bt,btd->bd", weights, chosen)


class _Encoder(nn.Module):
    def __init__(self, log_popularity: Tensor, width: int) -> None:
        super().__init__()
        self.items, self.places = nn.Embedding(len(log_popularity), width), nn.Embedding(LENGTH, width)
        self.popularity = nn.Parameter(log_popularity.clone())  # so that vectors need not tell of it
        options = {
            "dim_feedforward": 2 * width,
            "dropout": 0.2,
            "activation": "gelu",
            "batch_first": True,
            "norm_first": True,
        }
        layer = nn.TransformerEncoderLayer(width, nhead=2, **options)  # type: ignore[arg-type]
        self.layers = nn.TransformerEncoder(layer, 2, norm=nn.LayerNorm(width), enable_nested_tensor=False)
        self.dropout = nn.Dropout(0.2)
        nn.init.normal_(self.items.weight, std=0.02)  # small, so that what rare items keep of it is little
        nn.init.normal_(self.places.weight, std=0.02)

    def forward(self, items: Tensor) -> Tensor:
        """`(B, T, D)`: at each place what comes next, from `(B, T)` items, filled up on the right."""
        size = items.shape[1]
        causal = nn.Transformer.generate_square_subsequent_mask(size)
        return self.layers(self.dropout(self.items(items) + self.places.weight[:size]), mask=causal, is_causal=True)


def _windows(train: Dataset) -> tuple[Ragged, Ragged]:
    """Sequences cut into pieces of `LENGTH`, each beginning with the last item of the one before, and which of their
    items have not been learned yet."""
    sequences, new = training_sequences(train)
    count = np.maximum(-(-(sequences.lengths - 1) // (LENGTH - 1)), 1)
    source = np.repeat(np.arange(len(sequences)), count)
    start = within(count) * (LENGTH - 1)
    stop = np.minimum(start + LENGTH, sequences.lengths[source])
    flags = Ragged(new, sequences.offsets)
    windows, learned = (rows.take(source).slice(start, stop) for rows in (sequences, flags))
    longer = np.flatnonzero(windows.lengths > 1)
    if not len(longer):
        raise ValueError("the training split holds no user with two items; there is nothing to learn a next item from")
    return windows.take(longer), learned.take(longer)


def _train(windows: Ragged, learned: Ragged, num_items: int, width: int, max_epochs: int) -> Tensor:
    held_out = np.arange(len(windows)) % HELD_OUT == HELD_OUT - 1
    fitted, measured = np.flatnonzero(~held_out), np.flatnonzero(held_out)
    measured = measured if len(measured) else fitted
    counts = torch.from_numpy(np.bincount(windows.values, minlength=num_items))
    encoder = _Encoder((counts + 1).log(), width)
    optimizer = torch.optim.AdamW(encoder.parameters(), lr=2e-3, weight_decay=0.01)
    best, best_loss, stalled = deepcopy(encoder.items.weight.detach()), math.inf, 0
    progress = tqdm(range(max_epochs), desc="collaborative vectors", unit="epoch")
    for _ in progress:
        encoder.train()
        for rows in _batches(fitted, windows.lengths):
            loss = _next_item_loss(encoder, *_padded(rows, windows, learned))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        value = _measure(encoder, measured, windows, learned)
        progress.set_postfix(loss=f"{value:.3f}")
        best_loss, stalled = (value, 0) if value < best_loss else (best_loss, stalled + 1)
        if not stalled:
            best = encoder.items.weight.detach().clone()
        if stalled == PATIENCE:
            break
    logger.info("collaborative vectors: the next of held-out sequences has a loss of %.3f", best_loss)
    return best


def _batches(rows: np.ndarray, lengths: np.ndarray) -> list[np.ndarray]:
    """Shuffled batches of sequences of about the same length, so that little is filled up."""
    noise = torch.rand(2, len(rows)).numpy()
    order = rows[np.argsort(lengths[rows] + 2 * noise[0], kind="stable")]
    batches = np.split(order, range(BATCH, len(order), BATCH))
    return [batches[place] for place in np.argsort(noise[1][: len(batches)])]


def _padded(rows: np.ndarray, windows: Ragged, learned: Ragged) -> tuple[Tensor, Tensor]:
    items = windows.take(rows).padded(fill=0).astype(np.int64)
    return torch.from_numpy(items), torch.from_numpy(learned.take(rows).padded(fill=False))


@torch.no_grad()
def _measure(encoder: _Encoder, rows: np.ndarray, windows: Ragged, learned: Ragged) -> float:
    """The mean loss of these sequences' items."""
    encoder.eval()
    rows, total, count = rows[np.argsort(windows.lengths[rows], kind="stable")], 0.0, 0
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)  # the same negatives each time
        for part in np.split(rows, range(BATCH, len(rows), BATCH)):
            items, mask = _padded(part, windows, learned)
            wanted = int(mask[:, 1:].sum())
            total, count = total + wanted * float(_next_item_loss(encoder, items, mask)), count + wanted
    return total / max(count, 1)


def _next_item_loss(encoder: _Encoder, items: Tensor, mask: Tensor) -> Tensor:
    """Softmax over the next item and K drawn evenly, each of which stands for all of the (num_items - 1) / K like
    it."""
    wanted = mask[:, 1:]
    states, targets = encoder(items[:, :-1])[wanted], items[:, 1:][wanted]
    vectors = encoder.items.weight
    if len(vectors) <= NEGATIVES:
        return (
            functional.cross_entropy(states @ vectors.T + encoder.popularity, targets)
            if len(targets)
            else vectors.sum() * 0
        )
    drawn = torch.randint(len(vectors), (NEGATIVES,))
    negatives = states @ vectors[drawn].T + encoder.popularity[drawn] + math.log((len(vectors) - 1) / NEGATIVES)
    negatives = negatives.masked_fill(drawn == targets.unsqueeze(1), -torch.inf)
    positives = (states * vectors[targets]).sum(1, keepdim=True) + encoder.popularity[targets].unsqueeze(1)
    scores = torch.cat([positives, negatives], 1)
    return (
        functional.cross_entropy(scores, torch.zeros(len(scores), dtype=torch.int64))
        if len(targets)
        else vectors.sum() * 0
    )
