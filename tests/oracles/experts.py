"""Computes the load-balancing loss of a mixture of experts token by token."""

import torch
from torch import Tensor


def balancing_loss(router_logits: list[list[Tensor]], top_k: int) -> Tensor:
    """Returns the loss of Switch Transformer. For each expert, the share of the tokens that were routed to it is
    multiplied by its mean router probability. The loss is the sum of these products, times the number of experts. Each
    token counts once per layer.

    Args:
        router_logits: The router logits `(num_experts,)` of each token, in each layer.
        top_k: The number of experts per token.
    """
    num_experts = len(router_logits[0][0])
    chosen = [0.0] * num_experts
    probability = [torch.zeros(())] * num_experts
    num_tokens = 0
    for layer in router_logits:
        for logits in layer:
            probs = logits.softmax(0)
            for expert in probs.argsort(descending=True)[:top_k].tolist():
                chosen[expert] += 1
            probability = [total + prob for total, prob in zip(probability, probs, strict=True)]
            num_tokens += 1
    return num_experts * sum(
        share / num_tokens * total / num_tokens for share, total in zip(chosen, probability, strict=True)
    )
