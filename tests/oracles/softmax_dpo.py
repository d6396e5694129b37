"""Computes Softmax-DPO for one row at a time, in plain floats. Its gradient was derived by hand."""

import math
from typing import NamedTuple


class Row(NamedTuple):
    """The result of `softmax_dpo_loss` for one row, and the gradient of its loss with respect to each log-ratio."""

    loss: float
    rewards_chosen: float
    rewards_rejected: float
    margins: float
    accuracies: float
    chosen_gradient: float
    rejected_gradient: list[float]


def row(chosen: float, rejected: list[float], mask: list[bool], *, beta: float) -> Row:
    """Returns the loss of one row, with its metrics and gradient.

    `chosen` and `rejected` are log-ratios of policy and reference. The loss is the cross-entropy of the chosen
    completion in a softmax over this completion and the negatives for which `mask` is True. The logits are the
    log-ratios times `beta`. Without negatives, all values are 0.
    """
    reward = beta * chosen
    negatives = [beta * value for value, real in zip(rejected, mask, strict=True) if real]
    if not negatives:
        return Row(0.0, 0.0, 0.0, 0.0, 0.0, 0.0, [0.0] * len(rejected))
    top = max(reward, *negatives)
    normaliser = top + math.log(math.fsum(math.exp(value - top) for value in [reward, *negatives]))
    gradient = [
        beta * math.exp(beta * value - normaliser) if real else 0.0 for value, real in zip(rejected, mask, strict=True)
    ]
    mean = math.fsum(negatives) / len(negatives)
    accuracy = float(all(chosen > value for value, real in zip(rejected, mask, strict=True) if real))
    return Row(normaliser - reward, reward, mean, reward - mean, accuracy, -math.fsum(gradient), gradient)
