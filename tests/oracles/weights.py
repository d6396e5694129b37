"""Computes item weights, and the terms that they add to scores, in loops over items. A weight is
w = allowed * (shared + values). `shared` are weights for all prompts, and `values` are weights of single items for one
prompt. `allowed` is 0 for the items that a filter removes, and 1 for the others."""

from __future__ import annotations

import math

from trl_rec.decoding import ItemWeights


def weights_of(weights: ItemWeights, prompt: int, num_items: int) -> list[float]:
    """Returns the weight of every item for one prompt."""
    default = 1.0 if weights.items is None else 0.0
    result = [default] * num_items if weights.shared is None else weights.shared.tolist()
    if weights.items is not None:
        for item, value in zip(weights.items[prompt].tolist(), weights.values[prompt].tolist(), strict=True):
            if item >= 0:
                result[item] += value
    if weights.allowed is not None:
        row = 0 if weights.allowed_of is None else int(weights.allowed_of[prompt])
        result = [weight * allowed for weight, allowed in zip(result, weights.allowed[row].tolist(), strict=True)]
    return result


def terms_of(weights: ItemWeights, prompt: int, num_items: int) -> dict[int, float]:
    """Returns strength * log(w / W) of each item whose weight is not 0. W is the sum of all weights."""
    given = weights_of(weights, prompt, num_items)
    total = sum(given)
    return {item: weights.strength * math.log(weight / total) for item, weight in enumerate(given) if weight > 0}
