"""Implements Softmax-DPO, a preference loss for one chosen completion and several negatives.

Rows may have different numbers of negatives, and missing negatives are masked. Padding a row with copies of one of its
negatives would change the loss: the loss sums over the negatives, so a negative that occurs m times would count m
times. The inputs are log-ratios between policy and reference, so this file needs neither a model nor tokens.

Legend: B rows, K negatives (padded).
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from trl_rec.losses.output import LossOutput, at_least_float32


def softmax_dpo_loss(
    chosen_logratios: Tensor, rejected_logratios: Tensor, mask: Tensor | None, *, beta: float
) -> LossOutput:
    r"""Computes the Softmax-DPO loss, with one value per row (S-DPO, arXiv 2406.09215; equation 3 of Align³GR, arXiv
    2511.11255).

    Let $h_w$ be $\beta \log(\pi_\theta / \pi_{ref})$ of the chosen completion $w$, and $h_l$ the same for each
    negative $l$. These values are called rewards. The loss is:

    $$ L = -\log \sigma\left(-\log \sum_l \exp(h_l - h_w)\right) $$

    This is the cross-entropy of a choice between the chosen completion and its negatives, with the rewards as logits
    and the chosen completion as the label. With one negative, the loss equals TRL's DPO loss of type
    `"sigmoid"`. If the policy equals the reference, the loss is log(1 + number of negatives).

    For a row without negatives, the loss, its gradient and all metrics are 0. The caller has to exclude such rows from
    means.

    Args:
        chosen_logratios (`torch.Tensor` of shape `(B,)`): Log-ratios of the chosen completions: the log-probability
            under the policy minus the log-probability under the reference, both summed over tokens. bfloat16 and
            float16 inputs are computed in float32.
        rejected_logratios (`torch.Tensor` of shape `(B, K)`): Log-ratios of the negatives. K may be 0.
        mask (`torch.Tensor` of shape `(B, K)` or `None`): True where there is a negative; `None` if all entries are
            negatives. Masked entries have no effect, even if infinite or NaN.
        beta (`float`): Factor of the log-ratios. A larger value keeps the policy closer to the reference.

    Returns:
        [`LossOutput`]: The loss, `(B,)`, and the metrics `rewards_chosen`, `rewards_rejected` (averaged over the
        negatives), `margins` (the difference between these two) and `accuracies` (1 where the chosen completion has a
        higher reward than every negative, otherwise 0).
    """
    check_beta(beta)
    if mask is None:
        mask = torch.ones_like(rejected_logratios, dtype=torch.bool)

    chosen = beta * at_least_float32(chosen_logratios)  # (B,)
    rejected = beta * at_least_float32(rejected_logratios)  # (B, K)
    # Subtract before masking. Otherwise the gradient of a row without negatives would be 0 * infinity, which is NaN.
    excess = torch.where(mask, rejected - chosen[:, None], -torch.inf)
    loss = -F.logsigmoid(-excess.logsumexp(-1))
    return LossOutput(loss, preference_metrics(chosen.detach(), rejected.detach(), mask))


def preference_metrics(chosen: Tensor, rejected: Tensor, mask: Tensor) -> dict[str, Tensor]:
    """Computes the metrics of a preference loss, `(B,)` each, from the rewards of the chosen completions, `(B,)`, and
    of the negatives, `(B, K)`. Rows without negatives get 0."""
    has_negatives = mask.any(-1)
    mean_rejected = torch.where(mask, rejected, 0).sum(-1) / mask.sum(-1).clamp(min=1)
    above_all = torch.where(mask, rejected < chosen[:, None], True).all(-1)
    return {
        "rewards_chosen": torch.where(has_negatives, chosen, 0),
        "rewards_rejected": mean_rejected,
        "margins": torch.where(has_negatives, chosen - mean_rejected, 0),
        "accuracies": (above_all & has_negatives).to(chosen.dtype),
    }


def check_beta(beta: float) -> None:
    """Raises ValueError if `beta` is not positive."""
    if beta <= 0:
        raise ValueError(
            f"`beta` must be positive, but is {beta}. With this value, the chosen completion would not be preferred. "
            "Set beta to 1, for example."
        )
