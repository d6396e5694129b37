"""Computes collaborative item vectors: the item embeddings of a small encoder trained to predict the next item.

The encoder is trained on the training split only.

Deviation: Align³GR (arXiv 2511.11255) uses target attention (DIN), which reads a sequence once per scored item. The
causal self-attention here reads a sequence once for all positions, which is affordable on a CPU. As in Align³GR's
published code, the vector u of a user is pooled from the vectors e_i of the user's items: w = softmax(e_i . mean(e) /
sqrt(width)), u = sum of w_i e_i.

Legend: B sequences, T items in the longest sequence, D width, K negatives, P positions at which an item is predicted.
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
from torch.nn import functional as F
from tqdm.auto import tqdm

from trl_rec.ragged import Ragged, within
from trl_rec.semantic_ids.cooccurrence import popularity, training_sequences
from trl_rec.semantic_ids.storage import cached_tensor


logger = logging.getLogger(__name__)

LENGTH = 50  # maximum number of items per window, which is the part of a sequence that the encoder reads at once
BATCH = 128  # windows per batch
NEGATIVES = 512  # negatives per batch, shared by all positions; a catalogue of at most this size needs no sampling
HELD_OUT = 20  # every 20th window is held out for early stopping
PATIENCE = 3  # number of epochs without improvement after which training stops


def collaborative_vectors(
    train: Dataset, num_items: int, *, width: int = 64, max_epochs: int = 60, seed: int = 0, cache: Path | None = None
) -> Tensor:
    """Trains the encoder and returns its item embeddings.

    Args:
        train (`Dataset`): The training split. Any other split raises a ValueError.
        num_items (`int`): Number of items in the catalogue.
        width (`int`, *optional*, defaults to `64`): Width of the vectors, a multiple of 2.
        max_epochs (`int`, *optional*, defaults to `60`): Maximum number of epochs. Training stops earlier if the loss
            on held-out windows has not improved for 3 epochs. A window consists of at most 50 consecutive items of a
            training sequence. Every 20th window is held out.
        seed (`int`, *optional*, defaults to `0`): Seed for the initial weights, the dropout, the negatives and the
            order of the windows.
        cache (`Path`, *optional*): Folder in which the vectors are cached.

    Returns:
        `torch.Tensor` of shape `(num_items, width)`, float32: The vectors; zeros for items that do not occur in the
        training split.
    """
    occurs = torch.from_numpy(popularity(train, num_items) > 0)
    windows, is_new = _windows(train)

    # The cache key covers everything that the vectors depend on.
    digest = hashlib.sha256(f"{num_items} {width} {max_epochs} {seed}".encode())
    for part in (windows.values, windows.offsets, is_new.values):
        digest.update(np.ascontiguousarray(part).tobytes())

    def train_vectors() -> Tensor:
        """Trains the encoder without changing the global random state."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return _train(windows, is_new, num_items, width, max_epochs) * occurs.unsqueeze(1)

    return cached_tensor(cache, "collaborative", digest.hexdigest()[:16], train_vectors)


def pooled(vectors: Tensor, items: Tensor, mask: Tensor) -> Tensor:
    """Pools the vectors of each user's items into a user vector, by attention. The query is the mean of the vectors.

    Args:
        vectors (`torch.Tensor` of shape `(num_items, D)`): The item vectors.
        items (`torch.Tensor` of shape `(B, T)`): The items of each user.
        mask (`torch.Tensor` of shape `(B, T)`): True for the items to pool.

    Returns:
        `torch.Tensor` of shape `(B, D)`: The user vectors; zeros for users without items.
    """
    chosen = vectors[items] * mask.unsqueeze(-1)  # (B, T, D)
    mean = chosen.sum(1) / mask.sum(1, keepdim=True).clamp(min=1)  # (B, D)
    scores = torch.einsum("btd,bd->bt", chosen, mean) / math.sqrt(vectors.shape[1])
    # For a user without items, softmax returns NaN.
    weights = torch.where(mask, scores, -torch.inf).softmax(1).nan_to_num(0.0)
    return torch.einsum("bt,btd->bd", weights, chosen)


