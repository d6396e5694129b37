"""Implements DMPO, a preference loss for one chosen completion and the mean of several negatives.

Rows may have different numbers of negatives. The signature and the metrics are the same as in `softmax_dpo_loss`, so
that a trainer can use either loss.

Legend: B rows, K negatives (padded).
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from trl_rec.losses.output import LossOutput, at_least_float32
from trl_rec.losses.softmax_dpo import check_beta, preference_metrics


def dmpo_loss(chosen_logratios: Tensor, rejected_logratios: Tensor, mask: Tensor | None, *, beta: float) -> LossOutput:
    r"""Computes the loss of direct multi-preference optimization (DMPO, arXiv 2405.16127), with one value per row.

    Let $h_w$ be $\beta \log(\pi_\theta / \pi_{ref})$ of the chosen completion $w$, and $h_l$ the same for each of the
    K negatives $l$:

    $$ L = -\log \sigma\left(h_w - \frac{1}{K} \sum_l h_l\right) $$

    The loss pushes all negatives of a row down equally, whereas Softmax-DPO pushes the negatives with the highest
    log-ratios down the most. With one negative, the loss equals TRL's DPO loss of type `"sigmoid"`. If the policy
    equals the reference, the loss is log 2 for one negative or more. For a row without negatives, the loss, its
    gradient and all metrics are 0.

    Reconstruction: the full text of the paper was not available, and no source states how rows with different numbers
    of negatives are treated. We take the K of the equation to be the row's own number of negatives, without padding.

    Args:
        chosen_logratios (`torch.Tensor` of shape `(B,)`): Log-ratios of the chosen completions: the log-probability
            under the policy minus the log-probability under the reference, both summed over tokens. bfloat16 and
            float16 inputs are computed in float32.
        rejected_logratios (`torch.Tensor` of shape `(B, K)`): Log-ratios of the negatives. K may be 0.
        mask (`torch.Tensor` of shape `(B, K)` or `None`): True where there is a negative; `None` if all entries are
            negatives. Masked entries have no effect, even if infinite or NaN.
        beta (`float`): Factor of the log-ratios. A larger value keeps the policy closer to the reference.

    Returns:
        [`LossOutput`]: The loss, `(B,)`, and the metrics of [`softmax_dpo_loss`].
    """
    check_beta(beta)
    if mask is None:
        mask = torch.ones_like(rejected_logratios, dtype=torch.bool)

    chosen = beta * at_least_float32(chosen_logratios)  # (B,)
    rejected = beta * at_least_float32(rejected_logratios)  # (B, K)

    # The first `where` keeps infinite masked entries out of the gradient. The second `where` sets the loss to 0 for
    # rows without negatives.
    excess = torch.where(mask, rejected - chosen[:, None], 0)
    mean_excess = excess.sum(-1) / mask.sum(-1).clamp(min=1)
    loss = torch.where(mask.any(-1), -F.logsigmoid(-mean_excess), 0)
    return LossOutput(loss, preference_metrics(chosen.detach(), rejected.detach(), mask))
