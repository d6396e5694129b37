"""DMPO: a preference of one completion over the mean of several, whose number differs from row to row.

The signature, the mask and the metrics are those of `softmax_dpo_loss`, so that a trainer can use either.

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

    All negatives of a row are pushed down equally, where Softmax-DPO pushes the likeliest hardest. One negative gives
    DPO with TRL's `"sigmoid"` loss. Where the policy is the reference, the loss is log 2 however many negatives there
    are. A row without a negative has loss 0 and zero gradient.

    Reconstruction: the mean runs over the negatives that a row has, as the paper has the same number in every row.

    Args:
        chosen_logratios: `(B,)`, the log-probability of the chosen completion under the policy minus that under the
            reference, each a sum over its tokens. bfloat16 and float16 are computed in float32.
        rejected_logratios: `(B, K)`, the same for the negatives. K may be 0.
        mask: `(B, K)`, True where there is a negative, or `None` when all are. Masked entries may hold anything.
        beta: Weight of the divergence from the reference.

    Returns:
        The loss, `(B,)`, and the metrics of [`softmax_dpo_loss`].
    """
    check_beta(beta)
    if mask is None:
        mask = torch.ones_like(rejected_logratios, dtype=torch.bool)
    chosen = beta * at_least_float32(chosen_logratios)  # (B,)
    rejected = beta * at_least_float32(rejected_logratios)  # (B, K)

    # Masked before the mean and after it, so that neither an infinite entry nor an empty row reaches the gradient.
    excess = torch.where(mask, rejected - chosen[:, None], 0)
    mean_excess = excess.sum(-1) / mask.sum(-1).clamp(min=1)
    loss = torch.where(mask.any(-1), -F.logsigmoid(-mean_excess), 0)
    return LossOutput(loss, preference_metrics(chosen.detach(), rejected.detach(), mask))