class _Encoder(nn.Module):
    """A causal transformer with two layers over item embeddings."""

    def __init__(self, log_popularity: Tensor, width: int) -> None:
        super().__init__()
        self.items = nn.Embedding(len(log_popularity), width)
        self.places = nn.Embedding(LENGTH, width)
        # A bias per item, so that the vectors do not have to encode popularity.
        self.popularity = nn.Parameter(log_popularity.clone())
        layer = nn.TransformerEncoderLayer(
            width,
            nhead=2,
            dim_feedforward=2 * width,
            dropout=0.2,
            activation="gelu",
            batch_first=True,
            norm_first=True,
        )
        self.layers = nn.TransformerEncoder(layer, 2, norm=nn.LayerNorm(width), enable_nested_tensor=False)
        self.dropout = nn.Dropout(0.2)

        # The initial vectors are small. Training changes the vectors of rare items little, so large initial vectors
        # would remain mostly random.
        nn.init.normal_(self.items.weight, std=0.02)
        nn.init.normal_(self.places.weight, std=0.02)

    def forward(self, items: Tensor) -> Tensor:
        """Returns a vector that predicts the next item for each position, `(B, T, D)`.

        The `items` `(B, T)` are padded on the right.
        """
        size = items.shape[1]
        causal = nn.Transformer.generate_square_subsequent_mask(size)
        states = self.dropout(self.items(items) + self.places.weight[:size])
        predictions: Tensor = self.layers(states, mask=causal, is_causal=True)
        return predictions


