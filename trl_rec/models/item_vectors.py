"""Initialises the embeddings of item tokens and semantic IDs with vectors of the items.

By default, new embeddings are random, so a model has to learn from scratch which items are similar. On a small
dataset, learning this takes most of the training. If the embeddings start from vectors of texts or of co-occurrences,
similar items have similar embeddings from the first step.

Legend: I items, D width of the vectors, U distinct tokens of the items, W width of the embeddings.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from trl_rec.compat import held_weights
from trl_rec.items.catalog import ItemCatalog
from trl_rec.ragged import within


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
    """Overwrites the embeddings of the items' tokens, in place.

    With item tokens (one per item), the vector of a token is the item's vector. With semantic IDs, the tokens of an
    item are called its codes. The first code of an item gets the mean vector of all items with this code. A later code
    gets the mean remainder of all items with this code. The remainder of an item is the item's vector minus the
    vectors of the item's earlier codes. Therefore the sum of the vectors of an item's codes is close to the item's
    vector.

    The vectors of the tokens are projected onto their principal components, partly whitened, rotated at random, and
    mixed with a little noise. Then they are scaled to the variance of the model's embeddings. The new embedding of a
    token is its scaled vector plus the mean of all embeddings of the model.

    If the output embeddings are not tied to the input embeddings, they are overwritten in the same way. Tokens whose
    vector is 0 keep their embeddings.

    Args:
        model (`PreTrainedModel`): The model, without an adapter.
        tokenizer (`PreTrainedTokenizerBase`): The tokenizer, which contains the tokens of the catalogue.
        catalog (`ItemCatalog`): The items. Their surface must not be the title.
        vectors (`torch.Tensor` of shape `(I, D)`): One vector per item, centred. All entries must be 0 for an item
            that has no vector.
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

    # 1. Compute one vector per token, as wide as the embeddings.
    tokens, token_vectors = _token_vectors(catalog, tokenizer, vectors.float())  # (U,), (U, D)
    width = modules[0].weight.shape[1]
    generator = torch.Generator().manual_seed(seed)
    starts = _rotated(_principal_components(token_vectors, width), width, generator)  # (U, W)

    # 2. Add a random part. The mean square of the vectors stays 1.
    noise = torch.randn(starts.shape, generator=generator)
    starts = (1 - RANDOM_SHARE) ** 0.5 * starts + RANDOM_SHARE**0.5 * noise

    # 3. Write the embeddings of the tokens that have a vector.
    has_vector = token_vectors.norm(dim=1) > 0
    for weight in weights:
        _write(weight, tokens[has_vector], starts[has_vector])


def _token_vectors(catalog: ItemCatalog, tokenizer: PreTrainedTokenizerBase, vectors: Tensor) -> tuple[Tensor, Tensor]:
    """Returns the distinct tokens of all items, `(U,)`, and the vector of each token, `(U, D)`."""
    paths = catalog.paths(tokenizer)
    tokens, places = torch.from_numpy(paths.values).unique(return_inverse=True)
    owners = torch.from_numpy(paths.row_ids)
    levels = torch.from_numpy(within(paths.lengths))

    # Level by level, give each token the mean remainder of its items, and subtract this mean from their remainders.
    token_vectors = torch.zeros(len(tokens), vectors.shape[1])
    remainders = vectors.clone()  # (I, D)
    for level in range(int(levels.max()) + 1):
        at_level = levels == level
        of_items = owners[at_level]
        of_tokens = places[at_level]
        sums = torch.zeros_like(token_vectors).index_add(0, of_tokens, remainders[of_items])
        means = sums / of_tokens.bincount(minlength=len(tokens)).clamp(min=1)[:, None]
        token_vectors += means
        remainders[of_items] -= means[of_tokens]
    return tokens, token_vectors


def _principal_components(vectors: Tensor, most: int) -> Tensor:
    """Projects the vectors onto the (at most `most`) directions of largest variance, and partly whitens the result.

    Returns:
        `torch.Tensor` of shape `(U, number of directions)`, with the mean square 1.
    """
    # 1. Find the directions.
    variances, directions = torch.linalg.eigh(vectors.double().T @ vectors.double())  # ascending
    variances = variances.flip(0)[:most]
    directions = directions.flip(1)[:, :most]
    kept = variances > NEGLIGIBLE * variances[:1]

    # 2. Project and scale.
    components: Tensor = (vectors.double() @ directions[:, kept]) * variances[kept] ** (-WHITENING / 2)
    mean_square = components.square().mean().clamp(min=torch.finfo(torch.float64).tiny)
    return (components / mean_square.sqrt()).float()


def _rotated(vectors: Tensor, width: int, generator: torch.Generator) -> Tensor:
    """Rotates the vectors at random into a space of `width` dimensions, `(U, W)`, so that they vary in all dimensions.

    The mean square of the vectors stays the same.
    """
    rotation: Tensor = torch.linalg.qr(torch.randn(width, width, generator=generator)).Q
    scale: float = (width / max(vectors.shape[1], 1)) ** 0.5
    return scale * (vectors @ rotation[: vectors.shape[1]])


@torch.no_grad()
def _write(weight: nn.Parameter, tokens: Tensor, starts: Tensor) -> None:
    """Scales `starts` to the standard deviation of all rows of the weight, adds the mean of all rows, and overwrites
    the row of each token with the result."""
    rows = weight.float()
    mean = rows.mean(0)
    deviation = (rows - mean).square().mean().sqrt()
    weight[tokens.to(weight.device)] = (mean + deviation * starts.to(mean)).to(weight.dtype)
