"""Starts the embeddings of item tokens and semantic IDs from vectors of the items.

New embeddings are random, so a model has to learn from scratch which items are alike. On a small log, this takes most
of the training. Vectors of texts or of co-occurrence already contain it.

Legend: I items, D width of the vectors, U distinct tokens of the items, W width of the embeddings.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from trl_rec.compat import held_weights
from trl_rec.items.catalog import ItemCatalog


WHITENING = 0.5  # 1 gives all directions of the vectors the same variance; 0 leaves their variances unchanged
RANDOM_SHARE = 0.1  # share of the variance that is random, so that items with equal vectors get different embeddings
NEGLIGIBLE = 1e-6  # variances below this fraction of the largest variance are rounding errors


def start_from_vectors(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    catalog: ItemCatalog,
    vectors: Tensor,
    *,
    seed: int = 0,
) -> None:
    """Overwrites the embeddings of the catalogue's tokens, in place.

    The vector of a token is the mean of the vectors of the items whose path contains the token: with item tokens the
    item's vector, with semantic IDs the centre of a cluster. The vectors are projected onto their principal
    components, partly whitened, and rotated at random. A token embedding is the mean of all embeddings of the model
    plus this vector, scaled so that its variance is that of the model's embeddings.

    If the output embeddings are a separate module, they are overwritten in the same way. Tokens whose vector is 0 keep
    their embeddings.

    Args:
        model (`PreTrainedModel`): The model, without an adapter.
        tokenizer (`PreTrainedTokenizerBase`): The tokenizer, which contains the tokens of the catalogue.
        catalog (`ItemCatalog`): The items. Their surface must not be the title.
        vectors (`torch.Tensor` of shape `(I, D)`): One vector per item, centred; 0 for an item without one.
        seed (`int`, *optional*, defaults to `0`): Random seed.
    """
    if len(vectors) != len(catalog):
        raise ValueError(f"there are {len(vectors)} vectors for {len(catalog)} items; pass one per item")
    modules: Any = (model.get_input_embeddings(), model.get_output_embeddings())
    weights = {id(module.weight): module.weight for module in modules}.values()  # tied modules share one weight
    if any(held_weights(weight) is not weight for weight in weights):
        raise ValueError(
            "item_vectors cannot be used with a pretrained model under ZeRO-3, which divides its embeddings among "
            "processes; train with ZeRO-2, or leave out item_vectors"
        )

    # 1. Compute one vector per token, with about as many directions as the embeddings have.
    tokens, means = _token_vectors(catalog, tokenizer, vectors.float())  # (U,), (U, D)
    width = modules[0].weight.shape[1]
    generator = torch.Generator().manual_seed(seed)
    starts = _rotated(_principal_components(means, width), width, generator)  # (U, W)

    # 2. Add a random part.
    noise = torch.randn(starts.shape, generator=generator)
    starts = (1 - RANDOM_SHARE) ** 0.5 * starts + RANDOM_SHARE**0.5 * noise
    known = means.norm(dim=1) > 0

    # 3. Write the embeddings.
    for weight in weights:
        _write(weight, tokens[known], starts[known])


def _token_vectors(catalog: ItemCatalog, tokenizer: PreTrainedTokenizerBase, vectors: Tensor) -> tuple[Tensor, Tensor]:
    """Returns the distinct tokens of all paths, `(U,)`, and the mean vector of the items of each, `(U, D)`."""
    paths = catalog.paths(tokenizer)
    tokens, places = torch.from_numpy(paths.values).unique(return_inverse=True)
    owners = torch.from_numpy(paths.row_ids)
    sums = torch.zeros(len(tokens), vectors.shape[1]).index_add(0, places, vectors[owners])
    return tokens, sums / places.bincount(minlength=len(tokens))[:, None]


def _principal_components(vectors: Tensor, most: int) -> Tensor:
    """Returns the largest principal components, `(U, at most most)`, partly whitened, with a mean square of 1 per
    vector and direction."""
    variances, directions = torch.linalg.eigh(vectors.double().T @ vectors.double())  # ascending
    variances = variances.flip(0)[:most]
    directions = directions.flip(1)[:, :most]
    kept = variances > NEGLIGIBLE * variances[:1]
    components: Tensor = (vectors.double() @ directions[:, kept]) * variances[kept] ** (-WHITENING / 2)
    mean_square = components.square().mean().clamp(min=torch.finfo(torch.float64).tiny)
    return (components / mean_square.sqrt()).float()


def _rotated(vectors: Tensor, width: int, generator: torch.Generator) -> Tensor:
    """Rotates the vectors at random into a space of this width, `(U, W)`, so that no direction of it is special. The
    mean square per vector and direction stays the same."""
    rotation: Tensor = torch.linalg.qr(torch.randn(width, width, generator=generator)).Q
    scale: float = (width / max(vectors.shape[1], 1)) ** 0.5
    return scale * (vectors @ rotation[: vectors.shape[1]])


@torch.no_grad()
def _write(weight: nn.Parameter, tokens: Tensor, starts: Tensor) -> None:
    """Writes the rows of these tokens, with the mean and the standard deviation of all rows."""
    rows = weight.float()
    mean = rows.mean(0)
    deviation = (rows - mean).square().mean().sqrt()
    weight[tokens.to(weight.device)] = (mean + deviation * starts.to(mean)).to(weight.dtype)