def _windows(train: Dataset) -> tuple[Ragged, Ragged]:
    """Cuts the training sequences into windows of at most `LENGTH` items.

    Consecutive windows overlap by one item, so that any two adjacent items of a sequence are together in one window.
    Windows with a single item are dropped.

    Returns:
        The windows, and a mask of the same shape, which is True for the interactions that are not in an earlier row of
        the same user in the training split.
    """
    sequences, is_new = training_sequences(train)
    count = np.maximum(-(-(sequences.lengths - 1) // (LENGTH - 1)), 1)  # windows per sequence, rounded up
    source = np.repeat(np.arange(len(sequences)), count)
    start = within(count) * (LENGTH - 1)
    stop = np.minimum(start + LENGTH, sequences.lengths[source])

    windows = sequences.pieces(source, start, stop)
    is_new_rows = Ragged(is_new, sequences.offsets).pieces(source, start, stop)
    usable = np.flatnonzero(windows.lengths > 1)
    if not len(usable):
        raise ValueError(
            "no user of the training split has chosen two items, so there is no next item to predict; use a log "
            "with longer histories, or use only texts (signals='text', without the option 'behaviour')"
        )
    return windows.take(usable), is_new_rows.take(usable)


def _train(windows: Ragged, is_new: Ragged, num_items: int, width: int, max_epochs: int) -> Tensor:
    """Trains the encoder and returns its item embeddings after the best epoch, `(num_items, width)`."""
    # 1. Hold out some of the windows. If there are fewer than `HELD_OUT` windows, the loss is measured on all windows.
    is_held_out = np.arange(len(windows)) % HELD_OUT == HELD_OUT - 1
    fitted = np.flatnonzero(~is_held_out)
    held_out = np.flatnonzero(is_held_out)
    if not len(held_out):
        held_out = fitted

    counts = torch.from_numpy(np.bincount(windows.values, minlength=num_items))
    encoder = _Encoder((counts + 1).log(), width)
    optimizer = torch.optim.AdamW(encoder.parameters(), lr=2e-3, weight_decay=0.01)

    best = deepcopy(encoder.items.weight.detach())
    best_loss = math.inf
    stalled = 0
    progress = tqdm(range(max_epochs), desc="collaborative vectors", unit="epoch")
    for _ in progress:
        # 2. Train for one epoch.
        encoder.train()
        for rows in _batches(fitted, windows.lengths):
            loss = _next_item_loss(encoder, *_padded(rows, windows, is_new))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()

        # 3. Keep the embeddings of the best epoch, and stop after PATIENCE epochs without improvement.
        held_out_loss = _measure(encoder, held_out, windows, is_new)
        progress.set_postfix(loss=f"{held_out_loss:.3f}")
        if held_out_loss < best_loss:
            best = encoder.items.weight.detach().clone()
            best_loss = held_out_loss
            stalled = 0
        else:
            stalled += 1
        if stalled == PATIENCE:
            break
    logger.info("collaborative vectors: the loss on held-out windows is %.3f", best_loss)
    return best


def _batches(rows: np.ndarray, lengths: np.ndarray) -> list[np.ndarray]:
    """Splits windows into shuffled batches. The windows of a batch have similar lengths, to reduce padding."""
    noise = torch.rand(2, len(rows)).numpy()
    order = rows[np.argsort(lengths[rows] + 2 * noise[0], kind="stable")]
    batches = np.split(order, range(BATCH, len(order), BATCH))
    return [batches[place] for place in np.argsort(noise[1][: len(batches)])]


def _padded(rows: np.ndarray, windows: Ragged, is_new: Ragged) -> tuple[Tensor, Tensor]:
    """Returns the items and the `is_new` masks of the windows `rows`, both `(B, T)` and padded on the right."""
    items = windows.take(rows).padded(fill=0).astype(np.int64)
    return torch.from_numpy(items), torch.from_numpy(is_new.take(rows).padded(fill=False))


@torch.no_grad()
def _measure(encoder: _Encoder, rows: np.ndarray, windows: Ragged, is_new: Ragged) -> float:
    """Returns the loss of the given windows, averaged over the predicted items."""
    encoder.eval()
    rows = rows[np.argsort(windows.lengths[rows], kind="stable")]
    total = 0.0
    count = 0
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)  # draws the same negatives in every epoch
        for part in np.split(rows, range(BATCH, len(rows), BATCH)):
            items, mask = _padded(part, windows, is_new)
            predicted = int(mask[:, 1:].sum())
            total += predicted * float(_next_item_loss(encoder, items, mask))
            count += predicted
    return total / max(count, 1)


def _next_item_loss(encoder: _Encoder, items: Tensor, mask: Tensor) -> Tensor:
    """Computes the sampled softmax loss over the next item and K uniformly drawn items, averaged over positions.

    In the denominator, the term of each negative is multiplied by (num_items - 1) / K, so that the K terms approximate
    the sum over all other items. If the catalogue has at most `NEGATIVES` items, the softmax is taken over all items.

    Args:
        encoder: The encoder.
        items: Items `(B, T)`.
        mask: True for the items to predict, `(B, T)`. The first item of a window is never predicted.
    """
    selected = mask[:, 1:]
    states = encoder(items[:, :-1])[selected]  # (P, D)
    targets = items[:, 1:][selected]  # (P,)
    vectors = encoder.items.weight
    if len(vectors) <= NEGATIVES:  # a small catalogue needs no sampling
        scores = states @ vectors.T + encoder.popularity  # (P, num_items)
        labels = targets
    else:
        drawn = torch.randint(len(vectors), (NEGATIVES,))  # (K,)
        positives = (states * vectors[targets]).sum(1, keepdim=True) + encoder.popularity[targets].unsqueeze(1)
        negatives = states @ vectors[drawn].T + encoder.popularity[drawn] + math.log((len(vectors) - 1) / NEGATIVES)
        negatives = negatives.masked_fill(drawn == targets.unsqueeze(1), -torch.inf)
        scores = torch.cat([positives, negatives], 1)  # (P, 1 + K)
        labels = torch.zeros(len(scores), dtype=torch.int64)

    # Without any position to predict, cross_entropy would return NaN.
    return F.cross_entropy(scores, labels) if len(targets) else vectors.sum() * 0
