"""DMPO: prefers one completion over the mean of several negatives, whose number may differ from row to row.

Signature, mask and metrics are the same as in `softmax_dpo_loss`, so that a trainer can use either loss.

Legend: B rows, K negatives (padded).
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from trl_rec.losses.output import LossOutput, at_least_float32
from trl_rec.losses.softmax_dpo import check_beta, preference_metrics


def dmpo_loss(chosen_logratios: Tensor, rejected_logratios: Tensor, mask: Tensor | None, *, beta: float) -> LossOutput:
    r"""Direct multi-preference optimization (DMPO, arXiv 2405.16127), one value per row.

    With $h = \beta \log(\pi_\theta / \pi_{ref})$ of the chosen completion $w$ and of the K negatives $l$ of a row:

    $$ L = -\log \sigma\left(h_w - \frac{1}{K} \sum_l h_l\right) $$

    All negatives of a row are pushed down equally, whereas Softmax-DPO pushes the likeliest hardest. One negative
    gives DPO with TRL's `"sigmoid"` loss. If the policy equals the reference, the loss is log 2 for any number of
    negatives. A row without a negative has loss 0 and gradient 0.

    Reconstruction: the paper's body was not available, and no source says what happens where rows have different
    numbers of negatives. Here the mean runs over those of the row.

    Args:
        chosen_logratios (`torch.Tensor` of shape `(B,)`): The log-probability of the chosen completion under the
            policy minus that under the reference, each summed over its tokens. bfloat16 and float16 are computed in
            float32.
        rejected_logratios (`torch.Tensor` of shape `(B, K)`): The same for the negatives. K may be 0.
        mask (`torch.Tensor` of shape `(B, K)` or `None`): True where there is a negative; `None` if all entries are
            negatives. Masked entries have no effect, even if infinite or NaN.
        beta (`float`): Weight of the divergence from the reference.

    Returns:
        [`LossOutput`]: The loss, `(B,)`, and the metrics of [`softmax_dpo_loss`].
    """
    check_beta(beta)
    if mask is None:
        mask = torch.ones_like(rejected_logratios, dtype=torch.bool)

    chosen = beta * at_least_float32(chosen_logratios)  # (B,)
    rejected = beta * at_least_float32(rejected_logratios)  # (B, K)

    # Masked both before and after the mean, so that neither an infinite entry nor an empty row reaches the gradient.
    excess = torch.where(mask, rejected - chosen[:, None], 0)
    mean_excess = excess.sum(-1) / mask.sum(-1).clamp(min=1)
    loss = torch.where(mask.any(-1), -F.logsigmoid(-mean_excess), 0)
    return LossOutput(loss, preference_metrics(chosen.detach(), rejected.detach(), mask))
