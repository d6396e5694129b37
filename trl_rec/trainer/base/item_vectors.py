"""Computes the vectors that the item embeddings start from, as selected by `RecModelConfig.item_vectors`."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from torch import Tensor

from trl_rec.data.dataset import RecDataset
from trl_rec.models import RecModelConfig
from trl_rec.semantic_ids import signal_vectors


def item_vectors(dataset: RecDataset, config: RecModelConfig, seed: int) -> Callable[[], Tensor] | None:
    """Returns a function that computes the vectors, or None if the embeddings start at random."""
    if config.item_vectors == "random":
        return None
    if dataset.catalog.surface == "title":
        raise ValueError(
            "item_vectors sets the embeddings of tokens that represent items, but titles consist of words; choose the "
            "surface item_token or semantic_id, or leave out item_vectors"
        )
    return partial(signal_vectors, dataset, config.item_vectors, text_encoder=config.text_encoder, seed=seed)
