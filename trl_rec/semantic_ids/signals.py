"""Makes item vectors from texts, from behaviour (which items users choose near each other), or from both."""

from __future__ import annotations

import torch
from torch import Tensor

from trl_rec.data.dataset import RecDataset
from trl_rec.data.profiles import item_texts
from trl_rec.semantic_ids.item_vectors import cooccurrence_vectors
from trl_rec.semantic_ids.text_encoders import WORDS, load_text_encoder, text_vectors


SIGNALS = ("text", "behaviour", "both")


def signal_vectors(
    dataset: RecDataset,
    signals: str = "both",
    *,
    text_encoder: str = WORDS,
    item_text: str | None = None,
    width: int = 128,
    seed: int = 0,
) -> Tensor:
    """Computes one vector per item.

    Items that have similar texts, or that users choose near the same items, get similar vectors.

    Args:
        dataset (`RecDataset`): The dataset. Behaviour is taken from its training split only.
        signals (`str`, *optional*, defaults to `"both"`): `"text"`, `"behaviour"` (see [`cooccurrence_vectors`]), or
            `"both"`, which concatenates the two.
        text_encoder (`str`, *optional*, defaults to `"words"`): The encoder that embeds texts, as in
            [`load_text_encoder`]. The vectors of texts are cached in the dataset folder, under `vectors`.
        item_text (`str`, *optional*): Template for the text of an item, as in [`item_texts`].
        width (`int`, *optional*, defaults to `128`): Width of the vectors from behaviour.
        seed (`int`, *optional*, defaults to `0`): Seed for the vectors from behaviour.

    Returns:
        `torch.Tensor` of shape `(num_items, D)`, float32: The behaviour part, then the text part. Each part is centred
        over the items and scaled to norm 1. With the encoder `"words"`, the text part is zero for items whose text
        contains no word. The behaviour part is zero for items that have no positive mutual information with another
        item, such as items that do not occur in the training split.
    """
    if signals not in SIGNALS:
        raise ValueError(f"signals must be one of {', '.join(SIGNALS)}, not {signals!r}")

    parts = []
    if signals != "text":
        parts.append(cooccurrence_vectors(dataset.train, len(dataset.catalog), width=width, seed=seed))
    if signals != "behaviour":
        texts = item_texts(dataset.catalog, item_text)
        parts.append(text_vectors(texts, load_text_encoder(text_encoder), cache=dataset.path / "vectors"))
    return torch.cat([_centred(part) for part in parts], dim=1)


def _centred(vectors: Tensor) -> Tensor:
    """Subtracts the mean of the nonzero vectors from each of them, and scales the result to norm 1."""
    known = vectors.norm(dim=1, keepdim=True) > 0  # (num_items, 1)
    mean = vectors.sum(0) / known.sum().clamp(min=1)
    return torch.nn.functional.normalize((vectors - mean) * known)
